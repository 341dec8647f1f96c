"""Where in a TOML document each key and each element of an array stands.

``tomllib`` gives the line of a syntax error, and none of a value. This module reads only what it
needs for that, of text that ``tomllib`` has accepted: it checks nothing.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""The keys, and indexes of arrays, that lead to a value: ``("PAID", "stripe", "words", 0)``."""

# Strings as in https://toml.io/en/v1.0.0#string. A multi-line one may end in up to five quotes.
_TOKEN: Final = re.compile(
    r"""
    (?P<space> [ \t\r]+ | \#[^\n]* )
    | (?P<string> \"{3} (?: \\[\s\S] | [^\\] )*? \"{3,5} | '{3} [\s\S]*? '{3,5}
                | " (?: \\. | [^"\\] )* " | '[^']*' )
    | (?P<mark> [\n\[\]{}=,.] )
    | (?P<bare> [^\s\[\]{}=,.#"']+ )
    """,
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str | None
    text: str
    line: int


_END: Final = _Token("mark", "", 0)


def lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of each key and each element of an array in a TOML document.

    A key that several lines mention, as tables of the same parent do, has the first of them. An
    element of an array of tables has the line of its ``[[header]]``.
    """
    return _Document(text).lines


class _Document:
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._elements: dict[Path, int] = {}  # of each array of tables so far
        self._tokens = _tokens(text)
        self._next = next(self._tokens, _END)
        self._read()

    def _read(self) -> None:
        table: Path = ()
        while self._next is not _END:
            match self._next.text:
                case "\n" | "]":
                    self._take()
                case "[":
                    table = self._header()
                case _:
                    self._pair(table)

    def _take(self) -> _Token:
        token, self._next = self._next, next(self._tokens, _END)
        return token

    def _header(self) -> Path:
        """Read a header up to its key. Return the path of the table that it begins."""
        line = self._take().line
        if self._next.text != "[":
            return self._key(())
        self._take()
        path = self._key(())
        if isinstance(path[-1], int):  # the element before
            path = path[:-1]
        index = self._elements.get(path, 0)
        self._elements[path] = index + 1
        self.lines[(*path, index)] = line
        return (*path, index)

    def _key(self, parent: Path) -> Path:
        """Read a key, which may be dotted. Return the path that it leads to.

        An array of tables stands for the last of its elements, so far.
        """
        path = parent
        while True:
            token = self._take()
            name = token.text
            if token.kind == "string":
                name = tomllib.loads(f"name = {name}")["name"]
            path = (*path, name)
            self.lines.setdefault(path, token.line)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
            if self._next.text != ".":
                return path
            self._take()

    def _pair(self, parent: Path) -> None:
        path = self._key(parent)
        self._take()  # the =
        self._value(path)

    def _value(self, path: Path) -> None:
        first = self._take()
        if first.text == "[":
            self._array(path)
        elif first.text == "{":
            self._inline_table(path)
        elif first.kind != "string":
            while self._next.text not in ("", "\n", ",", "]", "}"):  # a date may have a space
                self._take()

    def _array(self, path: Path) -> None:
        index = 0
        while self._next.text != "]":
            if self._next.text in ("\n", ","):
                self._take()
                continue
            self.lines[(*path, index)] = self._next.line
            self._value((*path, index))
            index += 1
        self._take()

    def _inline_table(self, path: Path) -> None:
        while self._next.text != "}":
            if self._next.text in ("\n", ","):
                self._take()
            else:
                self._pair(path)
        self._take()


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "space":
            yield _Token(match.lastgroup, match[0], line)
        line += match[0].count("\n")
