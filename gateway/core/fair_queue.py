"""Who waits, in which order: lines of callers, served in turn, higher classes more often. No clock, no I/O.

Each class of priority has a share of the turns (smooth weighted round robin, as NGINX's upstreams), within a class each
caller has one turn after the other, and each caller's own requests keep their order. So nobody waits for ever: whoever is
in the queue is served within a number of turns that does not depend on how many more requests come in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Generic, TypeVar

from .access import Priority

T = TypeVar("T")

SHARES = {Priority.CRITICAL: 16, Priority.INTERACTIVE: 4, Priority.BACKGROUND: 1}
"""Of 21 turns, while every class waits."""
_HIGHEST_FIRST = (Priority.CRITICAL, Priority.INTERACTIVE, Priority.BACKGROUND)


class _Lane(Generic[T]):
    """The callers of one class, in turn."""

    __slots__ = ("credit", "lines")

    def __init__(self) -> None:
        self.credit = 0
        self.lines: OrderedDict[str, deque[T]] = OrderedDict()


class FairQueue(Generic[T]):
    """At most ``bound`` items, at most ``per_caller`` of one caller."""

    def __init__(self, *, bound: int, per_caller: int) -> None:
        self._bound = bound
        self._per_caller = per_caller
        self._lanes: dict[Priority, _Lane[T]] = {priority: _Lane() for priority in _HIGHEST_FIRST}
        self.waiting = 0
        """As ``len``, without the call: every request asks."""
        self._credits: dict[Priority, int] = {}
        """As they were before the latest ``pop``."""

    def __len__(self) -> int:
        return self.waiting

    def push(self, caller: str, priority: Priority, item: T) -> T | None:
        """Stand in line. What comes back has no place: ``item`` itself, or the last of a lower class."""
        lane = self._lanes[priority]
        line = lane.lines.get(caller)
        if line is not None and len(line) >= self._per_caller:
            return item
        shed: T | None = None
        if self.waiting >= self._bound:
            shed = self._shed_below(priority)
            if shed is None:
                return item
        if line is None:
            line = lane.lines[caller] = deque()
        line.append(item)
        self.waiting += 1
        return shed

    def push_front(self, caller: str, priority: Priority, item: T) -> None:
        """What ``pop`` gave last goes back to where it was: the turn did not count. Never refused: it had a place."""
        lane = self._lanes[priority]
        line = lane.lines.get(caller)
        if line is None:
            line = lane.lines[caller] = deque()
        line.appendleft(item)
        lane.lines.move_to_end(caller, last=False)
        for each, credit in self._credits.items():
            self._lanes[each].credit = credit
        self.waiting += 1

    def pop(self, among: Collection[Priority] = _HIGHEST_FIRST) -> T | None:
        """The next one of the classes ``among``; None when nobody of them waits."""
        waiting = [priority for priority in _HIGHEST_FIRST if priority in among and self._lanes[priority].lines]
        if not waiting:
            return None
        self._credits = {priority: lane.credit for priority, lane in self._lanes.items()}
        for priority in waiting:
            self._lanes[priority].credit += SHARES[priority]
        chosen = max(waiting, key=self._credit)
        lane = self._lanes[chosen]
        lane.credit -= sum([SHARES[priority] for priority in waiting])
        caller, line = next(iter(lane.lines.items()))
        item = line.popleft()
        if line:
            lane.lines.move_to_end(caller)
        else:
            del lane.lines[caller]
            if not lane.lines:
                lane.credit = 0
        self.waiting -= 1
        return item

    def discard(self, caller: str, priority: Priority, item: T) -> bool:
        """Leave the queue. False: was not in it."""
        lane = self._lanes[priority]
        line = lane.lines.get(caller)
        if line is None or item not in line:
            return False
        line.remove(item)
        self.waiting -= 1
        if not line:
            del lane.lines[caller]
        return True

    def _credit(self, priority: Priority) -> int:
        return self._lanes[priority].credit

    def _shed_below(self, priority: Priority) -> T | None:
        """The last request of the longest line of the lowest class below ``priority``."""
        for lower in reversed(_HIGHEST_FIRST[_HIGHEST_FIRST.index(priority) + 1 :]):
            lines = self._lanes[lower].lines
            if lines:
                caller = max(lines, key=lambda name: len(lines[name]))
                shed = lines[caller].pop()
                if not lines[caller]:
                    del lines[caller]
                self.waiting -= 1
                return shed
        return None
