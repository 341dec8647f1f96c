"""Which protocol a request speaks."""

from server.rpc.protocols import GRPC, GRPC_WEB, content_type_of, protocol_of


def test_of_several_content_types_the_first_counts() -> None:
    """So it does for all that reads it; else a check could be passed by for another protocol."""
    headers = [
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"content-type", b"application/grpc-web"),
    ]
    assert protocol_of(content_type_of(headers)) == GRPC
    assert protocol_of(content_type_of(headers[::-1])) == GRPC_WEB
    assert content_type_of([]) == ""
