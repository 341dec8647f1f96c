"""What the process writes to its log, and how: one line an entry, to stdout.

By structlog, as JSON, or readable where the output is a terminal. What other packages log by the
standard library takes the same form. Whatever is logged, identifiers of payments do not appear in
it: neither those of the request that is being served, nor the values that PostgreSQL and asyncpg
quote in the text of their errors.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

import structlog
from protobuf import Message
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from server.observability.log_sink import Output

AUTO: Final = "auto"
_JSON: Final = "json"
CONSOLE: Final = "console"

_OUR_LOGGERS: Final = ("persistence", "server")

SECRETS: Final = (
    "payment_session_id",
    "payment_intent_id",
    "payment_idempotency_key",
    "payment_transaction_id",
)
"""The fields of requests whose values are masked."""

# How much of a masked identifier is shown, to tell it from others, if it is long.
_LONG, _SHOWN = 16, 4

_LETTER = "[^\\W_]"  # or digit

# Characters of a text that are kept, and of the end of a traceback: lines of more than 4,096 bytes
# (PIPE_BUF, in Linux' pipe(7)) from several workers may be torn apart by one another.
_MOST, _MOST_OF_TRACEBACK = 300, 3_000

# What is said in words of our own. A caller may choose one of them as an identifier.
_WORDS: Final = frozenset(
    ("timestamp", "level", "logger", "method", "protocol", "code", "outcome", "caller", "trace_id")
)

# What errors quote, and what is left of it. PostgreSQL: "DETAIL:  Key (column)=(value) already
# exists." or a whole row. asyncpg: "invalid input for query argument $4: 'value' (reason)".
_END = r"(?=\nHINT: |\n\nThe above exception|\n\nDuring handling|\Z)"
_QUOTED: Final = tuple(
    (mark, re.compile(rf"({before}).*?{_END}", re.DOTALL), r"\1(masked)")
    for mark, before in (
        ("DETAIL: ", "DETAIL: "),
        ("query argument", r"invalid input for query argument \$\d+: "),
    )
)

# One encoder for all entries: to make it takes longer than to use it.
_to_json: Final = json.JSONEncoder(default=repr).encode

# A JSON Web Token, or what is left of one: base64url of '{"', a dot, and so on.
_TOKEN: Final = re.compile(r"eyJ[\w-]{8,}(\.[\w-]*)*")

_request: ContextVar[Message[Any] | None] = ContextVar("request", default=None)


def configure(level: str = "info", form: str = AUTO) -> None:
    """Write entries of ``level`` and above in ``form``: "json", CONSOLE, or AUTO."""
    output = Output(sys.stdout)
    is_terminal = sys.stdout.isatty()
    as_json = form == _JSON or (form == AUTO and not is_terminal)
    before: list[Processor] = [_complete, structlog.processors.ExceptionRenderer(), mask]
    render: Processor
    if as_json:
        render = _render_json
    else:
        before.append(_escape)
        render = structlog.dev.ConsoleRenderer(
            sort_keys=False,
            colors=is_terminal and not os.environ.get("NO_COLOR"),  # https://no-color.org
            exception_formatter=structlog.dev.plain_traceback,
        )
    structlog.configure(
        processors=[*before, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: output,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *before],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    for room in _OUR_LOGGERS:
        logging.getLogger(room).setLevel(level.upper())


def is_readable(form: str) -> bool:
    """Return whether ``form`` is for people, where stdout leads to now."""
    return form == CONSOLE or (form == AUTO and sys.stdout.isatty())


def conceal(request: Message[Any]) -> None:
    """Mask the identifiers in ``request`` in whatever is logged while it is served."""
    _request.set(request)


def is_concealed() -> bool:
    """Return whether the request that is being served, if any, is known to ``mask``."""
    return _request.get() is not None


def mask(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    """Mask identifiers of payments in the texts of an entry, as a processor of structlog."""
    secrets = _secrets(_request.get())
    # The standard library's have a text in its place, with whatever was put into that.
    is_ours = "_record" not in entry
    for name, value in entry.items():
        if name in SECRETS:
            entry[name] = masked(value)
        elif isinstance(value, str) and name not in _WORDS and not (is_ours and name == "event"):
            entry[name] = _cut(name, _clean(value, secrets))
    return entry


def without_tokens(text: str) -> str:
    """Return ``text`` with something else in the place of tokens."""
    return _TOKEN.sub("(token)", text) if "eyJ" in text else text


def masked(identifier: str) -> str:
    """Return what may be shown of an identifier: of a long one, its first and last characters."""
    if len(identifier) < _LONG:
        return "…"
    return f"{identifier[:_SHOWN]}…{identifier[-_SHOWN:]}"


def _secrets(request: Message[Any] | None) -> list[str]:
    found = [getattr(request, name, None) for name in SECRETS]
    reference = getattr(request, "reference", None)  # of FindOrderByPayment: one of them
    found.append(getattr(reference, "value", None))
    return [each for each in found if each]


def _cut(name: str, text: str) -> str:
    if name == "exception":
        return text if len(text) <= _MOST_OF_TRACEBACK else f"…{text[-_MOST_OF_TRACEBACK:]}"
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"


def _clean(text: str, secrets: Sequence[str]) -> str:
    for mark, quoted, left in _QUOTED:
        if mark in text:
            text = quoted.sub(left, text)
    text = without_tokens(text)
    for secret in secrets:
        if secret not in text:
            continue
        if len(secret) < _LONG:  # it may be a part of any word, and is masked where it is a whole
            text = re.sub(rf"(?<!{_LETTER}){re.escape(secret)}(?!{_LETTER})", "…", text)
        else:
            text = text.replace(secret, masked(secret))
    return text


def _complete(logger: WrappedLogger, level: str, entry: EventDict) -> EventDict:
    """Add what all entries have, in the order in which people read them.

    In place of several of structlog's processors, the time by ``datetime``, and a sort afterwards:
    with these, a line took a sixth longer.
    """
    return {
        "timestamp": _now(),
        "level": level,
        "event": entry.pop("event"),
        **merge_contextvars(logger, level, entry),
        "pid": os.getpid(),  # one of several workers, or one of those before it
    }


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_date_and_time(seconds)}.{nanoseconds // 1000:06}Z"


@lru_cache(maxsize=1)
def _date_and_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _escape(_logger: WrappedLogger, _method: str, entry: EventDict) -> EventDict:
    """Show characters that would do something to a terminal, instead of sending them there."""
    for name, value in entry.items():
        if isinstance(value, str) and not value.isprintable():
            entry[name] = "".join(
                each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in value
            )
    return entry


def _render_json(_logger: WrappedLogger, _level: str, entry: EventDict) -> str:
    return _to_json(entry)
