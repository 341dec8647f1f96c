"""FrameBoundaries: whether what has arrived ends within a frame or a header list."""

from hypothesis import given
from hypothesis import strategies as st

from server.http.h2_frames import FrameBoundaries
from tests.support.http2 import ACK, CONTINUATION, DATA, END_HEADERS, HEADERS, PING, SETTINGS
from tests.support.raw import PREFACE, frame

BLOCK = bytes(300)

# Each is complete, and is one unit.
UNITS = st.sampled_from(
    [
        frame(SETTINGS, ACK),
        frame(PING, payload=bytes(8)),
        frame(HEADERS, END_HEADERS, 1, BLOCK),
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        frame(HEADERS, 0, 1, b"")
        + frame(CONTINUATION, 0, 1, BLOCK)
        + frame(CONTINUATION, END_HEADERS, 1),
        frame(DATA, 0, 1, bytes(70_000)),
        frame(DATA, 0, 1),
        frame(0xFF, 0xFF, 2**31 - 1, BLOCK),
    ]
)


@given(st.lists(UNITS, max_size=6), st.data())
def test_a_unit_is_incomplete_until_its_last_byte(units: list[bytes], data: st.DataObject) -> None:
    """However the bytes are distributed over reads."""
    sent = [PREFACE, *units]
    ends = [sum(map(len, sent[: number + 1])) for number in range(len(sent))]
    total = b"".join(sent)
    cuts = data.draw(st.sets(st.integers(1, len(total)), max_size=20)) | {len(total)}
    boundaries = FrameBoundaries()
    at = 0
    for cut in sorted(cuts):
        unit = boundaries.receive(total[at:cut])
        at = cut
        assert unit == (None if cut in ends else sum(end < cut for end in ends))
