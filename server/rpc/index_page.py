"""The page at ``/``: what this is, and where to go on."""

from functools import cache
from importlib import metadata

from starlette.requests import Request
from starlette.responses import PlainTextResponse

_TEXT = """\
Listings Service {version}: payments of a shop's orders, over gRPC, gRPC-Web and Connect

  POST /listings.v1.OrderService/GetOrder
      One of the methods: with content-type application/json, its body is {{"orderId": "1"}}
  grpcurl -plaintext HOST:PORT list
      The services, by gRPC server reflection

  GET /livez      whether the process answers
  GET /readyz     whether it should be sent calls, and if not, why
  GET /metrics    metrics for Prometheus

The project's README.md says more; its docs/ describe the methods, their errors and the settings.
"""


async def index_page(_request: Request) -> PlainTextResponse:
    """Return the page, as plain text, the same for every caller."""
    return PlainTextResponse(_text())


@cache
def _text() -> str:
    return _TEXT.format(version=metadata.version("listings"))
