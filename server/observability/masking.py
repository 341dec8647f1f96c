"""Masking: no payment identifier and no token appears in an entry of the log.

Masked are the identifiers in the request that is being served, the values that PostgreSQL and
asyncpg quote in the text of their errors, JSON Web Tokens, and, in any text, what is written as
providers write their identifiers: a caller may have put one where none belongs, as into a path or a
request id. Names that a caller has chosen go through ``mask_name``, which is stricter.
"""

import re
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from string import ascii_letters, digits
from typing import Any, Final

from protobuf import Message
from structlog.typing import EventDict, WrappedLogger

MASKED_FIELDS: Final = (
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_transaction_id",
)
"""The fields of requests, and of log entries, whose values are masked."""

# Of an identifier of at least 16 characters, the first and last four are shown, to tell it from
# others.
_LONG, _SHOWN = 16, 4

_LETTER = "[^\\W_]"  # or digit

# Characters of a text, and of the end of a traceback, that are kept. Lines of more than 4,096 bytes
# (PIPE_BUF, pipe(7)) from several workers may be interleaved.
_MAX_TEXT, _MAX_TRACEBACK = 300, 3_000

# Characters beyond that in which look-alikes are searched: as many as an identifier has at most.
_MARGIN: Final = 255

# Entries whose values the service chooses from a fixed set. A caller may send one of these values
# as an identifier, so they are not searched for identifiers.
_CONSTANT_FIELDS: Final = frozenset(
    (
        *("timestamp", "level", "logger", "method", "protocol", "code", "outcome", "caller"),
        *("trace_id", "database"),
    )
)

# Where the code of a traceback is: a path may look like an identifier.
_CODE: Final = frozenset((str(Path(__file__).parents[2]), sys.prefix, sys.base_prefix))
_CODE_PATH: Final = re.compile(
    rf'((?m:^[ |]*File )"(?:{"|".join(map(re.escape, sorted(_CODE, key=len, reverse=True)))})/)'
)

# What errors quote, and what replaces it. PostgreSQL: "DETAIL:  Key (column)=(value) already
# exists." or a whole row. asyncpg: "invalid input for query argument $4: 'value' (reason)".
_END = r"(?=\nHINT: |\n\nThe above exception|\n\nDuring handling|\Z)"
_QUOTED: Final = tuple(
    (mark, re.compile(rf"({before}).*?{_END}", re.DOTALL), r"\1(masked)")
    for mark, before in (
        ("DETAIL: ", "DETAIL: "),
        ("query argument", r"invalid input for query argument \$\d+: "),
    )
)

# A JSON Web Token, or the beginning of one: base64url of '{"', a dot, and so on.
_TOKEN: Final = re.compile(r"eyJ[\w-]{8,}(\.[\w-]*)*")

# What is written as providers write their identifiers. UUIDs and 32 hexadecimal digits stay: they
# are what request ids are like. Whole words are found here, and examined by a function, so that the
# time is linear: a caller chooses the text. A word is longer than what is shown of a masked one.
_WORD: Final = re.compile(rf"[\w-]{{{_SHOWN + 1},}}+")
_WORD_CHARACTERS: Final = f"{ascii_letters}{digits}_-"

# Stripe and Mollie: a prefix and a random part, as in "pi_3NabcDEF", "cs_test_a1B2c3",
# "tr_7UhSN1zuXS".
_PREFIX: Final = re.compile(
    rf"(?<!{_LETTER})(?:cs|pi|ch|py|pm|pyr|evt|tr|txn|seti|setatt|ord|tx)_(?:test_|live_)?",
    re.IGNORECASE,
)
# After a prefix that may be a word, as in "idx_tx_created", the random part has a digit or, in
# eight characters, a capital after a small letter. One that is long needs neither.
_RANDOM: Final = re.compile(
    r"(?=[^\W\d_]*+\d|(?=[^\W_]{8})[^\W_]*?[a-z][A-Z])[^\W_]++|[^\W_]{24,}+"
)
_OTHER_PREFIXED: Final = re.compile(
    rf"(?<!{_LETTER})[a-z]{{2,5}}_(?:test_|live_)?(?=[a-z]*\d)[a-z\d]{{10,}}", re.IGNORECASE
)
# PayPal, Adyen: 16 or 17 upper-case letters and digits, as in "8MC585209K746392H". AllSecure: 20
# hexadecimal digits.
_BARE: Final = re.compile(r"\b(?:[A-Z\d]{16,17}|[\da-f]{20})\b")

# In a name, a prefix, or a digit in a word of this many characters, is enough: names of methods,
# fields and media types have none.
_NO_NAME: Final = 8
_DIGIT: Final = re.compile(r"\d")

_request: ContextVar[Message[Any] | None] = ContextVar("request", default=None)


def set_current_request(request: Message[Any]) -> None:
    """Mask the identifiers in ``request`` in all that the current context logs from now on."""
    _request.set(request)


def has_current_request() -> bool:
    """Return whether the current context has called ``set_current_request``."""
    return _request.get() is not None


def mask_entry(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    """Mask and shorten the texts of a log entry, as a processor of structlog."""
    identifiers = _identifiers(_request.get())
    # The event of an entry of the standard library has its arguments formatted into it.
    is_ours = "_record" not in entry
    for name, value in entry.items():
        if name in MASKED_FIELDS:
            entry[name] = mask_identifier(value)
        elif (
            isinstance(value, str)
            and name not in _CONSTANT_FIELDS
            and not (is_ours and name == "event")
        ):
            text = _mask_known(value, identifiers)
            entry[name] = _traceback(text) if name == "exception" else _shortened(text)
    return entry


def mask_tokens(text: str) -> str:
    """Return ``text`` with ``(token)`` in place of each JSON Web Token."""
    return _TOKEN.sub("(token)", text) if "eyJ" in text else text


def mask_name(text: str) -> str:
    """Return a name that a caller has chosen, as a path, with identifiers of payments masked.

    They are what ``mask_look_alikes`` masks, words of at least 8 characters with a digit, and what
    has a provider's prefix. Of a long name, the beginning is returned.
    """
    return mask_look_alikes(_WORD.sub(_name_masked, mask_tokens(_beginning(text))))


def mask_look_alikes(text: str) -> str:
    """Return ``text`` with all masked that is written as a provider writes its identifiers."""
    if "_" in text:
        text = _WORD.sub(_prefixed_masked, text)
        text = _OTHER_PREFIXED.sub(_masked, text)
    return _BARE.sub(_masked, text)


def _name_masked(word: re.Match[str]) -> str:
    text = word[0]
    if len(text) >= _NO_NAME and _DIGIT.search(text):
        return mask_identifier(text)
    found = _PREFIX.search(text)
    if found is None or len(text) - found.start() <= _SHOWN:
        return text
    return text[: found.start()] + mask_identifier(text[found.start() :])


def _prefixed_masked(word: re.Match[str]) -> str:
    """Return a word with all masked from the first prefix on that a random part follows."""
    text = word[0]
    for found in _PREFIX.finditer(text):
        if len(text) - found.start() > _SHOWN and _RANDOM.match(text, found.end()):
            return text[: found.start()] + mask_identifier(text[found.start() :])
    return text


def _masked(found: re.Match[str]) -> str:
    return mask_identifier(found[0])


def mask_identifier(identifier: str) -> str:
    """Return what may be shown of an identifier: ``abcd…wxyz`` of a long one, else ``…``."""
    if len(identifier) < _LONG:
        return "…"
    return f"{identifier[:_SHOWN]}…{identifier[-_SHOWN:]}"


def _identifiers(request: Message[Any] | None) -> list[str]:
    found = [getattr(request, name, None) for name in MASKED_FIELDS]
    reference = getattr(request, "reference", None)  # FindOrderByPayment: a oneof of the fields
    found.append(getattr(reference, "value", None))
    return [each for each in found if each]


def _shortened(text: str) -> str:
    masked = mask_look_alikes(_beginning(text))
    is_cut = len(text) > _MAX_TEXT + _MARGIN or len(masked) > _MAX_TEXT
    return f"{masked[:_MAX_TEXT]}…" if is_cut else masked


def _beginning(text: str) -> str:
    """Return what of a text may be shown, and some more, without an identifier that is cut off."""
    if len(text) <= _MAX_TEXT + _MARGIN:
        return text
    text = text[: _MAX_TEXT + _MARGIN]
    # The beginning of a word that is longer than an identifier is masked like the whole.
    whole = text.rstrip(_WORD_CHARACTERS)
    return whole if len(whole) >= _MAX_TEXT else text


def _traceback(text: str) -> str:
    """Return the end of a traceback, masked but for the paths of its code."""
    end = text[-(_MAX_TRACEBACK + _MARGIN) :]
    if len(end) < len(text):
        whole = end.lstrip(_WORD_CHARACTERS)
        end = whole if len(whole) >= _MAX_TRACEBACK else end
    parts = _CODE_PATH.split(end)  # every second one is a path
    masked = "".join(
        part if position % 2 else mask_look_alikes(part) for position, part in enumerate(parts)
    )
    is_cut = len(end) < len(text) or len(masked) > _MAX_TRACEBACK
    return f"…{masked[-_MAX_TRACEBACK:]}" if is_cut else masked


def _mask_known(text: str, identifiers: Sequence[str]) -> str:
    """Mask the values that errors quote, tokens and the identifiers of the request."""
    for mark, pattern, replacement in _QUOTED:
        if mark in text:
            text = pattern.sub(replacement, text)
    text = mask_tokens(text)
    for identifier in identifiers:
        if identifier not in text:
            continue
        if len(identifier) < _LONG:  # it may be a part of any word: masked as a whole word only
            text = re.sub(rf"(?<!{_LETTER}){re.escape(identifier)}(?!{_LETTER})", "…", text)
        else:
            text = text.replace(identifier, mask_identifier(identifier))
    return text
