"""What the pipeline asks of the world: small Protocols and the values that cross them.

Each docstring says what a miss, an outage and concurrency mean. Nothing here does I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from .core.access import Permit, Principal, Priority
from .core.cache_entry import Entry
from .core.catalogue import Operation
from .core.credentials import Claim
from .core.errors import Rejection
from .core.head_form import HeadForm
from .core.key_record import KeyRecord, Replacement
from .core.limits import Decision, Take
from .core.messages import Field, Fields, RequestHead, ResponseHead
from .core.rule_match import PlaceLookup, Resolved
from .core.secret import Secret
from .pending_answer import Handover
from .reply import ClientSide, Reply


class RequestBody(Protocol):
    """The body of the client's request, read piece by piece as it is wanted."""

    content_length: int | None
    """How many octets ``read`` will give in all; None where that is not known beforehand (chunked)."""

    async def read(self) -> bytes:
        """The next octets, neither decompressed nor re-chunked to a fixed size; ``b""`` once, at the end.

        Raises Rejection: REQUEST_TIMEOUT when the client stalls longer than ``body_idle`` or falls behind ``body_rate``,
        BAD_REQUEST on broken framing.
        When the client disconnects, the handler is cancelled instead.
        """
        ...


DRAINED = "drained"
"""The message of a cancellation that ends a request because the gateway shuts down, not because its client left."""


class Downstream(Protocol):
    """One request and the way back to its client. Exactly one of ``respond`` and ``start`` … ``finish`` is used, once."""

    head: RequestHead
    started: bool
    """Whether part of the answer may already have been sent."""
    sent_bytes: int
    received_bytes: int
    """Octets of the request's body, without its framing."""

    @property
    def body(self) -> RequestBody | None: ...

    handover: Handover | None
    """What a lane has already done for the request, for the road to go on from; None: it starts from the beginning."""

    @property
    def plain(self) -> bool:
        """Whether the same octets may come again and would mean the same: HTTP/1.1, no body, no reason to close."""
        ...

    async def respond(self, head: ResponseHead, whole: bytes, *, close: bool = False, lines: bytes = b"") -> None:
        """Send the whole answer at once; ``lines`` (``Name: value`` and CRLF each, no framing fields) follow its fields.

        For HEAD, 204 and 304 ``whole`` is not sent and Content-Length stays as given.
        ``close`` ends the connection after the answer: what the client has sent, or still sends, can't be trusted.
        """
        ...

    async def start(self, head: ResponseHead, *, lines: bytes = b"") -> None:
        """Begin a streamed answer, with ``lines`` as for ``respond``.

        Framing is by the head's Content-Length, else chunked (HTTP/1.0: until close).
        """
        ...

    async def write(self, chunk: bytes) -> None:
        """Send part of the body, with back-pressure."""
        ...

    async def finish(self) -> None:
        """End the answer: its body is complete."""
        ...

    async def switch(self, head: ResponseHead) -> ClientSide:
        """Send a 101 instead of an answer and take over the connection. Raises Rejection where that is impossible."""
        ...

    def abort(self) -> None:
        """Cut the connection so that the client can't mistake what it has received for a whole answer."""
        ...


class Answered(msgspec.Struct, gc=False):
    """How requests of one kind were answered last."""

    form: HeadForm | None = None
    """The form of the last answer's head, where it is known."""


class RepeatedFields(msgspec.Struct, gc=False):
    """The fields that all requests of one kind share: those before and those after the fields of each single request."""

    before: Fields
    behind: Fields
    priority: Priority = Priority.INTERACTIVE
    rendered: tuple[bytes, bytes] | None = None
    """For the adapter alone: ``before`` and ``behind`` as it sends them, left here by the first such request."""
    answered: Answered = msgspec.field(default_factory=Answered)
    """For the adapter alone as well: what it has learnt from the answers."""

    def __repr__(self) -> str:
        return "RepeatedFields()"  # a credential is among them


class UpstreamRequest(msgspec.Struct, frozen=True, gc=False):
    """A request to GitLab. Hop-by-hop fields and credentials are dealt with already; the adapter adds framing fields."""

    method: str
    target: bytes
    own: Fields
    """All fields of the request, or those that ``repeated`` does not hold."""
    content_length: int | None = None
    """Octets of the body; None with a body means chunked."""
    first_byte_timeout_s: float | None = None
    """None: the configured timeout; long polls ask for a longer one."""
    upgrade: bool = False
    caller: str = ""
    """The principal's id: callers take turns where there is not room for all."""
    priority: Priority = Priority.INTERACTIVE
    repeated: RepeatedFields | None = None
    """The fields that other requests have as well; they stand around ``own``."""
    waits: bool = False
    """Whether it may last long, before its answer or within it, without costing GitLab anything meanwhile."""
    on_sent: Callable[[], None] | None = None
    """Called each time that GitLab has been sent the whole request; not where GitLab answered before that."""

    def __repr__(self) -> str:
        return f"UpstreamRequest({self.method})"  # never its fields

    @property
    def fields(self) -> Fields:
        """All fields of the request, those of ``repeated`` included."""
        repeated = self.repeated
        return self.own if repeated is None else (*repeated.before, *self.own, *repeated.behind)


class Cancellable(Protocol):
    """A call to a store or to GitLab that has not been answered yet."""

    def cancel(self) -> None:
        """Stop waiting for the answer. What has not been asked for yet is not taken."""
        ...


ReplyCallback = Callable[[Reply | Rejection | None], None]
"""Called with the outcome: GitLab's answer, the reason why there is none, or None (see ``Upstream.send_soon``)."""


class Admission(Protocol):
    """Counts the requests in progress at GitLab."""

    def request_ended(self, answer: Reply | Rejection | None) -> None:
        """A request is over, with ``answer`` as for ``ReplyCallback``; a cancelled one has None, too."""
        ...


class Upstream(Protocol):
    """GitLab. Streams both ways in bounded memory, follows no redirects, decodes nothing."""

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        """Send one request to GitLab; return when the final head of its answer has come.

        Retries only a body-less GET, HEAD or OPTIONS, once, when a reused connection closed before any octet of an answer.
        An answer may come before the whole body is sent. If that answer is complete, the rest of the body is not read and
        the connection not reused; if it streams, the body goes on being sent until the answer is released.
        Raises Rejection with an ``UPSTREAM_*`` code; cancellation closes the connection.
        """
        ...

    def send_soon(
        self, target: bytes, own: Fields, repeated: RepeatedFields, then: ReplyCallback, admission: Admission | None = None
    ) -> Cancellable | None:
        """As ``send`` for a GET with the fields ``own`` between those of ``repeated``, but without a coroutine: ``then`` is
        called once, later, with what ``send`` would return or raise, or with None where the request may be sent once more.
        Returns None, with nothing sent, where that takes longer: a turn must be waited for, or a connection made.

        ``admission`` hears of it before ``then`` is called. What ``then`` raises is logged.
        """
        ...

    async def close(self) -> None: ...


class BucketStore(Protocol):
    """Buckets of tokens, and of places for requests in progress. The store's clock is the only clock."""

    async def take(self, takes: Sequence[Take], lease: bytes = b"") -> Decision:
        """Take from every bucket or from none, atomically. ``lease`` names the request where a limit is concurrent: its
        places are held until ``release``, or until the store has not heard from this gateway for ``core.limits.LEASE_S``.

        Never raises for an outage: it returns the failure policy's decision, marked ``degraded``.
        """
        ...

    def take_now(self, takes: Sequence[Take], lease: bytes = b"") -> Decision | None:
        """As ``take``, but at once; None, with nothing taken, where that is impossible."""
        ...

    def take_soon(self, takes: Sequence[Take], then: Callable[[Decision], None]) -> Cancellable:
        """As ``take``, without a coroutine and without places: ``then`` is called with the decision, once, later. What
        ``then`` raises is logged and affects nobody else."""
        ...

    def refused_now(self, takes: Sequence[Take]) -> Decision | None:
        """The refusal that ``take`` would return, where that is certain; None otherwise. Nothing is taken."""
        ...

    async def look(self, takes: Sequence[Take]) -> Decision:
        """The present state of the buckets, places included; nothing is taken or written. A decision without states means
        that nothing is known at the moment."""
        ...

    def settle(self, changes: Sequence[Take]) -> None:
        """Take ``cost`` more tokens, which the request turned out to need, from each bucket (less than 0: give them back).
        Nobody waits for this, and an outage loses it."""
        ...

    def release(self, takes: Sequence[Take], lease: bytes) -> None:
        """Free the places of a request that is over. Nobody waits for this."""
        ...

    async def close(self) -> None: ...


class Lookup(msgspec.Struct, frozen=True, gc=False):
    """What a cache store knows about a key at one moment."""

    entries: tuple[Entry, ...] = ()
    """The variants stored under the key, none of them purged."""
    stamp: int = 0
    """That moment, in microseconds of the store's own clock: a later ``put`` names it, so that a purge in between wins."""
    version: int = 0
    """When any of the tags was last purged, by the same clock: requests from before and from after that do not share an
    answer. Ahead of ``stamp`` while the purge holds: an answer asked for now would not be served again."""
    available: bool = True
    """False: the store did not answer in time."""
    near: bool = False
    """It comes from a copy in this process, without ``stamp`` and ``version``: good enough where GitLab need not be asked.
    Before GitLab is asked, the store itself is consulted."""

    # The entries are callers' private answers.
    __repr__ = object.__repr__


class CacheStore(Protocol):
    """Stored answers by key, purged by tag. An outage is never an exception: the cache is only ever a shortcut."""

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        """Look up ``key``, in one round trip. A miss, an unreadable value and a purged one give no entries; after an outage
        the result is not ``available``.

        ``tags`` are those that ``put`` was given for this key. ``anew``: a copy in this process will not do.
        """
        ...

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        """Store ``entries``, whole or not at all, in place of what is there. False: not stored, or a tag was purged since
        ``stamp``."""
        ...

    async def delete(self, key: bytes) -> None: ...

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        """Drop what is stored under any of ``tags``: nobody on this store sees it again, even if the caller is cancelled
        while it waits. Nor does anybody see again what is asked for within ``hold_s`` from now: GitLab's read replicas may
        still be behind. False: it could not be sent to the store yet; in this process the purge counts all the same."""
        ...

    async def close(self) -> None: ...


class KeyStore(Protocol):
    """Issued keys, as the server reads them. An outage raises ``StoreUnavailable``; calls may overlap and be cancelled."""

    async def find(self, digest: bytes) -> KeyRecord | None:
        """The key's record, dead or alive; None on a miss. By digest only: what a caller sent never steers the search."""
        ...

    async def revision(self) -> object:
        """Equal to an earlier revision only if no key was revoked, replaced, changed or lost in between: a key found then
        has the same record now. The use of a key does not change it, nor does a new exchanged credential."""
        ...

    async def touch(self, key_id: str, at: float) -> None:
        """Record a use of the key. The time never moves backwards, and an unknown id is no error."""
        ...

    async def close(self) -> None: ...


class KeyRegister(Protocol):
    """The same keys, as commands and the admin API change them. An outage raises ``StoreUnavailable``."""

    async def put(self, record: KeyRecord, replacing: Replacement | None = None) -> None:
        """Add a key, durably; with ``replacing``, also end the key that it replaces. Judged and written in one step.

        Raises KeyRefused when the id or digest is taken, ``replacing`` refuses, ``LIVE_KEYS`` of the identity are live at
        ``created_at``, or ``MOST_EXCHANGED`` are stored. Deletes keys that may be forgotten by then.
        """
        ...

    async def get(self, key_id: str) -> KeyRecord | None:
        """The record with this public id, its last use included."""
        ...

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        """All records, or those of one identity, oldest first."""
        ...

    async def revoke(self, key_id: str, at: float) -> bool:
        """End a key. False when there is no such key; revoking twice keeps the first instant."""
        ...

    async def close(self) -> None: ...


class KeyRefused(Exception):  # noqa: N818 — a decision, told to whoever asked for the key
    """The key cannot be added; the message says why."""


class StoreUnavailable(Exception):  # noqa: N818 — a state of the world the caller acts on
    """The store did not answer in time."""


class NotDone(StoreUnavailable):
    """The store refused (it is full, a replica, or denies access) or was not reached: it did not do what was asked."""


class Authenticator(Protocol):
    """Claim → Principal. Positive and negative answers are memoised with bounds; one lookup per claim is in flight."""

    async def authenticate(self, claim: Claim, operation: Operation, head: RequestHead) -> Principal:
        """``head.peer`` is the client's own address, behind trusted proxies too.

        Raises Rejection UNAUTHENTICATED, TOO_MANY_FAILED_LOGINS or IDENTITY_UNAVAILABLE.
        """
        ...

    def proof(self, claim: Claim, operation: Operation, principal: Principal) -> Callable[[], object] | None:
        """A function that says from memory alone, each time it is called, who presents this credential: the very principal
        ``principal`` that ``authenticate`` found, as long as it would find it again without asking anybody; anything else
        when it would not. None: such claims are not remembered. The peer's address is not checked: whoever asks keeps what
        it learns of each peer apart."""
        ...

    async def still_accepts(self, claim: Claim) -> bool:
        """Whether a claim once authenticated as a brokered caller's would still be accepted; while nobody can tell, it
        counts as accepted. Never counts as a failed login."""
        ...

    def report_401(self, claim: Claim, principal: Principal, head: RequestHead) -> None:
        """GitLab answered 401 to the caller's own credential: ask GitLab again before that credential is next believed."""
        ...

    async def close(self) -> None: ...


class TokenStatus(msgspec.Struct, gc=False):
    """The status of one of the broker's tokens, shared by all credentials made from it."""

    usable: bool = True
    """Whether the token is given out: GitLab does not refuse it, and no other has taken its place."""


class UpstreamCredential(msgspec.Struct, frozen=True, gc=False):
    """What GitLab sees instead of the caller's credential."""

    id: str
    fields: tuple[Field, ...]
    partition: bytes
    """Keyed hash of the token actually used."""
    token_status: TokenStatus = msgspec.field(default_factory=TokenStatus)

    def __repr__(self) -> str:
        return f"UpstreamCredential({self.id})"


class TokenSource(Protocol):
    """The broker: permit → upstream credential."""

    has_unchecked: bool
    """Whether there is a credential that GitLab could not be asked about yet."""

    async def credential(self, permit: Permit, operation: Operation) -> UpstreamCredential:
        """The credential for ``permit``, in the carrier that the operation's surface reads (Git takes Basic only).

        Raises Rejection BROKER_CREDENTIAL_REFUSED (502/503) when there is none to give: it fails closed, never open.
        """
        ...

    def credential_now(self, permit: Permit, operation: Operation) -> UpstreamCredential | None:
        """As ``credential``, where one is at hand; None where it has to be waited for, or is refused."""
        ...

    def gitlab_answered(self) -> None:
        """An answer was unmistakably GitLab's: what is unchecked can be checked now, in the background."""
        ...

    async def refused(self, credential: UpstreamCredential) -> bool:
        """GitLab answered 401 to this credential. True: it is dead, is not given out for a while and raises an alarm; or
        another has taken its place since it was given out.

        False: GitLab still knows it, so the 401 was about the route: no caller can take a credential away from the others.
        Raises Rejection BROKER_CREDENTIAL_REFUSED (503) where GitLab does not say which; it is given out meanwhile.
        """
        ...

    async def close(self) -> None: ...


class PlaceResolver(Protocol):
    """The other name of a project or group, id ⇄ path: GitLab is asked with the credential of the rule that needs it."""

    async def resolve(
        self,
        lookups: Sequence[PlaceLookup],
        credential: UpstreamCredential,
        room: Callable[[], Awaitable[None]] | None = None,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> Resolved:
        """What GitLab answered, by lookup; a place that the credential may not know of is left out. Answers are
        remembered, with bounds: only where GitLab must be asked is ``room`` awaited, which may refuse, and then ``turn``,
        by the one caller that asks for all.

        Raises Rejection PLACE_UNAVAILABLE or ``UPSTREAM_*`` when GitLab does not answer: it fails closed, never open.
        """
        ...


class Presentation(enum.StrEnum):
    """How a token is presented to GitLab, which decides what kind of token it may be."""

    PRIVATE = "private"
    """``PRIVATE-TOKEN``: personal, project, group, impersonation and service-account tokens."""
    BEARER = "bearer"
    """``Authorization: Bearer``: the same kinds, and OAuth tokens."""
    JOB = "job"
    """``JOB-TOKEN``."""


class Verified(msgspec.Struct, frozen=True, gc=False):
    """What GitLab says about a valid token."""

    subject: str
    """``user:42``; ``job-project:7`` for a job token; ``application:UID`` for an OAuth token without a user."""
    scopes: tuple[str, ...] | None = None
    """None: GitLab did not say."""
    expires_at: float | None = None
    credential_id: str = ""
    """GitLab's name for the token: ``token:5`` (personal, of a group or a project), ``job:8``, ``application:UID`` for
    OAuth; empty: GitLab did not say."""


class NotAnswering(Exception):  # noqa: N818 — a state of the world the caller acts on
    """GitLab said neither yes nor no. ``offered`` is False when it did answer, but not as a GitLab that can be asked."""

    def __init__(self, reason: str, *, offered: bool = True) -> None:
        super().__init__(reason)
        self.offered = offered


class TokenVerifier(Protocol):
    """Asks GitLab about a token."""

    async def verify(self, token: Secret, presentation: Presentation, *, may_be_job: bool = False) -> Verified | None:
        """What GitLab says about ``token``. None: GitLab does not accept it (unknown, revoked, expired or blocked, without
        distinction). Raises NotAnswering.

        ``may_be_job``: a Bearer token may be a job token too.
        """
        ...


class Documents(Protocol):
    """Public documents of other servers: an issuer's keys. Follows no redirect; dials the URL's own host, never GitLab."""

    async def get(self, url: str) -> bytes:
        """The body of a 200, bounded in size and time. Raises NotAnswering for everything else."""
        ...

    async def close(self) -> None: ...
