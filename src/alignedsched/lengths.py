"""Geometric length classes, and how many requests and tokens fall in each: four classes to an octave."""

from __future__ import annotations

from collections.abc import Iterator


def length_class(length: int) -> int:
    """The class of a length: lengths of one class differ by less than a quarter. O(1)."""
    shift = max(0, length.bit_length() - 3)
    return (shift << 2) + (length >> shift)


class Histogram:
    """Counts and tokens by class. Adding and removing are O(1)."""

    __slots__ = ("_classes", "count", "tokens")

    def __init__(self) -> None:
        self._classes: dict[int, tuple[int, int]] = {}  # class -> (count, tokens); no empty ones
        self.count = 0
        self.tokens = 0

    def add(self, length: int, sign: int = 1) -> None:
        """One more request of a length, or with ``sign`` -1 one less."""
        index = length_class(length)
        count, tokens = self._classes.get(index, (0, 0))
        if count + sign:
            self._classes[index] = (count + sign, tokens + sign * length)
        else:
            del self._classes[index]
        self.count += sign
        self.tokens += sign * length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(count, tokens) of the classes that are not empty, by ascending length. O(classes)."""
        return (self._classes[index] for index in sorted(self._classes))
