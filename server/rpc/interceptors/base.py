"""Types of connectrpc's interceptors: of the next one in the chain, or of the method itself."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from connectrpc.request import RequestContext

Request = TypeVar("Request")
Response = TypeVar("Response")

Context: TypeAlias = RequestContext[Any, Any]

UnaryNext: TypeAlias = Callable[[Request, Context], Awaitable[Response]]
"""Answers a request."""

StreamNext: TypeAlias = Callable[[Request, Context], AsyncGenerator[Response]]
"""Answers a request with a stream; for a method that streams both ways, many of them."""
