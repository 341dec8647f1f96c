"""Positions in the history, as watchers get them."""

import pytest

from persistence.errors import InvalidPosition
from persistence.positions import Position, Snapshot


@pytest.mark.parametrize(
    "position",
    [
        Position(Snapshot(1, 1, ())),
        Position(Snapshot(5, 9, (5, 7))),
        Position(Snapshot(5, 9, (5, 7)), Snapshot(2**62, 2**62, ()), 2**63 - 1),
    ],
)
def test_a_position_survives_formatting_and_parsing(position: Position) -> None:
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text", ["", "*", "a" * 20_000, "MTow", "MDowOg", "NTo5Ojcs", "NTo5OjksOQ"]
)
def test_other_texts_are_invalid_positions(text: str) -> None:
    with pytest.raises(InvalidPosition):
        Position.parse(text)
