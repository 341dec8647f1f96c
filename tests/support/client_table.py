"""The table "What each client can do" of docs/clients.md, compared with what tests observe."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.callers import Failure
from tests.support.markdown import page, table

HEADER: Final = ("client", "unary", "errors", "details", "retries", "watch", "TLS")
COLUMNS: Final = HEADER[1:]

_WORD: Final = {True: "yes", False: "no"}
_CELL: Final = re.compile(r"(yes|no)(\[\^[\w-]+\])?")


def assert_documented(client: str, results: Mapping[str, bool]) -> None:
    """Compare what was observed with the row of ``client``; the failure prints the right row.

    ``results`` has, by column, whether the client can do it; columns that it leaves out are not
    compared.
    """
    unknown = results.keys() - set(COLUMNS)
    assert not unknown, f"the table of clients has no columns {sorted(unknown)}"
    row = _row(client)
    wrong = [name for name, can in results.items() if _verdict(row[name]) != _WORD[can]]
    right = row | {name: _WORD[results[name]] for name in wrong}
    line = " | ".join((client, *right.values()))
    assert not wrong, f"docs/clients.md is wrong about {', '.join(wrong)}; right is\n| {line} |"


@contextmanager
def documented(client: str, column: str) -> Iterator[None]:
    """Compare whether the body succeeds, or raises Failure, with what is documented."""
    try:
        yield
    except Failure:  # in the traceback, if it is not documented
        assert_documented(client, {column: False})
    else:
        assert_documented(client, {column: True})


def faults(clients: Path) -> list[str]:
    """Return what is wrong with the table's form: each "no" has a footnote that explains it."""
    text = clients.read_text()
    found = []
    for name, *cells in table(clients, *HEADER):
        for column, cell in zip(COLUMNS, cells, strict=True):
            match = _CELL.fullmatch(cell)
            where = f"{name}, {column}"
            if match is None:
                found.append(f"{where}: {cell!r} is not yes or no, with or without a footnote")
            elif match[1] == "no" and match[2] is None:
                found.append(f"{where}: a no without a footnote")
            elif match[2] and f"\n{match[2]}: " not in text:
                found.append(f"{where}: there is no footnote {match[2]}")
    return found


def _row(client: str) -> dict[str, str]:
    for name, *cells in table(page("clients.md"), *HEADER):
        if name == client:
            return dict(zip(COLUMNS, cells, strict=True))
    return dict.fromkeys(COLUMNS, "?")


def _verdict(cell: str) -> str:
    match = _CELL.fullmatch(cell)
    return match[1] if match else cell
