"""Translation of database URLs for asyncpg."""

import pytest

from persistence.dsn import asyncpg_dsn, parameters
from persistence.errors import InvalidDatabaseURL


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h:1/db", "user=u&password=p&dbname=db&host=h&port=1"),
        ("postgresql://u:a#b%40c@h/db", "user=u&password=a%23b%40c&dbname=db&host=h"),
        ("postgresql:///db?host=/run/a%20b", "dbname=db&host=%2Frun%2Fa+b"),
        ("postgresql://[::1]:1,h/db", "dbname=db&host=%5B%3A%3A1%5D%2Ch&port=1%2C5432"),
        (
            "postgres://a,b/?target_session_attrs=read-write&connect_timeout=3&keepalives=1",
            "host=a%2Cb&port=5432%2C5432&target_session_attrs=read-write",
        ),
        ("postgresql://h/?channel_binding=prefer&gssencmode=disable", "host=h"),
    ],
)
def test_a_url_is_translated_for_asyncpg(url: str, expected: str) -> None:
    assert sorted(asyncpg_dsn(url).partition("?")[2].split("&")) == sorted(expected.split("&"))


@pytest.mark.parametrize("demand", ["channel_binding=require", "require_auth=scram-sha-256"])
def test_options_that_asyncpg_lacks_are_refused(demand: str) -> None:
    with pytest.raises(InvalidDatabaseURL, match=demand):
        asyncpg_dsn(f"postgresql://h/db?{demand}")


def test_an_error_does_not_quote_the_url() -> None:
    with pytest.raises(InvalidDatabaseURL) as caught:
        parameters("postgresql://u:hun%zzter2@h/db")
    assert "ter2" not in str(caught.value)
