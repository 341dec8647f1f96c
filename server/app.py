"""The composition root: the parts of the service are wired together here, and nowhere else."""

from connectrpc.codec import proto_binary_codec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from persistence.database import Database
from persistence.orders import OrderRepository
from server.codec import StrictJSONCodec
from server.errors import ErrorInterceptor
from server.gen.listings.v1.orders_connect import OrderServiceASGIApplication
from server.orders import OrderHandler
from server.refusals import ExplainRefusals
from server.validation import ValidationInterceptor


def create_app(database: Database, *, max_request_bytes: int) -> Starlette:
    """Return the service as one ASGI application, on a ``database`` that its caller opens.

    Requests of more than ``max_request_bytes``, counted after decompression, are refused.
    """
    orders = OrderServiceASGIApplication(
        OrderHandler(OrderRepository(database)),
        interceptors=[ErrorInterceptor(), ValidationInterceptor()],
        codecs=[proto_binary_codec(), StrictJSONCodec()],
        read_max_bytes=max_request_bytes,
    )
    return Starlette(
        routes=[
            Mount(orders.path, app=ExplainRefusals(orders)),
            Route("/livez", live),
            Mount("/", app=ExplainRefusals(Response(status_code=404))),
        ]
    )


async def live(_request: Request) -> PlainTextResponse:
    """Say that the process answers, whatever the state of its database."""
    return PlainTextResponse("ok\n")
