"""How many connections each worker has, for the others to see: numbers in memory that all of them map.

What a worker says of itself stands in a place that it alone writes to (its supervisor, once it is dead), a whole number at
a time; so there is nothing to lock, and nobody who could be asked and not answer.
"""

from __future__ import annotations

import mmap
import os

_PLACES = 1024
"""More than sit at one time: of a few crews (``config.worker_checks.MOST_WORKERS``), one after the other. Two in one, after
hundreds of reloads that failed, would be put right by the next connection."""
_NUMBERS = 2
"""Of each place: how many connections, plus one, or 0 where nobody accepts; how many were ever accepted there."""
_FEW = 8
_BYTES = 8 * _NUMBERS * _PLACES


class ConnectionCounts:
    """Of all workers of a run.

    Args:
        file: A descriptor of one that every process inherited, empty at first.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        if not os.fstat(file).st_size:
            os.ftruncate(file, _BYTES)
        self._numbers = memoryview(mmap.mmap(file, _BYTES)).cast("q")

    def leave(self, seat: int) -> None:
        """Nobody accepts there any more."""
        self._numbers[seat % _PLACES * _NUMBERS] = 0

    def place(self, seat: int, crew: range) -> Place:
        """For who sits at ``seat``, among the seats of its ``crew``."""
        return Place(self._numbers, _at(seat), tuple(_at(other) for other in crew if other != seat))


class Place:
    """One worker's own, with its view of the others of its crew: none, where it is the only one."""

    def __init__(self, numbers: memoryview, own: int, others: tuple[int, ...]) -> None:
        self._numbers = numbers
        self._own = own
        self._others = others
        self._open = False
        self._count = 0
        self.room = 0
        """For so many connections; 0: for any number."""

    def join(self) -> None:
        """Connections are accepted here from now on."""
        self._open = True
        self.tell(self._count)

    def tell(self, count: int) -> None:
        """So many connections are open here."""
        self._count = count
        if self._open:
            self._numbers[self._own] = count + 1

    def accepted(self) -> None:
        """One more."""
        self._numbers[self._own + 1] += 1

    def leave(self) -> None:
        """No more are accepted here."""
        self._open = False
        self._numbers[self._own] = 0

    @property
    def ahead(self) -> bool:
        """Another one that accepts has fewer, by two at least and by an eighth: less than that comes and goes. Or by one,
        where there is no room here: it would be closed at once."""
        numbers, own = self._numbers, self._count
        if 0 < self.room <= own:
            return any(0 < numbers[other] <= own for other in self._others)
        return any(0 < numbers[other] < own - numbers[other] // _FEW for other in self._others)

    @property
    def accepted_by_others(self) -> int:
        """Ever. Another number than before: somebody has accepted since."""
        return sum(self._numbers[other + 1] for other in self._others)


def _at(seat: int) -> int:
    return seat % _PLACES * _NUMBERS
