"""Values that are invalid, extreme, or likely to be parsed wrongly."""

from typing import Final

LONGEST_CHARACTER: Final = "\U0001f4a9"
"""A character of four bytes in UTF-8."""

STORABLE: Final = {
    "sql": "'; DROP TABLE orders; --",
    "sql-wildcards": r"%_\%' OR '1'='1",
    "sql-dollars": "$1 $$ :name ? %s %(name)s",
    "sql-identifiers": '"orders"."id"/*',
    "escapes": r"\x00 \u0000 \' \\",
    "format": "{0} {x!r} %n%s ${jndi:ldap://x} {{7*7}}",
    "lines": "first\r\nsecond\n\tthird",
    "controls": "\x01\x08\x1b[2J\x7f\x85",
    "right-to-left": "\u202etxt.exe\u202c \u200f\u061c\u2067",
    "combining": "e\u0301 a\u0308\u0323 \u1100\u1161\u11a8" + "\u0300" * 20,
    "not-normalised": "\u212b \ufb01 \u2126 \u00c5",
    "invisible": "\u200b\u200d\ufeff\u2060\u00ad",
    "noncharacters": "\ufffe\uffff\ufdd0\U0010ffff",
    "replacement": "\ufffd",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "spaces": " \u00a0 \u3000 ",
    "json": '{"orderId": 1}',
    "html": "<script>alert(1)</script>",
}
"""Valid texts of up to 50 characters for a payment's fields, by their peculiarity."""

TEXTS: Final = (
    *STORABLE.values(),
    "",
    "\0",
    "paid\0",
    "paid",
    "\0" * 255,
    LONGEST_CHARACTER * 50,
    LONGEST_CHARACTER * 51,
    LONGEST_CHARACTER * 255,
    LONGEST_CHARACTER * 256,
    "a" * 5_000,
    "%s%n" * 1_000,
)
"""Those, and invalid texts."""

SURROGATE_BYTES: Final = b"\xed\xa0\x80"
"""The surrogate U+D800, encoded as if it were a character: invalid UTF-8."""

INTEGERS: Final = sorted(
    {
        sign * 2**power + off
        for sign in (-1, 1)
        for power in (0, 31, 32, 53, 63, 64)
        for off in (-1, 0, 1)
    }
)
"""The limits of the integer types, and the numbers next to them."""

NUMBERS: Final = (
    *map(str, INTEGERS),
    "1e400",
    "-1e400",
    "1e-400",
    "1.5",
    "-0",
    "-0.0",
    "1e999999999",
    "1" * 4_400,
    "0." + "9" * 4_400,
    "NaN",
    "Infinity",
    "01",
    "0x1",
    "+1",
    "1_0",
    "\u0663",
    "true",
    "null",
)
"""JSON for a field that takes a number, valid or not."""

TIMES: Final = (
    "0001-01-01T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "9999-12-31T23:59:59.999999999-23:59",
    "10000-01-01T00:00:00Z",
    "2026-02-30T00:00:00Z",
    "2026-01-01T00:00:60Z",
    "2026-01-01T00:00:00+99:99",
    "2026-01-01",
    "-2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00.0000000001Z",
    "now",
)
"""Timestamps in JSON, valid or not."""

DURATIONS: Final = (
    "0s",
    "-0s",
    "-1s",
    "0.000000001s",
    "-0.999999999s",
    "0.0000000001s",
    "315360000s",
    "315360001s",
    "315576000000s",
    "315576000001s",
    "1e9s",
    "9" * 400 + "s",
    "s",
    "1",
    "1h",
    "\ud800s",
)
"""Durations in JSON, valid or not."""

HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"x-request-id", b""),
    (b"x-request-id", b"a b"),
    (b"x-request-id", b"'; DROP TABLE orders; --"),
    (b"x-request-id", b"x" * 128),
    (b"x-request-id", b"x" * 129),
    (b"x-request-id", b"\xff\xfe"),
    (b"x-request-id", "\u202e".encode()),
    (b"x-request-id", b"%0d%0ax: y"),
    (b"grpc-timeout", b"99999999H"),
    (b"grpc-timeout", b"0n"),
    (b"grpc-timeout", b"1n"),
    (b"grpc-timeout", b"-1S"),
    (b"grpc-timeout", b"999999999S"),
    (b"grpc-timeout", b"S"),
    (b"grpc-timeout", b"1_0S"),
    (b"connect-timeout-ms", b"0"),
    (b"connect-timeout-ms", b"1"),
    (b"connect-timeout-ms", b"9999999999"),
    (b"connect-timeout-ms", b"10000000000"),
    (b"connect-timeout-ms", b"-1"),
    (b"connect-timeout-ms", b"1e3"),
    (b"connect-protocol-version", b"2"),
    (b"connect-protocol-version", b"x" * 8_000),
    (b"grpc-encoding", b"gzip"),
    (b"grpc-encoding", b"br"),
    (b"grpc-encoding", b"identity"),
    (b"grpc-encoding", b"x" * 8_000),
    (b"grpc-accept-encoding", b"gzip,,;,identity;q=0"),
    (b"content-encoding", b"gzip"),
    (b"content-encoding", b"gzip, gzip"),
    (b"content-encoding", b"deflate"),
    (b"connect-content-encoding", b"gzip"),
    (b"connect-content-encoding", b"snappy"),
    (b"accept-encoding", b"gzip"),
    (b"accept-encoding", b"gzip;q=0, *"),
    (b"connect-accept-encoding", b"gzip"),
    (b"accept", b"\x80"),
    (b"content-type", b"application/json"),
    (b"content-type", b"application/grpc"),
    (b"content-type", b"application/grpc+json"),
    (b"content-type", b"application/grpc-web-text"),
    (b"content-type", b"application/grpc-web+thrift"),
    (b"content-type", b"application/connect+json"),
    (b"content-type", b"application/json; charset=utf-16"),
    (b"content-type", b"application/" + b"x" * 8_000),
    (b"content-type", b"\xc3\xa9"),
    (b"content-type", b""),
    (b"user-agent", b"() { :;}; /bin/true"),
    (b"traceparent", b"00-" + b"f" * 32 + b"-" + b"f" * 16 + b"-ff"),
    (b"traceparent", b"00-" + b"0" * 200),
    (b"tracestate", b"=,=,=" * 500),
    (b"cookie", b"a=" + b"b" * 4_000),
    (b"host", b"a:99999999999"),
    (b"host", b"[::1"),
    (b"x-forwarded-for", b"127.0.0.1'"),
    (b"x-n" + b"a" * 200, b"v"),
    (b"expect", b"100-continue"),
    (b"te", b"trailers, deflate;q=0.5"),
    (b"upgrade", b"websocket"),
)
"""Headers to add to a request, which may have one of the same name."""

VERBS: Final = (b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"CONNECT", b"TRACE", b"GET", b"post", b"!")
"""HTTP methods that no RPC is called by, and invalid ones."""

TARGETS: Final = (
    b"/",
    b"*",
    b"/livez",
    b"/readyz?\xff",
    b"/metrics?name[]=%ff",
    b"/listings.v1.OrderService",
    b"/listings.v1.OrderService/",
    b"/listings.v1.OrderService/Nothing",
    b"/listings.v1.OrderService/../GetOrder",
    b"/grpc.health.v1.Health/%43heck",
    b"/%00%0d%0ax:%20y",
    b"/%ff%ed%a0%80",
    b"/\xc3\xa9",
    b"//test/" + b"x" * 8_000,
    b"http://test/livez",
)
"""Request targets to use in place of a method's path."""
