"""What the forward lane makes of all answers of one form to one kind of request: found out of the first of them.

The stages are asked once, about a head with blanks in it; where the blanks come out, the values of each later one go in.
"""

from __future__ import annotations

from collections.abc import Callable

from .cache import Cast, Leading
from .core.head_form import Blanks, HeadForm, Values
from .core.http_date import date_line
from .core.limits import Decision
from .core.messages import RequestHead
from .core.pacing import TELLING
from .core.response_headers import LOOKED_AT
from .errand import Case
from .road import Road


class Likeness:
    """Of the answers to requests like ``case``'s.

    Args:
        road: Its stages.
        leading: To the first such answer.
        form: Its head's.
        head: The request's.
        case: What that came to.
        decision: Of the buckets.
        reuse_s: What the cache found out about them (``Like.reuse_s``).
    """

    __slots__ = ("_dated", "_looked_at", "_pick", "_template", "cast", "looks", "meta", "named", "reuse_s", "telling")

    def __init__(
        self,
        road: Road,
        leading: Leading,
        form: HeadForm,
        head: RequestHead,
        case: Case,
        decision: Decision | None,
        reuse_s: float,
    ) -> None:
        self.reuse_s = reuse_s
        self.cast: Cast | None = None
        """None: each answer is to be looked at by itself."""
        shape = form.shape
        self.telling = shape.has_any(TELLING)
        """They speak of GitLab's own limits."""
        self.meta = b"x-gitlab-meta" in shape.place
        self.looks: list[tuple[int, bytes]] = []
        """Which of the values do not go down as they came, and their names."""
        self.named = form.place.get(b"x-request-id", -1)
        """Where among the values GitLab's own id of the request stands."""
        blanks = Blanks(form)
        down = road.passing.downward(blanks.head, head, case.admitted)
        beside = road.dialect.beside(decision, case.principal, down)
        if beside is None or down.shape is None or b"cache-status" in shape.place:
            return
        try:
            self._template, self._pick = blanks.template(beside[0])
            self.cast = leading.cast(blanks, down)
        except ValueError:
            return
        self.looks = [(at, name) for at, name in enumerate(form.names) if name in LOOKED_AT]
        self._looked_at = road.passing.looked_at(head, case.admitted)
        self._dated = b"date" in down.shape.place
        self._template = b"HTTP/1.1 200 OK\r\n%b%%b%%bX-Gateway-Request-Id: %%b\r\n%%b\r\n%%b" % self._template

    def passed(self, values: Values) -> Values:
        """The values as they go down."""
        passed = list(values)
        for at, name in self.looks:
            passed[at] = self._looked_at(name, passed[at])
        return tuple(passed)

    def octets(
        self, values: Values, told: bytes, limits: bytes, request_id: str, wall: Callable[[], float], whole: bytes
    ) -> bytes:
        """An answer as it goes over the wire.

        Args:
            values: As ``passed``.
            told: What is said of it in ``Cache-Status``, as a line.
            limits: Those about the limits.
            request_id: The request's.
            wall: Unix seconds, where the answer bears no date of its own.
            whole: The body.
        """
        dated = b"" if self._dated else date_line(wall())
        own = (told, limits, request_id.encode("ascii"), dated, whole)
        return self._template % (self._pick(values) + own)
