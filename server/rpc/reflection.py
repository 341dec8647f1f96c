"""gRPC server reflection, v1 and v1alpha: grpcurl and the like need no proto file.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from collections.abc import Callable
from typing import Any, Final

from connectrpc.server import ConnectASGIApplication
from connectrpc_grpcreflect import (
    ServerReflectionAlphaASGIApplication,
    ServerReflectionAlphaService,
    ServerReflectionASGIApplication,
    ServerReflectionService,
)

from server.gen.google.rpc import error_details_pb, status_pb
from server.gen.grpc_health.v1 import health_pb
from server.gen.listings.v1 import orders_pb

# The service describes their imports and itself, too. No method has the messages of google.rpc:
# they are the details of errors, which a client can print only if it has their description.
_DESCRIBED: Final = (
    orders_pb.desc(),
    health_pb.desc(),
    error_details_pb.desc(),
    status_pb.desc(),
)


def reflection_services() -> list[tuple[Callable[..., ConnectASGIApplication[Any]], object]]:
    """Return each version's class of ASGI application, and the service that it takes."""
    return [
        (ServerReflectionASGIApplication, ServerReflectionService(*_DESCRIBED)),
        (ServerReflectionAlphaASGIApplication, ServerReflectionAlphaService(*_DESCRIBED)),
    ]
