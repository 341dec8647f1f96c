"""Log entries for people: one short line each, on a terminal in colour.

An RPC is ``17:01:12 UpdateOrderPayment grpc ok 2.3 ms order=1 replayed``. Other entries are the
time, the level unless it is info, the message and the fields as ``key=value``.
"""

import time
from typing import Final

import structlog
from structlog.typing import EventDict, WrappedLogger

# Shown at log level debug only; JSON always has them.
_DETAILS: Final = ("logger", "request_id", "caller", "subject", "trace_id", "pid")


class ConsoleRenderer:
    """Renders an entry as text, as the last processor of structlog."""

    def __init__(self, *, colors: bool, details: bool) -> None:
        """``details`` adds the fields that tell one call, caller and process from another."""
        self._details = details
        self._styles = structlog.dev.ConsoleRenderer.get_default_column_styles(colors)
        self._levels = structlog.dev.ConsoleRenderer.get_default_level_styles(colors)

    def __call__(self, _logger: WrappedLogger, _method: str, entry: EventDict) -> str:
        """Return the line of ``entry``, and below it the traceback, if it has one."""
        level, exception = entry.pop("level"), entry.pop("exception", None)
        del entry["timestamp"]  # in UTC; people read the local time
        if not self._details:
            for name in _DETAILS:
                entry.pop(name, None)
        parts = [self._styled(self._styles.timestamp, time.strftime("%H:%M:%S"))]
        if level != "info":
            parts.append(self._styled(self._levels.get(level, ""), level))
        event = entry.pop("event")
        if event == "rpc" and "method" in entry:
            parts += self._rpc(entry)
        else:
            parts.append(self._styled(self._styles.bright, _escaped(str(event))))
        parts += [self._pair(name, value) for name, value in entry.items()]
        line = " ".join(parts)
        return f"{line}\n{_escaped(exception)}" if exception else line

    def _rpc(self, entry: EventDict) -> list[str]:
        """Take the fields of an RPC out of ``entry``, and return them in the order shown."""
        method, duration = entry.pop("method"), entry.pop("duration_ms", None)
        if duration is not None and not self._details:
            method = method.rpartition("/")[2]  # else it is a path that leads to no method
        code = entry.pop("code")
        parts = [
            self._styled(self._styles.bright, _escaped(method)),
            entry.pop("protocol"),
            self._styled(self._levels["info" if code == "ok" else "warning"], code),
        ]
        if duration is not None:
            parts.append(_duration(duration))
        if (order_id := entry.pop("order_id", None)) is not None:
            parts.append(self._pair("order", order_id))
        if outcome := entry.pop("outcome", None):
            parts.append(outcome)
        return parts

    def _pair(self, name: str, value: object) -> str:
        key = self._styled(self._styles.kv_key, name)
        return f"{key}={self._styled(self._styles.kv_value, quoted(value))}"

    def _styled(self, style: str, text: str) -> str:
        return f"{style}{text}{self._styles.reset}"


def _duration(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds / 1000:.1f} s"


def quoted(value: object) -> str:
    """Return ``value`` as one word: in quotes where it is none, without control characters."""
    if not isinstance(value, str):
        return _escaped(repr(value))
    text = _escaped(value).replace("\n", r"\n")
    return f'"{text}"' if not text or set(text) & set(" =\"'") else text


def _escaped(text: str) -> str:
    """Return ``text`` with escape sequences in place of characters that control a terminal."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text
    )
