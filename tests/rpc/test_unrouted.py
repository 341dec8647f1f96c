"""Requests that are refused for their path, method or headers, whatever their body is."""

import asyncio
import struct

import grpc
import httpx
import pytest
from pyqwest import HTTPVersion, SyncClient, SyncHTTPTransport

from server.gen.listings.v1.orders_pb import UpdateOrderPaymentRequest
from tests.support import exchange
from tests.support.bare_grpc import grpc_failure
from tests.support.callers import PATH, json_client, json_failure
from tests.support.orders import Orders
from tests.support.raw import connected, rest
from tests.support.requests import UNARY, Protocol
from tests.support.service import Service

GETS = [protocol for protocol in UNARY if protocol.is_get]


def explanation(response: httpx.Response) -> str:
    """Return the text of an answer that no client may take for a Connect error."""
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    return response.text.removesuffix("\n")


def test_grpc_needs_http_2(running: Service, orders: Orders) -> None:
    """gRPC sends its status in trailers, which the server does not support over HTTP/1.1."""
    order_id = orders.add()
    request = UpdateOrderPaymentRequest(order_id=order_id, payment_status="paid").to_binary()
    with json_client(running.base_url, 1) as http:
        response = http.post(
            PATH,
            content=struct.pack(">BI", 0, len(request)) + request,
            headers={"content-type": "application/grpc"},
        )
    assert response.status_code == 505
    assert "HTTP/2" in explanation(response)
    assert orders.row(order_id)["payment_status"] == "pending"


class TestRejectedRequests:
    """Requests that connectrpc by itself answers without a message."""

    unknown = "/listings.v1.OrderService/Nope", "/listings.v1.Nope/UpdateOrderPayment", "/"

    @pytest.mark.parametrize("path", unknown)
    def test_unknown_method(self, http: httpx.Client, path: str) -> None:
        response = http.post(path, content=b"{}")
        assert response.status_code == 404
        assert explanation(response) == f"{path} is not a method of this server"

    @pytest.mark.parametrize("path", unknown[:2])
    def test_unknown_method_over_grpc(self, channel: grpc.Channel, path: str) -> None:
        assert grpc_failure(channel, b"", path) == (
            "UNIMPLEMENTED",
            f"{path} is not a method of this server",
        )

    def test_http_method(self, http: httpx.Client) -> None:
        response = http.get(PATH)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert "use POST" in explanation(response)

    @pytest.mark.parametrize("content_type", ["text/plain", "application/xml", ""])
    def test_content_type(self, http: httpx.Client, content_type: str) -> None:
        response = http.post(PATH, content=b"{}", headers={"content-type": content_type})
        assert response.status_code == 415
        assert "application/json" in explanation(response)

    @pytest.mark.parametrize("codec", ["json", "proto"])
    @pytest.mark.parametrize("parameter", ["", "; charset=utf-8"])
    def test_a_stream_as_unary(self, http: httpx.Client, codec: str, parameter: str) -> None:
        given = f"application/{codec}{parameter}"
        for path in ("/listings.v1.OrderService/WatchOrderPayments",):
            response = http.post(path, content=b"{}", headers={"content-type": given})
            assert response.status_code == 415
            expected = f"this method streams; use application/connect+{codec} in place of {given}"
            assert explanation(response) == expected

    def test_grpc_codec(self, http: httpx.Client) -> None:
        headers = {"content-type": "application/grpc-web+thrift"}
        response = http.post(PATH, content=b"", headers=headers)
        assert response.headers["grpc-status"] == "12"
        assert "thrift" in response.headers["grpc-message"]

    def test_a_malformed_grpc_timeout(self, running: Service) -> None:
        client = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP2))
        headers = {"content-type": "application/grpc", "te": "trailers", "grpc-timeout": "soon"}
        response = client.post(running.base_url + PATH, headers=headers, content=b"")
        assert response.headers["grpc-status"] == "3"
        assert "soon" in response.headers["grpc-message"]

    def test_liveness(self, http: httpx.Client) -> None:
        assert http.get("/livez").text == "ok\n"

    def test_a_header_that_is_not_ascii(self, http: httpx.Client) -> None:
        response = http.post(PATH, content=b"{}", headers=[(b"x-name", b"\xff\xfe")])
        assert response.status_code == 400
        assert json_failure(response).code == "invalid_argument"

    @pytest.mark.parametrize("path", ["/listings.v1.OrderService/Nope", PATH])
    def test_a_header_that_is_not_ascii_over_grpc(self, running: Service, path: str) -> None:
        """The answer has a gRPC status. From HTTP 400 alone, a gRPC client reports UNKNOWN."""
        client = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP2))
        headers = {"content-type": "application/grpc", "te": "trailers", "x-name": "\u00ff"}
        response = client.post(running.base_url + path, headers=headers, content=b"")
        assert response.status == 200
        assert response.headers["content-type"] == "application/grpc"
        assert response.headers["grpc-status"] == "3"
        assert response.headers["grpc-message"] == "a header is not ASCII text"

    def test_a_header_that_is_not_ascii_over_grpc_web(self, http: httpx.Client) -> None:
        headers = [
            (b"content-type", b"application/grpc-web+proto"),
            (b"x-name", b"\xff"),
        ]
        response = http.post(PATH, content=b"", headers=headers)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/grpc-web+proto"
        assert response.headers["grpc-status"] == "3"

    @pytest.mark.parametrize("kind", ["application/grpc", "application/grpc-web"])
    def test_a_content_type_that_is_not_ascii(self, running: Service, kind: str) -> None:
        """The answer has the content type of the protocol, not that of the request."""
        client = SyncClient(SyncHTTPTransport(http_version=HTTPVersion.HTTP2))
        headers = {"content-type": f"{kind}+pr\u00f6to", "te": "trailers"}
        response = client.post(running.base_url + PATH, headers=headers, content=b"")
        assert response.status == 200
        assert response.headers["content-type"] == kind
        status = response.headers.get("grpc-status") or response.trailers.get("grpc-status")
        assert status == "3"

    @pytest.mark.parametrize("message", [b"%ff", b"%ed%a0%80", b"\xff", b"%7B%ff%7D"])
    @pytest.mark.parametrize("protocol", GETS, ids=lambda protocol: protocol.name)
    def test_a_query_that_is_not_utf_8(
        self, running: Service, protocol: Protocol, message: bytes
    ) -> None:
        request = protocol.get("listings.v1.OrderService/GetOrder", {})
        request = request._replace(target=request.target + b"&message=" + message)

        assert asyncio.run(exchange.send(running, [request])) == ["invalid_argument"]

    @pytest.mark.parametrize(
        ("target", "status"),
        [
            (b"?\xff", 400),
            (b"?", 400),
            (b"*", 400),
            (b"livez", 400),
            (b"http://localhost/livez", 200),
            (b"http://localhost", 200),
            (b"http://localhost/nowhere?\xff", 400),
        ],
    )
    def test_a_target_that_is_not_a_path(
        self, running: Service, target: bytes, status: int
    ) -> None:
        with connected(running.port) as connection:
            connection.sendall(
                b"GET %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % target
            )

            assert rest(connection).startswith(b"HTTP/1.1 %d " % status)

    @pytest.mark.parametrize("verb", [b"GET", b"HEAD", b"POST", b"CONNECT"])
    @pytest.mark.parametrize("path", [b"/\xc3\xa9", b"/nowhere"])
    def test_an_unrouted_path_by_any_method(
        self, running: Service, verb: bytes, path: bytes
    ) -> None:
        with connected(running.port) as connection:
            connection.sendall(b"%s %s HTTP/1.1\r\nhost: localhost\r\n" % (verb, path))
            connection.sendall(b"content-type: application/grpc-web\r\nconnection: close\r\n\r\n")

            assert rest(connection).startswith(b"HTTP/1.1 ")
        assert running.logged(level="error") == []
