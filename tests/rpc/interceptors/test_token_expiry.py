"""TokenExpiryInterceptor ends a stream when its token expires, even one that never waits."""

import time
from collections.abc import AsyncGenerator

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from server.auth.principal import Principal, current_principal
from server.rpc.interceptors.base import Context
from server.rpc.interceptors.token_expiry import TokenExpiryInterceptor

pytestmark = pytest.mark.anyio


class Numbers:
    """A stream of the numbers below ``last``, without a wait between them."""

    def __init__(self, last: float) -> None:
        self.last = last
        self.closed = False

    async def __call__(self, _request: object, _ctx: object) -> AsyncGenerator[int]:
        number = 0
        try:
            while number < self.last:
                yield number
                number += 1
        finally:
            self.closed = True


def intercepted(numbers: Numbers, leeway: float = 0) -> AsyncGenerator[int]:
    ctx: Context = None  # type: ignore[assignment] # passed on unread
    stream = TokenExpiryInterceptor(leeway).intercept_server_stream(numbers, None, ctx)
    assert isinstance(stream, AsyncGenerator)
    return stream


def token_valid_until(moment: float) -> None:
    current_principal.set(Principal("somebody", frozenset(), None, moment))


@pytest.mark.parametrize("leeway", [0, 0.1])
async def test_a_stream_that_never_waits_ends_with_its_token(leeway: float) -> None:
    numbers = Numbers(last=float("inf"))
    end = time.time() + 0.1
    token_valid_until(end)
    with pytest.raises(ConnectError) as caught:
        async for _ in intercepted(numbers, leeway):
            assert time.time() < end + leeway + 5
    assert caught.value.code is Code.UNAUTHENTICATED
    assert time.time() >= end + leeway
    assert numbers.closed


async def test_a_stream_that_ends_before_its_token_is_complete() -> None:
    token_valid_until(time.time() + 60)
    assert [number async for number in intercepted(Numbers(last=3))] == [0, 1, 2]


async def test_a_stream_without_a_token_is_complete() -> None:
    current_principal.set(None)
    assert [number async for number in intercepted(Numbers(last=3))] == [0, 1, 2]
