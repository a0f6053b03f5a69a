"""The forward lane: another request of a kind that went up before, sent to GitLab and answered without a coroutine.

    plan ────── the stages up to the permit came to the same for its like       otherwise the road
    buckets ─── as the limits are now; at once, or with one round trip          refused: the road
    credential, pace ───────── at hand; free                                    otherwise the road, from here
    cache ───── nothing is stored, or it must be validated; nobody else asks;   otherwise the road, from here
                told at once, or with a round trip, and one for the lease
    GitLab ──── a connection is there; a whole 200 comes                        otherwise the road, from here
    answer ──── the same octets as the road's, the same line in the audit

What has been done by then stays done: the road goes on from there (``asking.Begun``) and takes from no bucket twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from .asking import Asker, Asking
from .cache import Cast, Found, Leading
from .cache.mould import Told
from .core.answer_shape import Shape, shaped
from .core.catalogue import Access
from .core.errors import Rejection
from .core.exchange import Exchange, Kin
from .core.head_form import HeadForm
from .core.http_date import date_line
from .core.limits import Decision
from .core.messages import Fields, RequestHead, ResponseHead
from .core.pacing import TELLING
from .core.response_headers import LEAKED
from .core.status import status_line
from .errand import Upward, ascii_of, upward_of
from .likeness import Likeness
from .limit_stage import note
from .planner import Planner
from .plans import Plan, Plans
from .ports import Asked, UpstreamCredential
from .reply import Reply
from .road import Road
from .short_lane import drained_answer

log = logging.getLogger("gateway.pipeline")

# Read for every request; an enum's class looks up its members anew each time.
_READ = Access.READ
_as_line = b": ".join
_KIN_BOUND = 16
_ALIKE_BOUND = 16


class _Nobody:
    """Stands for whoever is asked while nobody is."""

    def cancel(self) -> None:
        return None


_NOBODY = _Nobody()


class ForwardLane:
    """The forward lane beside one road.

    Args:
        road: The road's stages.
        plans: The plans learnt on the road.
        mint_id: Makes a request's id.
        monotonic: Gives seconds, as for ``Exchange.started_at``.
        wall: Gives Unix seconds.
        observe: Hands a finished exchange to telemetry.
    """

    def __init__(
        self,
        road: Road,
        plans: Plans,
        *,
        mint_id: Callable[[], str],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        observe: Callable[[Exchange], None],
    ) -> None:
        self.road = road
        self._plans = plans
        self._planner = Planner(road, plans)
        self._mint_id = mint_id
        self.monotonic = monotonic
        self.wall = wall
        self.observe = observe
        self.walking = 0
        """Requests on the lane."""

    def at_once(self, head: RequestHead, asker: Asker) -> Asking | None:
        """The ``Asking`` that tells ``asker`` the answer; None: the request takes the road, and nothing has been taken."""
        road = self.road
        if road.record.closed:
            return None
        plan = self._plans.find(head) or self._planner.plan(head)
        if plan is None:
            return None
        case = plan.made_of
        if case.operation.access is not _READ:
            return None
        takes = case.kept.takes
        if takes is None or takes.era.over:
            takes = road.dialect.takes_for(
                case.principal, case.operation, case.admitted.target, head.method, case.admitted.client
            )
            if takes.owing:
                return None
            case.kept.takes = takes
        credential = None
        if case.permit.use:
            credential = road.tokens.credential_now(case.permit, case.operation)
            if credential is None:
                return None
        upward = case.kept.upward.get(credential.id if credential is not None else "")
        if upward is None or upward.credential is not credential:
            try:
                upward = upward_of(road, head, case, credential)
            except Rejection:
                return None  # it must not go up, as the road will say
        if upward.reads:
            return None
        decision = road.limits.admit_now(takes, case.principal) if takes else None
        if decision is not None and not decision.allowed:
            return None
        x = plan.facts_of(head, self._mint_id(), self.monotonic())
        forwarding = Forwarding(self, plan, head, upward, asker, x)
        self.walking += 1
        if decision is None and takes:
            forwarding.asked = road.limits.admit_soon(takes, forwarding.decided)
        elif not forwarding.goes_up(decision):
            forwarding.asked = asyncio.get_running_loop().call_soon(asker.told, None, forwarding)
        return forwarding


class Forwarding(msgspec.Struct, eq=False):
    """One request on the lane: ``asking.Asking`` while somebody is asked, ``asking.Begun`` once the road has to go on."""

    _lane: ForwardLane
    plan: Plan
    head: RequestHead
    _upward: Upward
    _asker: Asker
    x: Exchange
    asked: Asked = _NOBODY
    """Who is asked at the moment: the buckets, the cache's store, GitLab; or nobody, and the road is about to be told."""
    decision: Decision | None = None
    """The buckets' decision, which admits the request; None: no limit applies."""
    _leading: Leading | None = None
    conditions: Fields = ()
    """The conditions that it went up with."""
    found: Found | None = None
    """What the cache's store held when the request was about to go up."""
    started_at: float = 0.0
    """When GitLab was asked; 0: it was not."""
    reply: Reply | None = None
    """GitLab's answer, where the road is to deal with it."""
    rejection: Rejection | None = None
    """Why GitLab gave no answer, where the road is to deal with that."""

    # Not the struct's own, which would show what leads to a caller's credential.
    __repr__ = object.__repr__

    @property
    def credential(self) -> UpstreamCredential | None:
        """The credential that it goes up with."""
        return self._upward.credential

    # asking.Asking, asking.Begun

    def leave(self) -> None:
        x = self.x
        if x.aborted:
            return  # counted already, when its answer found the connection closing; the loss is reported only now
        self._end()
        x.status, x.aborted = 499, "client"
        x.kin = None  # it may have been given that of answered requests already
        self._over()

    def drained(self) -> bytes:
        if self.x.aborted:
            return b""
        self._end()
        like, lane = self.plan.made_of, self._lane
        octets = drained_answer(lane.road, self.head, like.operation, like.principal, self.x, lane.wall(), self.decision)
        self._over()
        return octets

    def _end(self) -> None:
        """Break off whatever is under way."""
        if self.reply is not None:
            self.reply.release()
        elif self.rejection is None:
            self.asked.cancel()
        self._abandon()

    def _abandon(self) -> None:
        leading, self._leading = self._leading, None
        if leading is not None:
            self.found = leading.found()
            leading.abandon()

    def _over(self) -> None:
        lane = self._lane
        lane.walking -= 1
        if self.started_at:
            self.x.upstream_s = lane.monotonic() - self.started_at
        lane.observe(self.x)

    def taken_on(self) -> None:
        """The road has taken the request on: it is no longer on the lane."""
        self._lane.walking -= 1

    # The way up

    def decided(self, decision: Decision) -> None:
        """The buckets have answered."""
        if self._asker.is_gone():
            self.leave()
        elif not self._lane.road.limits.heard(decision, self._upward.principal, refusing=False):
            self._lane.walking -= 1
            self._asker.told(None)
        elif not self.goes_up(decision):
            self._asker.told(None, self)

    def goes_up(self, decision: Decision | None) -> bool:
        """Send the request to GitLab, or ask the cache's store first; False: that is for the road."""
        self.decision = decision
        lane, upward = self._lane, self._upward
        cache = lane.road.cache
        try:
            if decision is not None:
                note(decision, self.x)
            credential = upward.credential
            if credential is not None and not lane.road.pacing.is_free(credential.id):
                return False
            leading = cache.lead_now(self.head.target, upward.like, lane.wall)
            if leading is not None:
                return self._sent(leading)
            asked = cache.lead_soon(self.head.target, upward.like, lane.wall, self.led)
            if asked is not None:
                self.asked = asked
                return True
        except Exception:
            log.exception("fault in the forward lane")  # the road has its own way to report it
        self._abandon()
        return False

    def led(self, told: Leading | Found | None) -> None:
        """The cache's store has answered."""
        self.asked = _NOBODY
        leading = None
        if isinstance(told, Found):
            self.found = told
        else:
            leading = self._leading = told
        sent = False
        try:
            if leading is not None and not self._asker.is_gone():
                credential = self._upward.credential
                free = credential is None or self._lane.road.pacing.is_free(credential.id)
                sent = free and self._sent(leading)
        except Exception:
            log.exception("fault in the forward lane")
        if sent:
            return
        self._abandon()
        if self._asker.is_gone():
            self.leave()
        else:
            self._asker.told(None, self)

    def _sent(self, leading: Leading) -> bool:
        lane, x, upward = self._lane, self.x, self._upward
        self._leading = leading
        if upward.credential is not None:
            x.permit_use = upward.credential.id
        self.conditions = leading.conditions
        own = (*leading.conditions, (b"X-Request-Id", x.request_id.encode("ascii")))
        if self.head.correlation:
            own = (*lane.road.passing.correlated(self.head, self.plan.made_of.admitted), *own)
        sent = lane.road.upstream.send_soon(self.head.target, own, upward.repeated, self.answered)
        if sent is None:
            self._abandon()
            return False
        self.asked = sent
        self.started_at = lane.monotonic()
        return True

    # The way down

    def answered(self, answer: Reply | Rejection | None) -> None:
        """GitLab has answered, or there is no answer."""
        octets = None
        try:
            if isinstance(answer, Reply):
                octets = self._octets(answer)
        except Rejection:
            pass  # the road comes to the same, from what GitLab said
        except Exception:
            log.exception("fault in the forward lane")
            answer = None
        if octets is not None and not self._asker.is_gone():
            self.x.bytes_out = len(octets)
            self._over()
            self._asker.told(octets)
            return
        if octets is None:
            self._abandon()
            if isinstance(answer, Reply):
                self.reply = answer
            elif answer is not None:
                self.rejection = answer
        if self._asker.is_gone():
            self.leave()
        else:
            self._asker.told(None, self)

    def _octets(self, reply: Reply) -> bytes | None:
        """The answer as it goes over the wire; None: that is for the road."""
        form = reply.form
        alike, reuse_s = self._upward.alike, self._upward.like.reuse_s
        likeness = alike.get(form) if form is not None else None
        if likeness is not None and likeness.reuse_s != reuse_s:
            likeness = alike.get((form, reuse_s))
        if likeness is not None and likeness.cast is not None:
            octets = self._likewise(likeness, likeness.cast, reply)
            if octets is not None:
                return octets
        leading = self._leading
        head, whole = reply.head, reply.whole
        shape = head.shape or shaped(head)
        if shape.has_any(LEAKED):
            return None  # the road counts the leak when it passes the answer on: once
        if head.status == 304 and self.conditions and leading is not None:
            return self._validated(reply, leading)
        if head.status != 200 or whole is None or leading is None or b"cache-status" in shape.place:
            return None
        road, like = self._lane.road, self.plan.made_of
        down = road.passing.downward(head, self.head, like.admitted)
        told = leading.answered(down, whole)
        if told is None:
            return None
        self._leading = None
        self._heard(head, shape)
        octets = self._rendered(down, told, whole)
        self._note(reply, told)
        if form is not None:
            self._learn(form, leading)
        return octets

    def _heard(self, head: ResponseHead, shape: Shape) -> None:
        """Note what GitLab's answer says besides the answer itself."""
        road, credential = self._lane.road, self._upward.credential
        if credential is not None and shape.has_any(TELLING):
            road.pacing.learn(credential.id, head, self.plan.made_of.operation.name)
        if road.tokens.unchecked and b"x-gitlab-meta" in shape.place:
            road.tokens.recognised()
        place = shape.place.get(b"x-request-id")
        if place is not None:
            self.x.upstream_request_id = ascii_of(head.fields[place][1])

    def _validated(self, reply: Reply, leading: Leading) -> bytes | None:
        """As ``_octets``, of what is stored and GitLab has just confirmed with a 304."""
        lane, x, head = self._lane, self.x, reply.head
        down = lane.road.passing.downward(head, self.head, self.plan.made_of.admitted)
        validated = leading.validated(down)
        if validated is None:
            return None
        self._leading = None
        self._heard(head, head.shape or shaped(head))
        told, outcome = validated
        octets = self._told(told.head, told.whole or b"")
        x.status, x.upstream_status = told.head.status, 304
        x.upstream_first_byte_s = reply.first_byte_s
        x.cache_status, x.cache_reason, x.cache_stored = outcome.status.value, outcome.reason.value, outcome.stored.value
        if not (x.limit_near or x.limit_shadow):
            kin, alike = self._upward.kin, (x.status, x.cache_status, x.cache_reason, x.cache_stored)
            x.kin = kin.get(alike) or _kin(kin, alike)
        return octets

    def _told(self, head: ResponseHead, body: bytes) -> bytes:
        """A stored answer, or a 304 about it, as it goes over the wire."""
        lane, principal = self._lane, self._upward.principal
        dialect = lane.road.dialect
        beside = dialect.beside(self.decision, principal, head)
        if beside is None:
            fields, lines = dialect.merged(self.decision, principal, head.status, head.fields, lane.wall()), b""
        else:
            fields, lines = beside
        told = b"\r\n".join(map(_as_line, fields))
        folded = b"\n" + told.lower()
        return b"%b%b\r\n%bX-Gateway-Request-Id: %b\r\n%b%b\r\n%b" % (
            status_line(head.status),
            told,
            lines,
            self.x.request_id.encode("ascii"),
            b"" if b"\ndate:" in folded else date_line(lane.wall()),
            b"" if b"\ncontent-length:" in folded or head.status == 304 else b"Content-Length: %d\r\n" % len(body),
            body,
        )

    def _likewise(self, likeness: Likeness, cast: Cast, reply: Reply) -> bytes | None:
        """As ``_octets``, of an answer that differs from earlier ones in a few values alone."""
        leading, whole = self._leading, reply.whole
        if leading is None or whole is None:
            return None
        values = likeness.passed(reply.values) if likeness.looks else reply.values
        told = leading.likewise(cast, values, whole)
        if told is None:
            return None
        self._leading = None
        x, upward = self.x, self._upward
        road = self._lane.road
        if likeness.telling and upward.credential is not None:
            road.pacing.learn(upward.credential.id, reply.head, self.plan.made_of.operation.name)
        if likeness.meta and road.tokens.unchecked:
            road.tokens.recognised()
        if likeness.named >= 0:
            x.upstream_request_id = ascii_of(values[likeness.named])
        lines = road.dialect.lines(self.decision, upward.principal)
        octets = likeness.octets(values, told.line, lines, x.request_id, self._lane.wall, whole)
        self._note(reply, told)
        return octets

    def _note(self, reply: Reply, told: Told) -> None:
        """Note what is known of the answer by now."""
        x = self.x
        x.status = x.upstream_status = 200
        x.upstream_first_byte_s = reply.first_byte_s
        x.cache_status, x.cache_reason, x.cache_stored = told.status, told.reason, told.stored
        if not (x.limit_near or x.limit_shadow):
            x.kin = self._upward.kin.get(told) or _kin(self._upward.kin, told)

    def _learn(self, form: HeadForm, leading: Leading) -> None:
        """Learn how to render the answers that will come in the same form."""
        alike, reuse_s = self._upward.alike, self._upward.like.reuse_s
        known = alike.get(form)
        key = form if known is None or known.reuse_s == reuse_s else (form, reuse_s)
        if key not in alike:
            # This may be the only answer of its form: only the second one shows that there are more.
            if len(alike) >= _ALIKE_BOUND:
                alike.clear()
            alike[key] = None
        elif alike[key] is None:
            alike[key] = Likeness(self._lane.road, leading, form, self.head, self.plan.made_of, self.decision, reuse_s)

    def _rendered(self, head: ResponseHead, told: Told, whole: bytes) -> bytes:
        lane, principal = self._lane, self._upward.principal
        dialect = lane.road.dialect
        beside = dialect.beside(self.decision, principal, head)
        if beside is None:
            fields = dialect.merged(self.decision, principal, 200, (*head.fields, told.field), lane.wall())
            told_line = lines = b""
        else:
            (fields, lines), told_line = beside, told.line
        assert head.shape is not None, "the cache asked for it"
        place = head.shape.place
        ending = b"\r\n"
        if b"content-length" not in place:
            ending = b"Content-Length: %d\r\n\r\n" % len(whole)
        if b"date" not in place:
            ending = date_line(lane.wall()) + ending
        return b"HTTP/1.1 200 OK\r\n%b\r\n%b%bX-Gateway-Request-Id: %b\r\n%b%b" % (
            b"\r\n".join(map(_as_line, fields)),
            told_line,
            lines,
            self.x.request_id.encode("ascii"),
            ending,
            whole,
        )


def _kin(known: dict[object, Kin], told: object) -> Kin:
    if len(known) >= _KIN_BOUND:
        known.clear()
    kin = known[told] = Kin()
    return kin
