"""CHANGELOG.md has each message of the log that differs from the last release's.

``log_messages_0_1.txt`` has those of version 0.1, one a line. At a release, the messages of
``tests.support.log_messages`` take their place.
"""

import re
from pathlib import Path

from tests.support.log_messages import messages
from tests.support.markdown import ROOT

RELEASED = set((Path(__file__).parent / "log_messages_0_1.txt").read_text().splitlines())


def test_new_and_changed_messages_are_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    section = text.partition("### Changed log messages")[2].partition("\n### ")[0]
    listed = re.sub(r"\s+", " ", section)
    present = messages()
    assert len(present) > 40
    missing = []
    for each in sorted(present ^ RELEASED, key=len, reverse=True):
        if each not in listed:
            missing.append(each)
        listed = listed.replace(each, "")  # a shorter message is no part of it
    assert missing == []
