"""The command line, run as a person runs it."""

import subprocess
import sys
from collections.abc import Mapping

from tests.support import service


def listings(
    *arguments: str, url: str = "", answer: str = "", settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end on the database at ``url``, or on an embedded one."""
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=service.environment(url, settings),
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
