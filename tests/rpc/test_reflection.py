"""Server reflection: clients without the proto file get the schema from the server."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.support import exchange, service
from tests.support.callers import PATH
from tests.support.orders import Orders
from tests.support.requests import STREAMING
from tests.support.service import Service

SERVICES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "listings.v1.OrderService",
}
VERSIONS = ["v1", "v1alpha"]


def method(channel: grpc.Channel, version: str) -> grpc.StreamStreamMultiCallable:
    """Return ServerReflectionInfo; the messages of both versions are the same on the wire."""
    return channel.stream_stream(
        f"/{path(version)}",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )


def path(version: str) -> str:
    return f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"


def ask(
    channel: grpc.Channel, version: str, **question: str
) -> reflection_pb2.ServerReflectionResponse:
    request = reflection_pb2.ServerReflectionRequest(**question)
    (answer,) = method(channel, version)(iter([request]), timeout=10)
    return answer


def test_a_client_without_the_proto_makes_a_call(channel: grpc.Channel, orders: Orders) -> None:
    order_id = orders.add()
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == SERVICES
    pool = descriptor_pool.DescriptorPool(database)
    update = pool.FindServiceByName("listings.v1.OrderService").FindMethodByName(
        "UpdateOrderPayment"
    )
    request = message_factory.GetMessageClass(update.input_type)()
    json_format.ParseDict({"orderId": order_id, "paymentStatus": "paid"}, request)
    answer = message_factory.GetMessageClass(update.output_type).FromString(
        channel.unary_unary(PATH)(request.SerializeToString(), timeout=10)
    )
    assert answer.order.payment_status == "paid"
    for name in SERVICES:
        assert pool.FindServiceByName(name).methods


def test_a_client_without_the_proto_prints_the_details_of_an_error(channel: grpc.Channel) -> None:
    """As grpcurl does: it asks for the message types that the details name."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PATH)(b"", timeout=10)
    (packed,) = (
        value for name, value in caught.value.trailing_metadata() if name.endswith("-details-bin")
    )
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    pool.FindMessageTypeByName("google.rpc.BadRequest")
    status_type = pool.FindMessageTypeByName("google.rpc.Status")
    status = message_factory.GetMessageClass(status_type).FromString(packed)
    shown = json_format.MessageToDict(status, descriptor_pool=pool)
    assert shown["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    (detail,) = shown["details"]
    assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert all(each["reason"] for each in detail["fieldViolations"])


@pytest.mark.parametrize("name", ["ErrorInfo", "RetryInfo", "BadRequest"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_details_that_errors_have(channel: grpc.Channel, version: str, name: str) -> None:
    found = ask(channel, version, file_containing_symbol=f"google.rpc.{name}")
    assert found.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("version", VERSIONS)
def test_services_and_files(channel: grpc.Channel, version: str) -> None:
    listed = ask(channel, version, list_services="").list_services_response.service
    assert {each.name for each in listed} == SERVICES
    found = ask(channel, version, file_containing_symbol="listings.v1.OrderService")
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(each)
        for each in found.file_descriptor_response.file_descriptor_proto
    ]
    names = {file.name for file in files}
    assert {"listings/v1/orders.proto", "buf/validate/validate.proto"} <= names
    assert {imported for file in files for imported in file.dependency} <= names


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_symbol(channel: grpc.Channel, version: str) -> None:
    answer = ask(channel, version, file_containing_symbol="listings.v1.Nothing")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


_JSON = next(each for each in STREAMING if each.is_json)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("begin", [b"", b'{"fileContainingExtension":'])
def test_nesting_is_checked_before_decoding(running: Service, version: str, begin: bytes) -> None:
    """Decoding it would overflow the stack and crash the process."""
    request = _JSON.request(path(version), begin + b"[" * 20_000)

    assert asyncio.run(exchange.send(running, [request])) == ["invalid_argument"]
    assert running.process.poll() is None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_malformed_request_after_the_deadline_is_not_logged(
    running: Service, version: str
) -> None:
    """asyncio logs an exception that is never retrieved."""
    requests = [_JSON.request(path(version), b"{", (b"connect-timeout-ms", b"0"))] * 20

    assert set(asyncio.run(exchange.send(running, requests))) == {"deadline_exceeded"}
    assert running.logged(logger="asyncio") == []


def test_an_idle_reflection_stream_does_not_delay_shutdown(
    database_url: str, tmp_path: Path
) -> None:
    with service.running(database_url, tmp_path / "log") as running:
        silent = threading.Event()

        def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            silent.wait()

        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            answers = method(channel, "v1")(questions(), timeout=60)
            assert next(answers).list_services_response.service
            running.process.terminate()
            assert running.process.wait(10) == 0
            assert list(answers) == [], "it ends well"
            silent.set()
