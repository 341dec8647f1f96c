"""FastAPI with SQLAlchemy's async engine: JSON over HTTP, as in many services.

It is tuned as its users would: uvicorn on uvloop and httptools without an access log,
Core statements instead of the unit of work, whose compiled form SQLAlchemy keeps, one statement in
a transaction of its own, and models of pydantic both ways.
"""

import asyncio
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel
from sqlalchemy import BigInteger, Column, DateTime, MetaData, String, Table, func, text, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.requests import Request
from starlette.responses import JSONResponse

from benchmarks.peers import payments, serving


def prepare(_directory: Path) -> tuple[str, ...]:
    """Return the command; there is nothing to prepare."""
    return sys.executable, "-m", "benchmarks.peers.fastapi_sqlalchemy"


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain U+0000")
    return value


_Short = Annotated[str, Field(min_length=1, max_length=50), AfterValidator(_without_nul)]
_Long = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_without_nul)]
_Int64 = Annotated[int, PlainSerializer(str)]  # as the JSON of protobuf has it
_CAMEL = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class UpdateRequest(BaseModel):
    """``listings.v1.UpdateOrderPaymentRequest``."""

    model_config = _CAMEL

    order_id: Annotated[int, Field(gt=0, lt=2**63)]
    payment_provider: _Short | None = None
    payment_session_id: _Long | None = None
    payment_intent_id: _Long | None = None
    payment_idempotency_key: _Long | None = None
    payment_status: _Short | None = None
    payment_transaction_id: _Long | None = None


class Order(BaseModel):
    """``listings.v1.Order``."""

    model_config = _CAMEL

    id: _Int64
    order_number: str
    buyer_id: _Int64
    storefront_id: _Int64
    status: str
    payment_status: str
    currency: str
    subtotal_amount: _Int64
    shipping_amount: _Int64
    tax_amount: _Int64
    discount_amount: _Int64
    total_amount: _Int64
    created_at: datetime
    updated_at: datetime
    payment_provider: str | None = None
    payment_session_id: str | None = None
    payment_intent_id: str | None = None
    payment_idempotency_key: str | None = None
    payment_transaction_id: str | None = None


class UpdateResponse(BaseModel):
    """``listings.v1.UpdateOrderPaymentResponse``."""

    success: bool
    order: Order


_NUMBERS = ("id", "buyer_id", "storefront_id")


def _type(column: str) -> Any:
    if column in _NUMBERS or column.endswith("_amount"):
        return BigInteger
    return DateTime(timezone=True) if column.endswith("_at") else String


_orders = Table("orders", MetaData(), *(Column(name, _type(name)) for name in Order.model_fields))
_MOVED = func.greatest(
    func.clock_timestamp(), _orders.c.updated_at + text("interval '1 microsecond'")
)


async def _bad_request(_request: Request, error: "RequestValidationError") -> JSONResponse:
    """Answer with 400 as for the other problems; FastAPI's own would be 422."""
    found = [(".".join(map(str, each["loc"][1:])), each["msg"]) for each in error.errors()]
    return JSONResponse({"detail": "; ".join(f"{where}: {what}" for where, what in found)}, 400)


def create_app(engine: AsyncEngine) -> FastAPI:
    """Return the application."""
    app = FastAPI(openapi_url=None, exception_handlers={RequestValidationError: _bad_request})

    @app.post(  # type: ignore[untyped-decorator]
        "/listings.v1.OrderService/UpdateOrderPayment",
        response_model_exclude_none=True,
        response_model_by_alias=True,
    )
    async def update_order_payment(request: UpdateRequest) -> UpdateResponse:
        params = request.model_dump(exclude={"order_id"}, exclude_none=True)
        if problem := payments.problem(request.order_id, params):
            raise HTTPException(400, problem)
        statement = (
            update(_orders)
            .where(_orders.c.id == request.order_id)
            .values(**params, updated_at=_MOVED)
            .returning(*_orders.c)
        )
        try:
            async with engine.begin() as connection:
                row = (await connection.execute(statement)).mappings().one_or_none()
        except IntegrityError:
            raise HTTPException(409, payments.KEY_TAKEN) from None
        if row is None:
            raise HTTPException(404, f"there is no order {request.order_id}")
        return UpdateResponse(success=True, order=Order.model_validate(dict(row)))

    return app


def _engine() -> AsyncEngine:
    parts = urlsplit(os.environ["LISTINGS_DATABASE_URL"])
    url = URL.create(
        "postgresql+asyncpg",
        parts.username,
        parts.password,
        parts.hostname,
        parts.port,
        parts.path.removeprefix("/"),
        dict(parse_qsl(parts.query)),
    )
    size = int(os.environ["LISTINGS_POOL_SIZE"])
    return create_async_engine(url, pool_size=size, max_overflow=0)


async def _serve(port: int, started: serving.Started, stopped: asyncio.Event) -> None:
    engine = _engine()
    config = uvicorn.Config(
        create_app(engine), http="httptools", access_log=False, log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    with serving.reusable_socket(port) as listener:
        listener.listen(config.backlog)
        started()
        serves = asyncio.create_task(server.serve(sockets=[listener]))
        await stopped.wait()
        server.should_exit = True
        await serves
    await engine.dispose()


if __name__ == "__main__":
    serving.run(_serve)
