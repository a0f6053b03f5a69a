"""What the pipeline asks of the world: small Protocols and the values that cross them.

Each docstring says what a miss, an outage and concurrency mean. Nothing here does I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from .asking import Begun
from .core.access import Permit, Principal, Priority
from .core.cache_entry import Entry
from .core.catalogue import Operation
from .core.credentials import Claim
from .core.errors import Rejection
from .core.head_form import HeadForm
from .core.key_record import KeyRecord, Replacing
from .core.limits import Decision, Take
from .core.messages import Field, Fields, RequestHead, ResponseHead
from .core.rule_match import Question, Resolved
from .core.secret import Secret
from .reply import ClientSide, Reply


class RequestBody(Protocol):
    """The client's body, pulled."""

    content_length: int | None
    """Octets that ``read`` will give in all; None: not known beforehand (chunked)."""

    async def read(self) -> bytes:
        """The next octets, never decompressed or re-chunked to size; ``b""`` once, at the end.

        Raises Rejection: REQUEST_TIMEOUT when the client stalls longer than ``body_idle`` or falls behind ``body_rate``,
        BAD_REQUEST on broken framing.
        A client that vanished cancels the handler instead.
        """
        ...


DRAINED = "drained"
"""The message of the cancellation when the gateway's end, and not the client's, ends a request."""


class Downstream(Protocol):
    """One request and the way back to its client. Exactly one of ``respond`` or ``start`` … ``finish`` is used, once."""

    head: RequestHead
    started: bool
    """Some of the answer may have left."""
    sent_bytes: int
    received_bytes: int
    """Of the body."""

    @property
    def body(self) -> RequestBody | None: ...

    begun: Begun | None
    """Where it goes on from; None: from its beginning."""

    @property
    def plain(self) -> bool:
        """Its octets may come again, and would mean the same: HTTP/1.1, no body, nothing to close for."""
        ...

    async def respond(self, head: ResponseHead, whole: bytes, *, close: bool = False, lines: bytes = b"") -> None:
        """The whole answer at once, with ``lines`` (``Name: value`` and CRLF each; none that frames) behind its fields.

        For HEAD, 204 and 304 ``whole`` is not sent and Content-Length stays as given.
        ``close`` ends the connection behind it: what the client sent, or still sends, can't be trusted.
        """
        ...

    async def start(self, head: ResponseHead, *, lines: bytes = b"") -> None:
        """Begin a streamed answer, ``lines`` as above.

        Framing is by the head's Content-Length, else chunked (HTTP/1.0: until close).
        """
        ...

    async def write(self, chunk: bytes) -> None:
        """Some of the body, with back-pressure."""
        ...

    async def finish(self) -> None:
        """The body is complete."""
        ...

    async def switch(self, head: ResponseHead) -> ClientSide:
        """Send a 101 instead of an answer, and take the connection over. Raises Rejection where it can't be."""
        ...

    def abort(self) -> None:
        """Cut the connection so that the client can't take what it has for a whole answer."""
        ...


class Answered(msgspec.Struct, gc=False):
    """How requests of one kind were answered last."""

    form: HeadForm | None = None
    """Of the answer's head."""


class Repeated(msgspec.Struct, gc=False):
    """The fields that all requests of one kind have, before and behind those of each alone."""

    before: Fields
    behind: Fields
    priority: Priority = Priority.INTERACTIVE
    rendered: tuple[bytes, bytes] | None = None
    """An adapter's own: the two as it sends them, left here by the first such request."""
    answered: Answered = msgspec.field(default_factory=Answered)
    """An adapter's own, too: left there by answers."""

    def __repr__(self) -> str:
        return "Repeated()"  # a credential is among them


class UpstreamRequest(msgspec.Struct, frozen=True, gc=False):
    """What goes up: final fields, hop-by-hop and credentials already dealt with. Framing fields are the adapter's."""

    method: str
    target: bytes
    own: Fields
    """All fields, or those that ``repeated`` has not."""
    content_length: int | None = None
    """Of the body; None with a body means chunked."""
    first_byte_timeout_s: float | None = None
    """None: the configured one; long polls ask for more."""
    upgrade: bool = False
    caller: str = ""
    """The principal's id: callers take turns where there is not enough for all."""
    priority: Priority = Priority.INTERACTIVE
    repeated: Repeated | None = None
    """The fields that other requests have as well, around ``own``."""
    waits: bool = False
    """It may go on for long, before its answer or within it, and costs GitLab nothing meanwhile."""
    sent: Callable[[], None] | None = None
    """Told when GitLab was sent the whole of it, each time; not where it was answered before."""

    def __repr__(self) -> str:
        return f"UpstreamRequest({self.method})"  # never its fields

    @property
    def fields(self) -> Fields:
        """All of them."""
        repeated = self.repeated
        return self.own if repeated is None else (*repeated.before, *self.own, *repeated.behind)


class Asked(Protocol):
    """A question to a store or to GitLab, until it is answered."""

    def cancel(self) -> None:
        """Nobody waits for it any more; what was not asked for yet is not taken."""
        ...


Then = Callable[[Reply | Rejection | None], None]
"""Is told how it went: GitLab's answer, why there is none, or None."""


class Door(Protocol):
    """Counts who is in."""

    def passed(self, answer: Reply | Rejection | None) -> None:
        """One has been answered, as ``Then``; None too for one that was cancelled."""
        ...


class Upstream(Protocol):
    """GitLab. Streams both ways with bounded memory, follows nothing, decodes nothing."""

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        """One request up, its final head back.

        Retries only a body-less GET, HEAD or OPTIONS, once, when a reused connection closed before any octet of an answer.
        An answer may come before the body is all sent; the rest of the body is then not read, the connection not reused.
        Raises Rejection with an ``UPSTREAM_*`` code; cancellation closes the connection.
        """
        ...

    def send_soon(
        self, target: bytes, own: Fields, repeated: Repeated, then: Then, door: Door | None = None
    ) -> Asked | None:
        """As ``send`` of a GET with the fields ``own`` between those of ``repeated``, without a coroutine: ``then`` is
        called once, later, with what ``send`` would return or raise, or with None where the request may be sent once more.
        None, and nothing was sent, where that takes longer: a turn must be waited for, or a connection made.

        ``door`` is told before ``then`` is. What ``then`` raises is logged.
        """
        ...

    async def close(self) -> None: ...


class BucketStore(Protocol):
    """Buckets of tokens, and of places for requests in progress. The store's clock is the only clock."""

    async def take(self, takes: Sequence[Take], lease: bytes = b"") -> Decision:
        """From every bucket or from none, atomically. ``lease`` names the request where a limit is concurrent: its places
        are held until ``release``, or until the store has not heard of this gateway for ``core.limits.LEASE_S``.

        Never raises for an outage: the failure policy's decision comes back with ``degraded``.
        """
        ...

    def take_now(self, takes: Sequence[Take], lease: bytes = b"") -> Decision | None:
        """As ``take``; None, and nothing taken, where that cannot be said at once."""
        ...

    def take_soon(self, takes: Sequence[Take], then: Callable[[Decision], None]) -> Asked:
        """As ``take``, without a coroutine and without places: ``then`` is called with the decision, once, later. A fault
        of it is logged and harms nobody else."""
        ...

    def refused_now(self, takes: Sequence[Take]) -> Decision | None:
        """What ``take`` would say, where it is a refusal for certain; None otherwise. Nothing is taken."""
        ...

    async def look(self, takes: Sequence[Take]) -> Decision:
        """The buckets as they are, places among them; nothing is taken or written. No states: nothing is known at the
        moment."""
        ...

    def settle(self, changes: Sequence[Take]) -> None:
        """``cost`` more tokens turned out to be owed to each bucket (less than 0: are given back). Nobody waits for it, and
        an outage loses it."""
        ...

    def release(self, takes: Sequence[Take], lease: bytes) -> None:
        """The request is over: its places are free. Nobody waits for it."""
        ...

    async def close(self) -> None: ...


class Lookup(msgspec.Struct, frozen=True, gc=False):
    """What a cache store knows of a key at one moment."""

    entries: tuple[Entry, ...] = ()
    """The variants stored under it, none of them purged."""
    stamp: int = 0
    """The moment, in microseconds of the store's own clock: a later ``put`` names it, so that a purge in between wins."""
    version: int = 0
    """The latest purge of any of the tags, by the same clock: what was asked before it and after it is not the same
    question. Ahead of ``stamp`` while the purge holds: an answer asked for now would not be seen again."""
    available: bool = True
    """False: the store did not answer in time."""
    near: bool = False
    """A copy in this process: good for what needs no asking, and without ``stamp`` and ``version``. Whoever asks upstream
    looks in the store itself first."""

    # Somebody's answers are among what it holds.
    __repr__ = object.__repr__


class CacheStore(Protocol):
    """Stored answers by key, purged by tag. An outage is never an exception: the cache is only ever a shortcut."""

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        """In one round trip. A miss, an unreadable value and a purged one have no entries; an outage is not available.

        ``tags`` are those that ``put`` was given for this key. ``anew``: a copy in this process will not do.
        """
        ...

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        """Whole or not at all, in place of what is there. False: not stored, or a tag was purged since ``stamp``."""
        ...

    async def delete(self, key: bytes) -> None: ...

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        """Nothing stored under any of ``tags`` up to now is seen again, by anyone on this store, even if the caller is
        cancelled while it waits. Nor is what is asked for within ``hold_s`` from now: GitLab's read replicas may still be
        behind. False: the store could not be told yet; here it counts all the same."""
        ...

    async def close(self) -> None: ...


class KeyStore(Protocol):
    """Issued keys, as the server reads them. An outage raises ``StoreUnavailable``; calls may overlap and be cancelled."""

    async def find(self, digest: bytes) -> KeyRecord | None:
        """The record, dead or alive; a miss is None. By digest only: what a caller sent never steers the search."""
        ...

    async def touch(self, key_id: str, at: float) -> None:
        """Remember a use; never moves backwards, and an unknown id is nobody's loss."""
        ...

    async def close(self) -> None: ...


class KeyRegister(Protocol):
    """The same keys, as commands and the admin API change them. An outage raises ``StoreUnavailable``."""

    async def put(self, record: KeyRecord, replacing: Replacing | None = None) -> None:
        """Add a key, durably; with ``replacing``, and end another one for it. Judged and written in one step.

        Raises KeyRefused when the id or digest is taken, ``replacing`` refuses, ``LIVE_KEYS`` of the identity are live at
        ``created_at``, or ``MOST_EXCHANGED`` are stored. Forgets keys that are forgettable then.
        """
        ...

    async def get(self, key_id: str) -> KeyRecord | None:
        """By its public id, with its last use."""
        ...

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        """Oldest first."""
        ...

    async def revoke(self, key_id: str, at: float) -> bool:
        """False when there is no such key. Revoking twice keeps the first instant."""
        ...

    async def close(self) -> None: ...


class KeyRefused(Exception):  # noqa: N818 — a decision, told to whoever asked for the key
    """The key cannot be added; the message says why."""


class StoreUnavailable(Exception):  # noqa: N818 — a state of the world the caller acts on
    """The store did not answer in time."""


class NotDone(StoreUnavailable):
    """It said no (it is full, a replica, closed to who asks), or was not reached: it did not do what was asked."""


class Authenticator(Protocol):
    """Claim → Principal. Positive and negative answers are memoised with bounds; one lookup per claim is in flight."""

    async def authenticate(self, claim: Claim, operation: Operation, head: RequestHead) -> Principal:
        """``head.peer`` is the client's own address, behind trusted proxies too.

        Raises Rejection UNAUTHENTICATED, TOO_MANY_FAILED_LOGINS or IDENTITY_UNAVAILABLE.
        """
        ...

    def proof(self, claim: Claim, operation: Operation) -> Callable[[], object] | None:
        """Who brings this credential, from memory alone, as often as it is called: the very principal that ``authenticate``
        found as long as it would find it again without asking, anything else when it would not. None: there is no memory
        of such claims. The peer's address is not judged."""
        ...

    async def still_knows(self, claim: Claim) -> bool:
        """Whether a claim that was authenticated as a brokered caller's would be found good now; as long as nobody can
        tell, it is. Costs nobody a failed login."""
        ...

    def refused_upstream(self, claim: Claim, principal: Principal, head: RequestHead) -> None:
        """GitLab answered 401 to the caller's own credential: it is asked anew before that credential is believed again."""
        ...

    async def close(self) -> None: ...


class Standing(msgspec.Struct, gc=False):
    """Of a token of the broker's, with all credentials that were made of it."""

    good: bool = True
    """It is given out: GitLab does not refuse it, and no other has taken its place."""


class UpstreamCredential(msgspec.Struct, frozen=True, gc=False):
    """What GitLab sees instead of the caller's credential."""

    id: str
    fields: tuple[Field, ...]
    partition: bytes
    """Keyed hash of the token actually used."""
    standing: Standing = msgspec.field(default_factory=Standing)

    def __repr__(self) -> str:
        return f"UpstreamCredential({self.id})"


class TokenSource(Protocol):
    """The broker: permit → upstream credential."""

    unchecked: bool
    """GitLab could not be asked about some credential yet."""

    async def credential(self, permit: Permit, principal: Principal, operation: Operation) -> UpstreamCredential:
        """In the carrier that the operation's surface reads (Git takes Basic only).

        Raises Rejection BROKER_CREDENTIAL_REFUSED (502/503) when there is none to give: closed, never open.
        """
        ...

    def credential_now(self, permit: Permit, operation: Operation) -> UpstreamCredential | None:
        """As ``credential``, where it is at hand; None where that takes a while, or is refused."""
        ...

    def recognised(self) -> None:
        """An answer was unmistakably GitLab's: what is unchecked can be checked now, in the background."""
        ...

    async def refused(self, credential: UpstreamCredential) -> bool:
        """GitLab answered 401 to this credential. True: it is dead; it is not given out for a while, and an alarm is up; or
        another has taken its place since it was given out.

        False: GitLab still knows it, so the 401 was about the route. A caller cannot take a credential from the others.
        Raises Rejection BROKER_CREDENTIAL_REFUSED (503) where GitLab does not say which; it is given out meanwhile.
        """
        ...

    async def close(self) -> None: ...


class Places(Protocol):
    """What GitLab calls a project or group otherwise: id ⇄ path, with the credential of the rule that asks."""

    async def resolve(
        self,
        questions: Sequence[Question],
        credential: UpstreamCredential,
        room: Callable[[], Awaitable[None]] | None = None,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> Resolved:
        """Those that GitLab answered; one the credential may not know of is left out. Remembered with bounds: ``room`` is
        asked for, and may be refused, where GitLab must be asked; ``turn`` is waited for by who asks it for all.

        Raises Rejection PLACE_UNAVAILABLE or ``UPSTREAM_*`` when GitLab does not answer: closed, never open.
        """
        ...


class Presentation(enum.StrEnum):
    """How a token is shown to GitLab, which decides what it may be."""

    PRIVATE = "private"
    """``PRIVATE-TOKEN``: personal, project, group, impersonation and service-account tokens."""
    BEARER = "bearer"
    """``Authorization: Bearer``: the same, and OAuth tokens."""
    JOB = "job"
    """``JOB-TOKEN``."""


class Verified(msgspec.Struct, frozen=True, gc=False):
    """What GitLab says of a good token."""

    subject: str
    """``user:42``; ``job-project:7`` for a job token; ``application:UID`` for an OAuth token without a user."""
    scopes: tuple[str, ...] | None = None
    """None: GitLab did not say."""
    expires_at: float | None = None


class NotAnswering(Exception):  # noqa: N818 — a state of the world the caller acts on
    """GitLab said neither yes nor no. ``offered`` is False when it answered, but not as a GitLab that can be asked."""

    def __init__(self, reason: str, *, offered: bool = True) -> None:
        super().__init__(reason)
        self.offered = offered


class TokenVerifier(Protocol):
    """Asks GitLab about a token."""

    async def verify(self, token: Secret, presentation: Presentation, *, may_be_job: bool = False) -> Verified | None:
        """None: GitLab does not take it (unknown, revoked, expired, blocked: all one). Raises NotAnswering.

        ``may_be_job``: a Bearer token may be a job token too.
        """
        ...


class Documents(Protocol):
    """Public documents of others: an issuer's keys. Follows no redirect; a URL's host is dialled, never GitLab's."""

    async def get(self, url: str) -> bytes:
        """The body of a 200, bounded in size and time. Raises NotAnswering for everything else."""
        ...

    async def close(self) -> None: ...
