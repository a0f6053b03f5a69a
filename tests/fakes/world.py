"""A whole gateway around a GitLab that is a function: real parts everywhere, behaving stand-ins at both ends.

    async with world(tmp_path) as made:
        down = await made.ask("GET", "/api/v4/projects", PRIVATE-TOKEN=…)

``FakeDownstream`` is a client, ``FakeUpstream`` is GitLab; both record what they see, and ``FakeUpstream`` counts what is
open.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from gateway.app.assembly import Assembly, wire
from gateway.app.component_settings import admission_settings
from gateway.app.key_store_session import open_key_store
from gateway.config import Config, load
from gateway.core.errors import Code, Rejection, Source
from gateway.core.exchange import Exchange
from gateway.core.messages import Field, Fields, RequestHead, ResponseHead, first
from gateway.pipeline import Gateway
from gateway.ports import Admission, RepeatedFields, ReplyCallback, RequestBody, UpstreamRequest
from gateway.reply import Reply
from gateway.stages import Stages
from gateway.upstream.admission import AdmittingUpstream
from gateway.upstream.whole_body import is_small

CONFIGURATION = """\
version: 1
upstream: {url: "http://gitlab.test"}
identities:
  - {id: reader, key: issued}
  - {id: other, key: issued}
  - {id: actor, key: issued}
  - {id: nobody, key: issued}
  - {id: people, gitlab_token: true}
credentials:
  - {id: sa, token: "${env:SA}"}
  - {id: sa-sudo, token: "${env:SA_SUDO}", sudo: true}
rules:
  - id: reads
    for: [reader]
    use: sa
    allow: [{access: write}]
    deny: [{routes: [DELETE /api/v4/projects/:id]}]
    sudo: never
  - {id: others, for: [other], use: sa, allow: [{access: read}], sudo: never}
  - {id: acts, for: [actor], use: sa-sudo, allow: [{access: write}], sudo: [root]}
limits:
  - {id: caller, by: caller, rate: 60/min, burst: 50}
"""
ENVIRONMENT = {"SA": "glpat-service-account-1", "SA_SUDO": "glpat-service-account-2"}
SECRETS = """\
secrets: {pepper: "${env:PEPPER}", encryption_key: "${env:KEY}", audit_key: "${env:AUDIT}"}
"""
"""What a shared store requires."""
_SECRETS = {"PEPPER": "c7" * 32, "KEY": "5b" * 32, "AUDIT": "e9" * 32}
OWN = "glpat-somebodys-own-token"
MALLORY = "glpat-nobodys-token-at-all"


class ClientGone(ConnectionError):  # noqa: N818 — as the edge's
    """The client's connection ended."""


class Body:
    """A client's body in pieces."""

    def __init__(self, down: FakeDownstream, pieces: tuple[bytes, ...], length: int | None) -> None:
        self._down = down
        self._pieces = list(pieces)
        self.content_length = length

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        piece = self._pieces.pop(0) if self._pieces else b""
        self._down.received_bytes += len(piece)
        return piece


class FakeDownstream:
    """A client with one request."""

    def __init__(
        self,
        method: str,
        target: str,
        fields: Fields,
        body: tuple[bytes, ...] | None = None,
        *,
        chunked: bool = False,
        gone_after: int | None = None,
    ) -> None:
        length = None if body is None or chunked else sum(map(len, body))
        framing: Fields = ()
        if body is not None:
            framing = ((b"Transfer-Encoding", b"chunked"),) if chunked else ((b"Content-Length", b"%d" % (length or 0)),)
        self.head = RequestHead(
            method,
            target.encode("latin-1"),
            ((b"Host", b"git.example.com"), *framing, *fields),
            has_body=body is not None,
            content_length=length,
            peer="192.0.2.7",
        )
        self.started = False
        self.plain = False
        self.handover = None
        self.sent_bytes = 0
        self.received_bytes = 0
        self._body = Body(self, body, length) if body is not None else None
        self._gone_after = gone_after
        self.answer: ResponseHead | None = None
        self.written = b""
        self.finished = False
        self.aborted = False
        self.closed = False

    @property
    def body(self) -> RequestBody | None:
        return self._body

    async def respond(self, head: ResponseHead, whole: bytes, *, close: bool = False, lines: bytes = b"") -> None:
        await self.start(head, lines=lines)
        await self.write(whole)
        self.finished, self.closed = True, close

    def repeated(self) -> FakeDownstream:
        """The same octets on a connection that has seen them: the same head, with whatever was left in its memo."""
        other = copy.copy(self)
        other.plain = True
        if self.head.memo is None:
            other.head = msgspec.structs.replace(self.head, memo=[])
        other.started = other.finished = other.aborted = False
        other.sent_bytes, other.answer, other.written = 0, None, b""
        return other

    async def start(self, head: ResponseHead, *, lines: bytes = b"") -> None:
        assert self.answer is None, "answered twice"
        self._take(0)
        self.started = True
        added = tuple((name, value) for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n")[:-1]))
        self.answer = ResponseHead(head.status, head.fields + added, head.reason)
        await asyncio.sleep(0)

    async def write(self, chunk: bytes) -> None:
        assert self.answer is not None
        assert not self.finished
        assert not self.aborted
        self._take(len(chunk))
        self.written += chunk
        await asyncio.sleep(0)

    async def finish(self) -> None:
        assert not self.aborted
        self.finished = True

    def abort(self) -> None:
        self.aborted = True

    def _take(self, octets: int) -> None:
        self.sent_bytes += octets
        if self._gone_after is not None and self.sent_bytes >= self._gone_after:
            raise ClientGone("client gone")

    # For the test to look at

    @property
    def status(self) -> int:
        assert self.answer is not None
        return self.answer.status

    def field(self, name: str) -> str:
        assert self.answer is not None
        return (first(self.answer.fields, name.lower().encode()) or b"").decode("latin-1")

    @property
    def code(self) -> str:
        """The gateway's own; empty for GitLab's answers."""
        return self.field("X-Gateway-Error")


Answer = Callable[[UpstreamRequest, bytes], Awaitable[Reply]]


async def echo_answer(request: UpstreamRequest, body: bytes) -> Reply:
    """200 with the target and the body."""
    return Reply(ResponseHead(200, ((b"Content-Type", b"application/json"),)), whole=request.target + b" " + body)


class FakeUpstream:
    """GitLab: knows its tokens, answers everything else by ``answer``."""

    def __init__(self, answer: Answer = echo_answer) -> None:
        self.answer = answer
        self.users = {OWN: 7, **{token: 90 + place for place, token in enumerate(ENVIRONMENT.values())}}
        self.requests: list[UpstreamRequest] = []
        self.verifications = 0
        self.octets = b""
        """Of bodies that came up, whole or not."""
        self.open = 0
        self.at_hand = True
        """There is a connection to send over."""
        self.wait: Callable[[], Awaitable[None]] | None = None
        """Before there is a place."""

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        self.open += 1
        try:
            await asyncio.sleep(0)
            if self.wait is not None:
                await self.wait()
            if request.target == b"/api/v4/personal_access_tokens/self":
                self.verifications += 1
                return self._held(self._verify(request))
            self.requests.append(request)
            octets = b""
            while body is not None and (chunk := await body.read()):
                octets += chunk
                self.octets += chunk
            if request.on_sent is not None and (body is None or is_small(body.content_length)):
                request.on_sent()
            await asyncio.sleep(0)
            return self._held(await self.answer(request, octets))
        except BaseException:
            self.open -= 1
            raise

    def send_soon(
        self, target: bytes, own: Fields, repeated: RepeatedFields, then: ReplyCallback, admission: Admission | None = None
    ) -> _Sent | None:
        request = UpstreamRequest("GET", target, own, priority=repeated.priority, repeated=repeated)
        return _Sent(self, request, then, admission) if self.at_hand else None

    def _verify(self, request: UpstreamRequest) -> Reply:
        token = token_of(request)
        if token not in self.users:
            return Reply(ResponseHead(401, ()), whole=b'{"message":"401 Unauthorized"}')
        scopes = ["api", "sudo"] if token == ENVIRONMENT["SA_SUDO"] else ["api"]
        answer = {"id": 1, "user_id": self.users[token], "active": True, "revoked": False, "scopes": scopes}
        return Reply(ResponseHead(200, ()), whole=msgspec.json.encode(answer))

    def _held(self, reply: Reply) -> Reply:
        def release() -> None:
            self.open -= 1
            reply.release()

        return Reply(
            None if reply.form else reply.head,
            reply.whole,
            reply.chunks,
            release,
            first_byte_s=reply.first_byte_s,
            form=reply.form,
            values=reply.values,
        )

    async def close(self) -> None:
        return None


class _Sent:
    """A request without a coroutine of its own."""

    def __init__(
        self, up: FakeUpstream, request: UpstreamRequest, then: ReplyCallback, admission: Admission | None
    ) -> None:
        self._up = up
        self._then: ReplyCallback | None = then
        self._admission = admission
        self._task = asyncio.get_running_loop().create_task(self._send(request))

    def cancel(self) -> None:
        if self._then is not None:
            self._then = None
            self._task.cancel()
            self._request_ended(None)

    def _request_ended(self, answer: Reply | Rejection | None) -> None:
        if self._admission is not None:
            self._admission.request_ended(answer)

    async def _send(self, request: UpstreamRequest) -> None:
        answer: Reply | Rejection | None
        try:
            answer = await self._up.send(request, None)
        except Rejection as rejection:
            answer = rejection
        then, self._then = self._then, None
        if then is None:
            if isinstance(answer, Reply):
                answer.release()
            return
        self._request_ended(answer)
        then(answer)
        if isinstance(answer, Reply) and answer.chunks is None:
            answer.release()


def token_of(request: UpstreamRequest) -> str:
    """The token that went up."""
    token = first(request.fields, b"private-token") or (first(request.fields, b"authorization") or b"")[7:]
    return token.decode("latin-1")


def broken_answer(*pieces: bytes) -> Answer:
    """An answer that breaks off."""

    async def answer(request: UpstreamRequest, body: bytes) -> Reply:
        return Reply(ResponseHead(200, ()), chunks=_broken(pieces))

    return answer


async def _broken(pieces: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece
    raise Rejection(Code.UPSTREAM_RESET, 502, "502 Bad Gateway", source=Source.UPSTREAM)


class RecordingObserver:
    """An observer that keeps each exchange."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def observe(self, exchange: Exchange, duration_s: float) -> None:
        assert duration_s >= 0
        self.exchanges.append(exchange)


class Spy:
    """Passes every call on, and notes it."""

    def __init__(self, name: str, real: object, calls: list[str]) -> None:
        self._name = name
        self._real = real
        self._calls = calls

    def __getattr__(self, attribute: str) -> object:
        real = getattr(self._real, attribute)
        if not callable(real):
            return real

        def call(*given: object, **named: object) -> object:
            self._calls.append(f"{self._name}.{attribute}")
            return real(*given, **named)

        return call


SPIED = ("entry", "authenticator", "access", "dialect", "limits", "tokens", "cache", "upstream")


class World:
    """One gateway, its client and its GitLab."""

    def __init__(self, made: Assembly, up: FakeUpstream, keys: dict[str, str]) -> None:
        self.made = made
        self.up = up
        self.keys = keys
        self.seen = RecordingObserver()
        self.calls: list[str] = []
        stages = made.gateway.stages
        spies = {name: Spy(name, getattr(stages, name), self.calls) for name in SPIED}
        self.gateway = Gateway(msgspec.structs.replace(stages, observers=(self.seen,), **spies))

    @property
    def stages(self) -> Stages:
        return self.gateway.stages

    def fields(self, caller: str | None) -> Fields:
        """The credential of a gateway identity by its name, of a GitLab user by the token, or none."""
        if caller is None:
            return ()
        return ((b"PRIVATE-TOKEN", self.keys.get(caller, caller).encode()),)

    def down(
        self,
        method: str,
        target: str,
        *more: Field,
        caller: str | None = OWN,
        body: tuple[bytes, ...] | None = None,
        chunked: bool = False,
        gone_after: int | None = None,
    ) -> FakeDownstream:
        return FakeDownstream(method, target, (*self.fields(caller), *more), body, chunked=chunked, gone_after=gone_after)

    async def ask(
        self,
        method: str,
        target: str,
        *more: Field,
        caller: str | None = OWN,
        body: tuple[bytes, ...] | None = None,
        chunked: bool = False,
        gone_after: int | None = None,
    ) -> FakeDownstream:
        """One request, answered; exactly one exchange was observed for it."""
        down = self.down(method, target, *more, caller=caller, body=body, chunked=chunked, gone_after=gone_after)
        before = len(self.seen.exchanges)
        await self.gateway.handle(down)
        assert len(self.seen.exchanges) == before + 1
        assert self.gateway.in_flight == 0
        assert (self.up.open, self.made.admitting_upstream.in_flight) == (0, 0)
        return down

    @property
    def last(self) -> Exchange:
        return self.seen.exchanges[-1]


def configured(text: str, state_dir: Path) -> Config:
    """``text`` as a configuration with its state in ``state_dir``."""
    text += f'state_dir: {state_dir}\naudit: {{sink: "file:{state_dir}/audit.jsonl"}}\n'
    loaded = load(text, ENVIRONMENT | _SECRETS, lambda path: Path(path).read_text())
    assert loaded.config is not None, [str(problem) for problem in loaded.problems]
    return loaded.config


@asynccontextmanager
async def world(state_dir: Path, text: str = CONFIGURATION, answer: Answer = echo_answer) -> AsyncIterator[World]:
    """A gateway of ``text``, with a key for each identity that takes one."""
    config = configured(text, state_dir)
    keys: dict[str, str] = {}
    identities = [one.id for one in config.identities if one.key is not None]
    if identities:
        audit = msgspec.structs.replace(config.audit, sink=f"file:{state_dir}/keys.jsonl")  # not among the requests
        async with open_key_store(msgspec.structs.replace(config, audit=audit)) as session:
            for identity in identities:
                key, _ = await session.key_admin.issue(session.actor, identity)
                keys[identity] = key.reveal()
    up = FakeUpstream(answer)
    made = Assembly(config)
    await made.upstream.close()
    made.upstream = up  # type: ignore[assignment]  # what stands for GitLab
    made.admitting_upstream = AdmittingUpstream(up, admission_settings(config))
    async with made.stack:
        await wire(made)
        yield World(made, up, keys)
