"""How the forward lane renders all answers of one form to one kind of request, worked out once from one of them.

The stages are given one head with blanks for the values that differ; where the blanks come out, the values of each later
answer are filled in.
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
    """What the answers of one form to requests like ``case``'s have in common.

    Args:
        road: The stages.
        leading: The leading request that brought one of these answers.
        form: The form of its head.
        head: The head of its request.
        case: What that request was judged to be.
        decision: What the buckets decided on it.
        reuse_s: How old these answers may be when the cache reuses them (``Like.reuse_s``).
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
        """None: each answer has to be looked at by itself."""
        shape = form.shape
        self.telling = shape.has_any(TELLING)
        """Whether the answers may tell of GitLab's own limits."""
        self.meta = b"x-gitlab-meta" in shape.place
        self.looks: list[tuple[int, bytes]] = []
        """Which of the values may change on their way down: their positions, and the names of their fields."""
        self.named = form.place.get(b"x-request-id", -1)
        """The position of GitLab's own request id among the values; -1: it has none."""
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
        """``values`` as they go down to the client."""
        passed = list(values)
        for at, name in self.looks:
            passed[at] = self._looked_at(name, passed[at])
        return tuple(passed)

    def octets(
        self, values: Values, told: bytes, limits: bytes, request_id: str, wall: Callable[[], float], whole: bytes
    ) -> bytes:
        """An answer as it goes over the wire.

        Args:
            values: What ``passed`` returned.
            told: Its ``Cache-Status``, as a header line.
            limits: The header lines about the limits.
            request_id: The gateway's own id of the request.
            wall: Gives Unix seconds, for an answer without a date of its own.
            whole: The body.
        """
        dated = b"" if self._dated else date_line(wall())
        own = (told, limits, request_id.encode("ascii"), dated, whole)
        return self._template % (self._pick(values) + own)
