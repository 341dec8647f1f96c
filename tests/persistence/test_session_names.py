"""The name by which a process shows its table of words in PostgreSQL."""

import pytest

from persistence.session_names import digest_in, session_name

DIGEST = "0123456789ab"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", "listings"),
        ("?application_name=", "listings"),
        ("?application_name=pay%20eu", "pay eu"),
        ("?application_name=" + 80 * "a", 44 * "a"),
        ("?application_name=a" + 40 * "%C3%A9", "a" + 21 * "é"),  # never half a character
    ],
)
def test_the_name_of_the_url_and_the_digest(query: str, shown: str) -> None:
    name = session_name(f"postgresql://db.example/shop{query}", DIGEST)
    assert name == f"{shown} words={DIGEST}"
    assert len(name.encode()) <= 63
    assert digest_in(name) == DIGEST


@pytest.mark.parametrize("name", ["", "psql", "words=", f"words={DIGEST}", f"a words={DIGEST}f"])
def test_other_names(name: str) -> None:
    assert digest_in(name) is None
