"""The table of clients: each cell is yes or no, and says why not."""

import re
from pathlib import Path

import pytest

from tests.support import client_table
from tests.support.client_table import COLUMNS, assert_documented
from tests.support.markdown import page


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with a table of two clients, in place of docs/clients.md."""
    copy = tmp_path / "clients.md"
    copy.write_text(
        "| client | unary | errors | details | retries | watch | TLS |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| one | yes | yes | yes | no[^retries] | yes | yes |\n"
        "| other | no | maybe | yes | yes[^nowhere] | yes | yes |\n"
        "\n[^retries]: It has no retries.\n"
    )
    monkeypatch.setattr(client_table, "page", lambda _: copy)
    return copy


def test_form() -> None:
    assert client_table.faults(page("clients.md")) == []


def test_faults_of_the_form(clients: Path) -> None:
    assert client_table.faults(clients) == [
        "other, unary: a no without a footnote",
        "other, errors: 'maybe' is not yes or no, with or without a footnote",
        "other, retries: there is no footnote [^nowhere]",
    ]


@pytest.mark.usefixtures("clients")
def test_a_row_that_is_right() -> None:
    assert_documented("one", dict.fromkeys(COLUMNS, True) | {"retries": False})
    assert_documented("one", {"watch": True})


@pytest.mark.usefixtures("clients")
def test_a_row_that_is_wrong() -> None:
    row = "| one | yes | no | yes | yes | yes | yes |"
    with pytest.raises(AssertionError, match=re.escape(f"errors, retries; right is\n{row}")):
        assert_documented("one", {"unary": True, "errors": False, "retries": True})


@pytest.mark.usefixtures("clients")
def test_a_client_without_a_row() -> None:
    row = "| third | yes | yes | yes | no | yes | yes |"
    with pytest.raises(AssertionError, match=re.escape(row)):
        assert_documented("third", dict.fromkeys(COLUMNS, True) | {"retries": False})
