"""What arrives over TLS, record by record: a client's ``recv()`` never joins two of them."""

import socket
from collections.abc import Callable

from tests.support.certificates import HOST, Issued, Trust


def received(
    ca: Issued, port: int, protocol: str, sent: bytes, ends: Callable[[bytes], bool]
) -> list[bytes]:
    """Send ``sent``, and return the records of application data up to the one that ``ends``.

    ``protocol`` is the one that ALPN offers. It blocks.
    """
    with (
        socket.create_connection((HOST, port), timeout=10) as plain,
        Trust(ca).context(protocol).wrap_socket(plain, server_hostname=HOST) as client,
    ):
        client.sendall(sent)
        records = [client.recv(65_536)]
        while not ends(records[-1]):
            assert records[-1], "the connection ended before the response did"
            records.append(client.recv(65_536))
    return records
