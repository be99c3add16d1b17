"""A map keyed by texts or lists of ids that finds every key that is a prefix of a given one."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K", str, "array[int]")
V = TypeVar("V")


class PrefixMap(Generic[K, V]):
    """Keeps its keys sorted: finding one among ten thousand takes a few binary searches. A key may have many values."""

    __slots__ = ("_keys", "_values")

    def __init__(self) -> None:
        self._keys: list[K] = []
        self._values: list[list[V]] = []  # parallel to the keys; each list in insertion order

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: K, value: V) -> None:
        at = bisect_left(self._keys, key)
        if at == len(self._keys) or self._keys[at] != key:
            self._keys.insert(at, key)
            self._values.insert(at, [])
        self._values[at].append(value)

    def remove(self, key: K, value: V) -> None:
        at = bisect_left(self._keys, key)
        self._values[at].remove(value)
        if not self._values[at]:
            del self._keys[at], self._values[at]

    def values(self, key: K) -> list[V]:
        """The values of exactly this key."""
        at = bisect_left(self._keys, key)
        return self._values[at] if at < len(self._keys) and self._keys[at] == key else []

    def prefixes_of(self, whole: K) -> Iterator[tuple[K, V]]:
        """Every key that is a prefix of `whole`, with each of its values; longest key first.

        Take the last key that does not sort after `whole`. Either it is a prefix of `whole`, or every prefix that is
        left is also a prefix of what the two share. In both cases, cut `whole` to the shared part and repeat.
        """
        while at := bisect_right(self._keys, whole):
            key = self._keys[at - 1]
            shared = _shared_length(key, whole)
            if shared == len(key):
                for value in self._values[at - 1]:
                    yield key, value
                if not shared:
                    return
                shared -= 1  # only shorter keys are left
            whole = whole[:shared]


def _shared_length(one: K, other: K) -> int:
    """The length of the longest common prefix."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
