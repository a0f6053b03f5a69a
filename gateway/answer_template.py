"""How the forward lane renders all answers of one form to one kind of request, worked out once from one of them.

The stages are given one head with placeholders for the values that differ; where the placeholders come out, the values of
each later answer are filled in.
"""

from __future__ import annotations

from collections.abc import Callable

from .cache import FormTemplate, Leader
from .core.head_form import HeadForm, HeadPlaceholders, Values
from .core.http_date import date_line
from .core.limits import Decision
from .core.messages import RequestHead
from .core.pacing import PACE_FIELDS
from .core.response_headers import URL_FIELDS
from .stages import Stages
from .upstream_call import AuthorisedRequest


class AnswerTemplate:
    """What the answers of one form to requests like ``authorised``'s have in common.

    Args:
        stages: The road's stages.
        leader: The leading request that brought one of these answers.
        form: The form of its head.
        head: The head of its request.
        authorised: What that request came to.
        decision: What the buckets decided on it.
        reuse_s: How old these answers may be when the cache reuses them (``CacheProfile.reuse_s``).
    """

    __slots__ = (
        "_has_date",
        "_pick",
        "_rewrite_url",
        "_template",
        "form_template",
        "has_meta",
        "has_pace",
        "request_id_at",
        "reuse_s",
        "rewritable",
    )

    def __init__(
        self,
        stages: Stages,
        leader: Leader,
        form: HeadForm,
        head: RequestHead,
        authorised: AuthorisedRequest,
        decision: Decision | None,
        reuse_s: float,
    ) -> None:
        self.reuse_s = reuse_s
        self.form_template: FormTemplate | None = None
        """None: each answer has to be looked at by itself."""
        shape = form.shape
        self.has_pace = shape.has_any(PACE_FIELDS)
        """Whether the answers may tell of GitLab's own limits."""
        self.has_meta = b"x-gitlab-meta" in shape.place
        self.rewritable: list[tuple[int, bytes]] = []
        """Which of the values may change on their way down: their positions, and the names of their fields."""
        self.request_id_at = form.place.get(b"x-request-id", -1)
        """The position of GitLab's own request id among the values; -1: it has none."""
        placeholders = HeadPlaceholders(form)
        down = stages.header_rules.response_head(placeholders.head, head, authorised.admitted)
        merged_parts = stages.dialect.merged_parts(decision, authorised.principal, down)
        if merged_parts is None or down.shape is None or b"cache-status" in shape.place:
            return
        try:
            self._template, self._pick = placeholders.template(merged_parts[0])
            self.form_template = leader.form_template(placeholders, down)
        except ValueError:
            return
        self.rewritable = [(at, name) for at, name in enumerate(form.names) if name in URL_FIELDS]
        self._rewrite_url = stages.header_rules.field_rewriter(head, authorised.admitted)
        self._has_date = b"date" in down.shape.place
        self._template = b"HTTP/1.1 200 OK\r\n%b%%b%%bX-Gateway-Request-Id: %%b\r\n%%b\r\n%%b" % self._template

    def rewrite(self, values: Values) -> Values:
        """``values`` as they go down to the client."""
        rewritten = list(values)
        for at, name in self.rewritable:
            rewritten[at] = self._rewrite_url(name, rewritten[at])
        return tuple(rewritten)

    def render(
        self, values: Values, cache_status: bytes, limits: bytes, request_id: str, wall: Callable[[], float], whole: bytes
    ) -> bytes:
        """An answer as it goes over the wire.

        Args:
            values: What ``rewrite`` returned.
            cache_status: Its ``Cache-Status``, as a header line.
            limits: The header lines about the limits.
            request_id: The gateway's own id of the request.
            wall: Gives Unix seconds, for an answer without a date of its own.
            whole: The body.
        """
        date = b"" if self._has_date else date_line(wall())
        own = (cache_status, limits, request_id.encode("ascii"), date, whole)
        return self._template % (self._pick(values) + own)
