"""Disjoint sets, which only grow together."""

from collections.abc import Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T", bound=Hashable)


class DisjointSets(Generic[_T]):
    """Sets of which each item is in one; an item that is met first is in a set of its own."""

    def __init__(self) -> None:
        self._parents: dict[_T, _T] = {}

    def __contains__(self, item: _T) -> bool:
        """Return whether ``item`` has been met."""
        return item in self._parents

    def find(self, item: _T) -> _T:
        """Return the item that stands for the set of ``item``."""
        parent = self._parents.setdefault(item, item)
        while parent != item:
            # Shortens the way for the next one.
            self._parents[item] = self._parents[parent]
            item, parent = parent, self._parents[parent]
        return item

    def join(self, first: _T, second: _T) -> None:
        """Make the sets of the two one."""
        self._parents[self.find(first)] = self.find(second)
