"""Who waits, and in which order: lines of callers are served in turn, higher classes more often. No clock, no I/O.

Each priority class has a share of the turns (smooth weighted round robin, as in NGINX's upstreams), within a class the
callers take turns, and each caller's own requests keep their order. So nobody waits for ever: a queued request is served
within a number of turns that does not depend on how many more requests come in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Generic, TypeVar

from .access import Priority

T = TypeVar("T")

SHARES = {Priority.CRITICAL: 16, Priority.INTERACTIVE: 4, Priority.BACKGROUND: 1}
"""Turns of each class out of 21, while every class has requests waiting."""
_HIGHEST_FIRST = (Priority.CRITICAL, Priority.INTERACTIVE, Priority.BACKGROUND)


class _ClassQueue(Generic[T]):
    """The callers of one class, in the order of their turns."""

    __slots__ = ("credit", "lines")

    def __init__(self) -> None:
        self.credit = 0
        self.lines: OrderedDict[str, deque[T]] = OrderedDict()


class FairQueue(Generic[T]):
    """A queue of at most ``bound`` items, at most ``per_caller`` of them from one caller."""

    def __init__(self, *, bound: int, per_caller: int) -> None:
        self._bound = bound
        self._per_caller = per_caller
        self._queues: dict[Priority, _ClassQueue[T]] = {priority: _ClassQueue() for priority in _HIGHEST_FIRST}
        self.waiting = 0
        """The same as ``len``, without the call: every request reads it."""
        self._credits: dict[Priority, int] = {}
        """The credits as they were before the latest ``pop``."""

    def __len__(self) -> int:
        return self.waiting

    def push(self, caller: str, priority: Priority, item: T) -> T | None:
        """Queue ``item``. Returns the item that has no place, if any: ``item`` itself, or the last of a lower class."""
        queue = self._queues[priority]
        line = queue.lines.get(caller)
        if line is not None and len(line) >= self._per_caller:
            return item
        shed: T | None = None
        if self.waiting >= self._bound:
            shed = self._shed_below(priority)
            if shed is None:
                return item
        if line is None:
            line = queue.lines[caller] = deque()
        line.append(item)
        self.waiting += 1
        return shed

    def push_front(self, caller: str, priority: Priority, item: T) -> None:
        """Put what ``pop`` gave last back where it was, as if it had had no turn. Never refused, because it had a place."""
        queue = self._queues[priority]
        line = queue.lines.get(caller)
        if line is None:
            line = queue.lines[caller] = deque()
        line.appendleft(item)
        queue.lines.move_to_end(caller, last=False)
        for each, credit in self._credits.items():
            self._queues[each].credit = credit
        self.waiting += 1

    def pop(self, among: Collection[Priority] = _HIGHEST_FIRST) -> T | None:
        """The next item of the classes ``among``; None if nothing of theirs waits."""
        waiting = [priority for priority in _HIGHEST_FIRST if priority in among and self._queues[priority].lines]
        if not waiting:
            return None
        self._credits = {priority: queue.credit for priority, queue in self._queues.items()}
        for priority in waiting:
            self._queues[priority].credit += SHARES[priority]
        chosen = max(waiting, key=self._credit)
        queue = self._queues[chosen]
        queue.credit -= sum([SHARES[priority] for priority in waiting])
        caller, line = next(iter(queue.lines.items()))
        item = line.popleft()
        if line:
            queue.lines.move_to_end(caller)
        else:
            del queue.lines[caller]
            if not queue.lines:
                queue.credit = 0
        self.waiting -= 1
        return item

    def discard(self, caller: str, priority: Priority, item: T) -> bool:
        """Remove ``item`` from the queue. False if it was not in it."""
        queue = self._queues[priority]
        line = queue.lines.get(caller)
        if line is None or item not in line:
            return False
        line.remove(item)
        self.waiting -= 1
        if not line:
            del queue.lines[caller]
        return True

    def _credit(self, priority: Priority) -> int:
        return self._queues[priority].credit

    def _shed_below(self, priority: Priority) -> T | None:
        """Remove the last request of the longest line in the lowest waiting class below ``priority``."""
        for lower in reversed(_HIGHEST_FIRST[_HIGHEST_FIRST.index(priority) + 1 :]):
            lines = self._queues[lower].lines
            if lines:
                caller = max(lines, key=lambda name: len(lines[name]))
                shed = lines[caller].pop()
                if not lines[caller]:
                    del lines[caller]
                self.waiting -= 1
                return shed
        return None
