"""The documentation as it stands in the checkout: pages, code blocks, links and tables.

A shell block is run by ``tests/docs/test_commands.py`` unless its info string says otherwise. After
the language, an info string has marks, separated by semicolons:

- ``background: TEXT``: the block runs on until the end of its page. The next block follows once
  TEXT has been printed.
- ``prints: A, B``: the output contains A, then B. Without it, HTTP errors that curl sees fail.
- ``needs: TOOL``: left out where TOOL is not on the PATH.
- ``on: PAGE``: runs after the blocks of PAGE, against what these have started.
- ``full: REASON``: left out unless LISTINGS_DOCS=full.
- ``no-run: REASON``: not run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

PAGES: Final = (
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)

MARKS: Final = {"background", "prints", "needs", "on", "full", "no-run"}

_FENCE: Final = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE: Final = re.compile(r"`([^`\n]+)`")
_HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: Path
    line: int
    language: str
    marks: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def page(name: str) -> Path:
    """Return the path of a page of ``docs/``, or of README.md."""
    return ROOT / name if name == "README.md" else ROOT / "docs" / name


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        language, _, info = found[1].partition(" ")
        marks = [mark.partition(":") for mark in info.split(";") if mark.strip()]
        yield Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            language,
            {name.strip(): value.strip() for name, _, value in marks},
            found[2],
        )


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Return the targets of the links of a page."""
    return _LINK.findall(prose(page))


def code(text: str) -> list[str]:
    """Return what stands in backticks, in order."""
    return _CODE.findall(text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub derives them from its headings."""
    headings = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", each) for each in _HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def table(page: Path, *header: str) -> list[list[str]]:
    """Return the rows of the table whose header begins with these cells."""
    lines = iter(prose(page).splitlines())
    for line in lines:
        if line.startswith("| ") and _cells(line)[: len(header)] == list(header):
            next(lines)
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append(_cells(row))
            return rows
    raise AssertionError(f"{page.name} has no table with the header {header}")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
