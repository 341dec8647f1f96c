"""Masking: no payment identifier and no token appears in an entry of the log.

Masked are the identifiers in the request that is being served, the values that PostgreSQL and
asyncpg quote in the text of their errors, JSON Web Tokens, and, in any text, what is written as
providers write their identifiers: a caller may have put one where none belongs, as into a path or a
request id. Names that a caller has chosen go through ``mask_name``, which is stricter.
"""

import re
from collections.abc import Sequence
from contextvars import ContextVar
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

# Entries whose values the service chooses from a fixed set. A caller may send one of these values
# as an identifier, so they are not searched for identifiers.
_CONSTANT_FIELDS: Final = frozenset(
    ("timestamp", "level", "logger", "method", "protocol", "code", "outcome", "caller", "trace_id")
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
# are what request ids are like. Stripe and Mollie: a prefix and a random part, as in "pi_3NabcDEF",
# "cs_test_a1B2c3", "tr_7UhSN1zuXS"; after a prefix that may be a word, the random part has a digit.
# What is masked already, as "pi_3…cDEF", stays.
_PREFIXED: Final = re.compile(
    rf"""(?<!{_LETTER})(?:
        (?:cs|pi|ch|py|pm|pyr|evt|tr|txn|seti|setatt|ord|tx)_[\w-]++(?!…)
        | [a-z]{{2,5}}_(?:test_|live_)?(?=[a-z]*\d)[a-z\d]{{10,}}
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# PayPal, Adyen: 16 or 17 upper-case letters and digits, as in "8MC585209K746392H". AllSecure: 20
# hexadecimal digits.
_BARE: Final = re.compile(r"\b(?:[A-Z\d]{16,17}|[\da-f]{20})\b")

# In a name, a digit in a long word is enough: names of methods, fields and media types have none.
_NO_NAME: Final = re.compile(r"(?=[A-Za-z_-]*\d)[\w-]{8,}")

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
            entry[name] = _shortened(name, _mask_text(value, identifiers))
    return entry


def mask_tokens(text: str) -> str:
    """Return ``text`` with ``(token)`` in place of each JSON Web Token."""
    return _TOKEN.sub("(token)", text) if "eyJ" in text else text


def mask_name(text: str) -> str:
    """Return a name that a caller has chosen, as a path, with identifiers of payments masked.

    They are what ``mask_look_alikes`` masks, and words of at least 8 characters with a digit.
    """
    return _NO_NAME.sub(_masked, mask_look_alikes(mask_tokens(text)))


def mask_look_alikes(text: str) -> str:
    """Return ``text`` with all masked that is written as a provider writes its identifiers."""
    if "_" in text:
        text = _PREFIXED.sub(_masked, text)
    return _BARE.sub(_masked, text)


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


def _shortened(name: str, text: str) -> str:
    if name == "exception":
        return text if len(text) <= _MAX_TRACEBACK else f"…{text[-_MAX_TRACEBACK:]}"
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def _mask_text(text: str, identifiers: Sequence[str]) -> str:
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
    return mask_look_alikes(text)
