"""Origins of web pages: what is understood, and what is refused with what to write instead."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.origins import Origins


@pytest.mark.parametrize(
    "entry",
    [
        "https://shop.example",
        "http://localhost:5173",
        "https://xn--bcher-kva.example:8443",
        "http://10.0.0.1",
        "http://[::1]:5173",
    ],
)
def test_one_origin(entry: str) -> None:
    origins = Origins([entry])
    assert entry in origins
    for other in (f"{entry}0", f"{entry}.evil", f"{entry}/", f"a{entry}", entry[:-1], "null", "*"):
        assert other not in origins


LABELS = st.lists(st.from_regex(r"[a-z0-9_-]{1,5}", fullmatch=True), max_size=3)


@given(labels=LABELS, more=st.sampled_from(["", ".", "evil-", "evil/", "evil#.", "\n"]))
def test_subdomains(labels: list[str], more: str) -> None:
    """One label or more, and nothing else."""
    host = ".".join([*labels, f"{more}shop.example"])
    is_below = bool(labels) and not more
    assert (f"https://{host}" in Origins(["https://*.shop.example"])) is is_below
    assert (f"http://{host}:81" in Origins(["http://*.shop.example:81"])) is is_below
    for origin in (f"http://{host}", f"https://{host}:81", f"https://{host}.evil"):
        assert origin not in Origins(["https://*.shop.example"])


def test_all_and_none() -> None:
    assert "https://shop.example" in Origins(["*"])
    assert "https://shop.example" not in Origins([])
    assert (bool(Origins(["*"])), bool(Origins([]))) == (True, False)
    with pytest.raises(ValueError, match="expected it alone"):
        Origins(["*", "https://shop.example"])


@pytest.mark.parametrize(
    ("entry", "right"),
    [
        ("https://shop.example/", "https://shop.example"),
        ("https://shop.example/app?a#b", "https://shop.example"),
        ("https://shop.example:443", "https://shop.example"),
        ("http://shop.example:080", "http://shop.example"),
        ("https://shop.example:", "https://shop.example"),
        ("https://Shop.Example:8443", "https://shop.example:8443"),
        ("HTTPS://*.Shop.example", "https://*.shop.example"),
        ("https://\tshop.example", "https://shop.example"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
    ],
)
def test_another_spelling_is_refused_with_the_right_one(entry: str, right: str) -> None:
    with pytest.raises(ValueError, match=f"^expected {re.escape(right)} in place of "):
        Origins(["https://a.example", entry])
    Origins([right])


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "shop.example",
        "*.shop.example",
        "https://",
        "https://*",
        "https://*.",
        "https://*shop.example",
        "https://a.*.shop.example",
        "https://*.*.shop.example",
        "https://*.10.0.0.1",
        "https://127.1",
        "https://b\u00fccher.example",
        "https://a.example https://b.example",
        "https://shop.example:port",
        "https://shop.example:70000",
        "http://localhost:*",
        "http://[fe80::1%25eth0]",
        "http://[::1",
        "ftp://shop.example",
    ],
)
def test_what_is_no_origin_is_refused_with_an_example(entry: str) -> None:
    with pytest.raises(
        ValueError, match=r"https://\*\.host, in ASCII and separated by commas"
    ) as no:
        Origins([entry])
    assert str(no.value).endswith(f"got {entry!r}")


def test_null_and_passwords() -> None:
    with pytest.raises(ValueError, match="of any site"):
        Origins(["null"])
    with pytest.raises(ValueError, match="without user names") as caught:
        Origins(["https://u:hunter2@shop.example"])
    assert "hunter2" not in str(caught.value)
