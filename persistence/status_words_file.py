"""Reading a file of words and states: ``status_words.toml``, or a shop's own of the same form.

::

    [PAID.stripe]                        # a name of SECTIONS, and any name for whose words it has
    source = "https://docs.stripe.com/"  # without it, the file is the source
    words = ["succeeded"]

    [providers]
    own_intents = ["allsecure"]          # providers, as payment_provider names them

``[[PAID.stripe]]`` begins one of several groups of a provider.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

from persistence import toml_lines
from persistence.errors import InvalidStatusWords
from persistence.payment_states import (
    UNKNOWN,
    UNPAID,
    Meaning,
    PaymentState,
    Reversal,
    normalized,
)

SECTIONS: Final[Mapping[str, Meaning]] = MappingProxyType(
    {state.name: Meaning(state) for state in PaymentState if state is not PaymentState.UNKNOWN}
    | {
        "DISPUTE_REVERSED": Meaning(PaymentState.PAID, Reversal.CONTEST),
        "REFUND_REVERSED": Meaning(PaymentState.PAID, Reversal.REFUND),
        PaymentState.UNKNOWN.name: UNKNOWN,
    }
)
"""The sections of a file. UNKNOWN takes words away from those of the built-in table."""

_SECTION_OF: Final = {meaning: section for section, meaning in SECTIONS.items()}

_PROVIDERS: Final = "providers"
_OWN_INTENTS: Final = "own_intents"

# What tomllib appends to the message of a syntax error.
_POSITION: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class StatusWord(NamedTuple):
    """A word as a file has it."""

    word: str
    meaning: str
    """A name of SECTIONS."""
    provider: str
    """The name of the group; "common" in the built-in table is no provider's."""
    source: str
    """Where the word is documented; the file's path where it does not say so."""


class WordsFile(NamedTuple):
    """What a file says."""

    words: tuple[StatusWord, ...]
    own_intents: tuple[str, ...]


def section_of(meaning: Meaning) -> str:
    """Return the section whose words have this meaning, as messages name the meaning."""
    return _SECTION_OF.get(meaning, PaymentState.UNKNOWN.name)


def read(path: Path, known: Iterable[StatusWord] = ()) -> WordsFile:
    """Return what the file at ``path`` says. Raises InvalidStatusWords, naming the line.

    ``known`` are words of another file, whose section is proposed where a word is given for one.
    """
    try:
        # Editors on Windows write a byte order mark.
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InvalidStatusWords(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidStatusWords(f"{path}, line {line}: expected UTF-8") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        position = _POSITION.search(message)
        line = int((position and position[1]) or text.count("\n") + 1)
        reason = _POSITION.sub("", message)
        raise InvalidStatusWords(f"{path}, line {line}: this is not TOML: {reason}") from None
    return _Reader(path, text, known).read(document)


class _Reader:
    """Reads a file's values, and reports the first mistake with its line."""

    def __init__(self, path: Path, text: str, known: Iterable[StatusWord]) -> None:
        self._path = path
        self._known = {normalized(each.word): each.meaning for each in known}
        self._text = text
        self._first_use: dict[str, tuple[str, toml_lines.Path]] = {}

    def read(self, document: dict[str, Any]) -> WordsFile:
        words: list[StatusWord] = []
        own_intents: tuple[str, ...] = ()
        for section, content in document.items():
            if section == _PROVIDERS:
                own_intents = self._own_intents(content)
            elif section in SECTIONS:
                words += self._section(section, content)
            else:
                self._refuse_section(section)
        return WordsFile(tuple(words), own_intents)

    def _section(self, section: str, content: object) -> Iterator[StatusWord]:
        form = f"[{section}.<provider>]"
        for provider, value in self._table((section,), content, form).items():
            at = (section, provider)
            if isinstance(value, list):
                for index, group in enumerate(value):
                    yield from self._group((*at, index), self._table((*at, index), group, form))
            else:
                yield from self._group(at, self._table(at, value, form))

    def _group(self, at: toml_lines.Path, group: dict[str, Any]) -> Iterator[StatusWord]:
        section, provider = str(at[0]), str(at[1])
        self._check_names(at, group, ["source", "words"])
        if "words" not in group:
            self._refuse(at, 'expected words = ["…", "…"] in this group')
        source = group.get("source", str(self._path))
        self._check_string(source, (*at, "source"))
        for word_at, word in self._strings((*at, "words"), group["words"]):
            self._check_meaning(word, section, word_at)
            yield StatusWord(word, section, provider, source)

    def _own_intents(self, content: object) -> tuple[str, ...]:
        providers = self._table((_PROVIDERS,), content, f"[{_PROVIDERS}]")
        self._check_names((_PROVIDERS,), providers, [_OWN_INTENTS])
        at = (_PROVIDERS, _OWN_INTENTS)
        return tuple(name for _, name in self._strings(at, providers.get(_OWN_INTENTS, [])))

    def _check_meaning(self, word: str, section: str, at: toml_lines.Path) -> None:
        if normalized(word) == UNPAID and section != PaymentState.PENDING.name:
            self._refuse(
                at,
                f'"{word}" is the status of an order whose payment has not begun; expected it in '
                f"{PaymentState.PENDING.name}, or not at all",
            )
        before, first_at = self._first_use.setdefault(normalized(word), (section, at))
        if before != section:
            self._refuse(
                at,
                f'"{word}" is {section} here and {before} in line {self._line(first_at)}; '
                "expected one meaning for a word (case, white space, - and _ make no difference)",
            )

    def _check_names(self, at: toml_lines.Path, table: Iterable[str], known: list[str]) -> None:
        for name in table:
            if name not in known:
                self._refuse((*at, name), f"there is no key {name}", name, known)

    def _table(self, at: toml_lines.Path, value: object, form: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._refuse(at, f"expected a table, {form}")
        return value

    def _strings(self, at: toml_lines.Path, value: object) -> Iterator[tuple[toml_lines.Path, str]]:
        if not isinstance(value, list):
            self._refuse(at, f'expected {at[-1]} = ["…", "…"]')
        for index, text in enumerate(value):
            self._check_string(text, (*at, index))
            if not normalized(text):
                self._refuse((*at, index), f'expected letters or digits; got "{text}"')
            yield (*at, index), text

    def _check_string(self, value: object, at: toml_lines.Path) -> None:
        if not isinstance(value, str):
            self._refuse(at, f"expected a string, in quotes; got {value!r}")

    def _refuse_section(self, section: str) -> NoReturn:
        problem = f"there is no state {section}"
        meant = self._known.get(normalized(section))
        # "paid" is rather the name of the state than the word.
        if meant is not None and section.upper() not in SECTIONS:
            self._refuse((section,), f"{problem}: that is a word of {meant}")
        self._refuse((section,), problem, section, [*SECTIONS, _PROVIDERS])

    def _refuse(
        self, at: toml_lines.Path, problem: str, given: str = "", known: Iterable[str] = ()
    ) -> NoReturn:
        if given:
            names = {name.lower(): name for name in known}
            close = difflib.get_close_matches(given.lower(), names, n=1)
            problem += (
                f"; did you mean {names[close[0]]}?" if close else f"; expected {_one_of(known)}"
            )
        raise InvalidStatusWords(f"{self._path}, line {self._line(at)}: {problem}")

    def _line(self, at: toml_lines.Path) -> int:
        return toml_lines.lines(self._text)[at]


def _one_of(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
