"""How many connections each worker has, for the others to see: numbers in memory that all of them map.

What a worker publishes of itself is in a slot that it alone writes to (or its supervisor, once it is dead), one whole
number at a time; so there is nothing to lock, and no worker that could be asked and not answer.
"""

from __future__ import annotations

import mmap
import os

_SLOTS = 1024
"""More than are taken at one time: by a few groups (of ``config.worker_checks.MOST_WORKERS`` at most) with successive ids.
If two workers shared a slot, after hundreds of failed reloads, the next connection would put it right."""
_NUMBERS = 2
"""In each slot: how many connections are open, plus one, or 0 where nobody accepts; how many were ever accepted there."""
_FEW = 8
_BYTES = 8 * _NUMBERS * _SLOTS


class ConnectionCounts:
    """The counts of all workers of a run.

    Args:
        file: The descriptor of a file that every process inherits, empty at first.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        if not os.fstat(file).st_size:
            os.ftruncate(file, _BYTES)
        self._numbers = memoryview(mmap.mmap(file, _BYTES)).cast("q")

    def leave(self, worker_id: int) -> None:
        """Worker ``worker_id`` no longer accepts."""
        self._numbers[worker_id % _SLOTS * _NUMBERS] = 0

    def for_worker(self, worker_id: int, group: range) -> WorkerCounts:
        """The counts as worker ``worker_id`` sees them; ``group``: the ids of all workers of its group."""
        return WorkerCounts(self._numbers, _at(worker_id), tuple(_at(other) for other in group if other != worker_id))


class WorkerCounts:
    """One worker's own numbers, with its view of the others of its group, if there are any."""

    def __init__(self, numbers: memoryview, own: int, others: tuple[int, ...]) -> None:
        self._numbers = numbers
        self._own = own
        self._others = others
        self._open = False
        self._count = 0
        self.capacity = 0
        """How many connections the worker may have; 0: any number."""

    def join(self) -> None:
        """This worker accepts connections from now on."""
        self._open = True
        self.tell(self._count)

    def tell(self, count: int) -> None:
        """Tell the others how many connections are open here."""
        self._count = count
        if self._open:
            self._numbers[self._own] = count + 1

    def accepted(self) -> None:
        """Count one more accepted connection."""
        self._numbers[self._own + 1] += 1

    def leave(self) -> None:
        """This worker accepts no more connections."""
        self._open = False
        self._numbers[self._own] = 0

    @property
    def is_busier(self) -> bool:
        """Whether another worker that accepts has fewer connections, by at least two and an eighth of its own: less than
        that comes and goes. Or by one, where this worker is full: a further connection would be closed at once."""
        numbers, own = self._numbers, self._count
        if 0 < self.capacity <= own:
            return any(0 < numbers[other] <= own for other in self._others)
        return any(0 < numbers[other] < own - numbers[other] // _FEW for other in self._others)

    @property
    def accepted_by_others(self) -> int:
        """How many connections the other workers have ever accepted. If that has changed, one has accepted since."""
        return sum(self._numbers[other + 1] for other in self._others)


def _at(worker_id: int) -> int:
    return worker_id % _SLOTS * _NUMBERS
