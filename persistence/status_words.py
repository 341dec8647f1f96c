"""The table from the words of ``payment_status`` to states.

The words and their sources are in ``status_words.toml``; a shop lays a file of its own over it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from persistence import status_words_file
from persistence.models import Order
from persistence.payment_states import UNKNOWN, Meaning, PaymentState, normalized
from persistence.status_words_file import SECTIONS, StatusWord, WordsFile

_BUILTIN: Final = Path(__file__).with_name("status_words.toml")

# The words of providers are some hundred, but callers may send any.
_CACHED_WORDS: Final = 1024

_T = TypeVar("_T")


class StatusWords:
    """What words mean, and which providers give follow-ups an intent of their own. Immutable."""

    def __init__(self, file: WordsFile) -> None:
        order = list(SECTIONS)
        self._entries = tuple(sorted(file.words, key=lambda entry: order.index(entry.meaning)))
        meanings = {normalized(entry.word): SECTIONS[entry.meaning] for entry in self._entries}
        self._meanings = MappingProxyType(
            {word: meaning for word, meaning in meanings.items() if meaning != UNKNOWN}
        )
        self._own_intents = {normalized(name): name for name in file.own_intents}
        self._cached_meaning = lru_cache(_CACHED_WORDS)(self._find)

    @staticmethod
    def builtin() -> "StatusWords":
        """Return the table without a shop's own words."""
        return _builtin()

    @staticmethod
    def read(path: Path | None) -> "StatusWords":
        """Return the built-in table, with the file at ``path`` laid over it, if there is one.

        A word in that file means what it means there, and the providers of both files count.
        Raises InvalidStatusWords.
        """
        if path is None:
            return _builtin()
        builtin = status_words_file.read(_BUILTIN)
        own = status_words_file.read(path, builtin.words)
        redefined = {normalized(entry.word) for entry in own.words}
        kept = tuple(entry for entry in builtin.words if normalized(entry.word) not in redefined)
        return StatusWords(WordsFile(kept + own.words, builtin.own_intents + own.own_intents))

    def meaning(self, word: str) -> Meaning:
        """Return what ``word`` means, in any spelling; UNKNOWN where the table does not have it."""
        return self._cached_meaning(word)

    def state(self, word: str) -> PaymentState:
        """Return the state of a word that is set by hand: that of a reversal is PAID."""
        return self._cached_meaning(word).state

    def classified(self, order: Order) -> Order:
        """Return ``order`` with the state of its word, where the column is null."""
        if order.payment_state is None:
            return order._replace(payment_state=self.state(order.payment_status))
        return order

    def has_own_intents(self, provider: str) -> bool:
        """Return whether the provider's refunds, disputes and chargebacks have own intents."""
        return normalized(provider) in self._own_intents

    @property
    def own_intents(self) -> Sequence[str]:
        """The names of these providers, as the files have them."""
        return tuple(self._own_intents.values())

    def words_of(self, states: Iterable[PaymentState]) -> list[str]:
        """Return the normalized words of ``states``, sorted. Words of reversals count as PAID.

        Raises ValueError for UNKNOWN, whose words are all that the table does not have.
        """
        wanted = frozenset(states)
        if PaymentState.UNKNOWN in wanted:
            raise ValueError("UNKNOWN has no list of words")
        return sorted(word for word, meaning in self._meanings.items() if meaning.state in wanted)

    def entries(self) -> Sequence[StatusWord]:
        """Return the words as the files have them, by state. Several providers may have the same.

        Among them, last, those that a shop's file makes UNKNOWN.
        """
        return self._entries

    @property
    def meanings(self) -> Mapping[str, Meaning]:
        """The meanings by normalized word, without UNKNOWN."""
        return self._meanings

    @cached_property
    def states_json(self) -> str:
        """A JSON object of the normalized words and the numbers of their states."""
        return json.dumps({word: meaning.state for word, meaning in self._meanings.items()})

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits, which are the same for tables with the same meanings."""
        names = {meaning: name for name, meaning in SECTIONS.items()}
        text = "\n".join(sorted(f"{names[m]} {word}" for word, m in self._meanings.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _find(self, word: str) -> Meaning:
        return self._meanings.get(normalized(word), UNKNOWN)


@cache
def _builtin() -> StatusWords:
    return StatusWords(status_words_file.read(_BUILTIN))


def changed_words(before: Mapping[str, _T], after: Mapping[str, _T]) -> list[str]:
    """Return the words whose meaning differs between two tables, or that one lacks; sorted."""
    return sorted(
        word for word in before.keys() | after.keys() if before.get(word) != after.get(word)
    )
