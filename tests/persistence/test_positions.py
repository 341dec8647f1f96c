"""Positions in the history, as watchers get them."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistence.errors import InvalidPosition
from persistence.positions import ORIGIN, Mark, Position, Snapshot

SIGNED = st.integers(-(2**63), 2**63 - 1)
IDS = st.integers(0, 2**63 - 1)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    edges = st.integers(1, 2_000) | st.integers(1, 2**63 - 1).filter(lambda n: n % 2**32)
    xmin, xmax = sorted((draw(edges), draw(edges)))
    between = st.integers(xmin, xmax - 1) if xmin < xmax else st.nothing()
    in_progress = draw(st.lists(between, unique=True, max_size=9 if xmin < xmax else 0))
    return Snapshot(xmin, xmax, tuple(sorted(in_progress)))


marks = st.builds(Mark, SIGNED, snapshots(), SIGNED)
positions = st.builds(Position, snapshots(), mark=marks) | st.builds(
    Position, snapshots(), snapshots(), IDS, IDS, marks
)


@given(positions)
def test_a_position_survives_formatting_and_parsing(position: Position) -> None:
    text = str(position)
    assert Position.parse(text) == position


def test_a_position_is_short() -> None:
    """Of an idle history, whose transactions have ten digits."""
    mark = Mark(-(2**63), Snapshot(4_000_000_001, 4_000_000_001, ()), 2**63 - 1)
    assert len(str(Position(Snapshot(4_000_000_007, 4_000_000_007, ()), mark=mark))) <= 60


def test_the_position_with_the_most_transactions_can_be_sent_back() -> None:
    """The limit for last_event_id is 50,000 characters."""
    first = 2**62 + 3
    busy = Snapshot(first, first + 500_000, tuple(range(first, first + 500_000, 100)))
    text = str(Position(busy, busy, 2**63 - 1, 2**63 - 1, Mark(0, busy, 0)))
    assert len(text) <= 50_000
    assert Position.parse(text).seen == busy


def of_the_version_before(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("1:1:", Position(Snapshot(1, 1, ()))),
        ("5:9:5,7", Position(Snapshot(5, 9, (5, 7)))),
        (
            f"5:9:5,7 {2**62 + 3}:{2**62 + 3}: {2**63 - 1}",
            Position(Snapshot(5, 9, (5, 7)), Snapshot(2**62 + 3, 2**62 + 3, ()), 2**63 - 1),
        ),
    ],
)
def test_a_position_of_the_version_before(text: str, position: Position) -> None:
    assert Position.parse(of_the_version_before(text)) == position
    assert position.mark is None


# Hashes, and the snapshots 5:9:5,7 and 1:1:.
MARKED = "ffffffffffffffff.1f.5.4.2.0.2.1.0.0"


def test_the_text_of_a_position() -> None:
    expected = Position(Snapshot(5, 9, (5, 7)), mark=Mark(-1, ORIGIN, 0x1F))
    assert Position.parse(MARKED) == expected
    assert str(expected) == MARKED


@pytest.mark.parametrize(("last_refused_id", "end"), [(0, "9"), (0x1F, "9.1f")])
def test_the_text_of_a_position_on_the_way(last_refused_id: int, end: str) -> None:
    """Without refused events, it says nothing of them."""
    mark = Mark(-1, ORIGIN, 0x1F)
    expected = Position(Snapshot(5, 9, (5, 7)), Snapshot(5, 9, ()), 9, last_refused_id, mark)
    assert Position.parse(f"{MARKED}.5.4.0.{end}") == expected
    assert str(expected) == f"{MARKED}.5.4.0.{end}"


def test_a_snapshot_ends_where_postgresql_has_transactions() -> None:
    """The transaction after 2^32 - 1 is 2^32 + 3."""
    snapshot = Snapshot(2**32 - 1, 2**32 + 9, (2**32 - 1, 2**32 + 4))
    ended = snapshot.before(2**32)
    assert ended == Snapshot(2**32 - 1, 2**32 + 1, (2**32 - 1,))
    assert ended.checked() == ended


@pytest.mark.parametrize("last", [3, 7, 2**32 - 1, 2**32 + 3, 2**33 - 1])
def test_a_snapshot_knows_the_transaction_that_it_ends_with(last: int) -> None:
    assert Snapshot(1, 2**40 + 3, ()).before(last + 1).last == last
    assert ORIGIN.last == 0


BROKEN = {
    "hashes alone": "1.2",
    "cut off in a snapshot": MARKED.removesuffix(".0"),
    "with half a way": f"{MARKED}.5",
    "with a way without an id": f"{MARKED}.5.4.0",
    "with more after the way": f"{MARKED}.5.4.0.7.8.9",
    "with an id that is too great": f"{MARKED}.5.4.0.8000000000000000",
    "with an id of a refused event that is too great": f"{MARKED}.5.4.0.7.8000000000000000",
    "with a hash that is too great": f"1{MARKED}",
    "with a snapshot before the first": "1.2.0.4.0.1.0.0",
    "with an end that PostgreSQL takes for none": "1.2.5.fffffffb.0.1.0.0",
    "with equal transactions": "1.2.5.4.2.1.0.1.0.0",
    "with a transaction after its end": "1.2.5.4.1.4.1.0.0",
    "with very many transactions": "1.2.5.4.ffffffff.1.0.0",
    "in upper case": MARKED.upper(),
    "with a sign": f"-{MARKED}",
    "with nothing between": MARKED.replace("1f", ""),
    "with a space": f" {MARKED}",
    "with a line": f"{MARKED}\n",
    "with an underscore": MARKED.replace("1f", "1_f"),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_broken_positions_are_invalid(text: str) -> None:
    with pytest.raises(InvalidPosition):
        Position.parse(text)


@pytest.mark.parametrize(
    "text", ["", "*", "a" * 20_000, "MTow", "MDowOg", "NTo5Ojcs", "NTo5OjksOQ"]
)
def test_other_texts_are_invalid_positions(text: str) -> None:
    with pytest.raises(InvalidPosition):
        Position.parse(text)


@given(st.lists(st.integers(0, 9) | st.integers(0, 2**64 - 1), max_size=14))
def test_any_numbers_are_a_position_or_invalid(numbers: list[int]) -> None:
    text = f"1.2.{'.'.join(f'{each:x}' for each in numbers)}"
    try:
        position = Position.parse(text)
    except InvalidPosition:
        return
    assert str(position) == text
