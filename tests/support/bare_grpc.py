"""gRPC calls whose message is any bytes."""

import grpc
import pytest

from tests.support.callers import PATH


def grpc_failure(channel: grpc.Channel, body: bytes, path: str = PATH) -> tuple[str, str]:
    """Make a call that fails, and return its code and message."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(body, timeout=20)
    return caught.value.code().name, caught.value.details()
