"""What a request costs, counted: calls that the gateway's own code makes, the same on every machine and in every run.

Seconds belong to ``make bench``. A ceiling that is passed says that the hot road got longer: find out why, and raise it
only for something worth its price on every request. Counted in CPython 3.11; later versions make fewer calls.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

import gateway
from gateway.app import open_key_store
from gateway.app.assembly import Assembly, assemble
from gateway.config import load
from gateway.core.messages import Fields, ResponseHead
from gateway.ports import RepeatedFields, RequestBody, UpstreamRequest
from gateway.reply import Reply
from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.upstream.head_forms import CHUNKED_LINE, HeadForms

from .upstream.test_gathering import Request

CEILINGS = {
    "hit": 64,
    "marked hit": 99,
    "not modified": 60,
    "refused": 60,
    "Redis hit": 89,
    "miss": 152,
    "marked miss": 200,
    "new path": 375,
    "answer": 21,
    "in chunks": 32,
    "in pieces": 43,
}
"""Calls a request, or an answer of GitLab's on its connection, some eight in a hundred above what was counted."""

ROUNDS = 50
IN_ONE_TURN = 16
OURS = str(Path(gateway.__file__).parent)
BY_THE_CLOCK = ("audit.py", "audit_line.py", "redaction.py")  # how many lines fall into a count is chance
# As GitLab lists issues: each names its project.
BODY = b'[{"id":1,"project_id":42,"web_url":"https://git.example.com/platform/api/-/issues/1","title":"%b"}]' % (b"x" * 900)
ETAG = b'W/"0123456789abcdef0123456789abcdef"'
ANSWER = ResponseHead(
    200,
    (
        (b"Server", b"nginx"),
        (b"Date", b"Sat, 21 Nov 2026 01:42:06 GMT"),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(BODY)),
        (b"Cache-Control", b"max-age=0, private, must-revalidate"),
        (b"Etag", ETAG),
        (b"Vary", b"Origin"),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"X-Frame-Options", b"SAMEORIGIN"),
        (b"X-Gitlab-Meta", b'{"correlation_id":"01HF6GZ","version":"1"}'),
        (b"X-Request-Id", b"01HF6GZ"),
        (b"X-Runtime", b"0.050123"),
        (b"Strict-Transport-Security", b"max-age=63072000"),
        (b"Referrer-Policy", b"strict-origin-when-cross-origin"),
    ),
)


class GitLab:
    """An upstream without a wire: the same answer at once."""

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        return Reply(ANSWER, BODY)

    def send_soon(
        self, target: bytes, own: Fields, repeated: RepeatedFields, then: Callable[[Reply], None]
    ) -> asyncio.Handle:
        return asyncio.get_running_loop().call_soon(then, Reply(ANSWER, BODY))

    async def close(self) -> None:
        return


class Wire(asyncio.Transport):
    """A client's connection without a wire."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[bytes] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 4711) if name == "peername" else default

    def write(self, data: Any) -> None:
        self.answers.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        return

    def abort(self) -> None:
        return


class Client:
    """One keep-alive connection to the data port."""

    def __init__(self, made: Assembly, key: str) -> None:
        self.wire = Wire()
        self.connection = made.server()
        self.key = key
        self.lines = b""
        """Further fields of each request."""
        self.path = b"/api/v4/projects/platform%%2Fapi/issues?page=%d"

    async def ask(self, page: int, field: bytes = b"") -> bytes:
        before = len(self.wire.answers)
        self.connection.data_received(
            b"GET " + self.path % page + b" HTTP/1.1\r\nHost: git.example.com\r\n"
            b"User-Agent: python-gitlab/8.0.0\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
            b"Connection: keep-alive\r\nPRIVATE-TOKEN: %b\r\n%b\r\n" % (self.key.encode(), field)
        )
        while len(self.wire.answers) == before:
            await asyncio.sleep(0)
        return self.wire.answers[-1]


async def made_with(directory: Path, burst: int, store: str = "memory:") -> tuple[Assembly, str]:
    text = (Path(__file__).parent.parent / "benchmarks/peers/gateway.yaml").read_text()
    values = {"DIR": directory, "NAME": "state", "ORIGIN": 9, "PORT": 0, "PORT2": 0, "STORE": store, "CACHE": "shared"}
    for name, value in {**values, "RATE": "1/day" if burst == 1 else "1000000/s", "BURST": burst}.items():
        text = text.replace(f"@{name}@", str(value))
    (directory / "state").mkdir(mode=0o700)
    given = {f"BENCH_SECRET_{letter}": letter * 8 + os.urandom(16).hex() for letter in "ABC"} | {"BENCH_TOKEN": "a-token"}
    loaded = load(text, given, lambda path: Path(path).read_text())
    assert loaded.config is not None, loaded.problems
    async with open_key_store(loaded.config) as keys:
        key = (await keys.key_admin.issue(keys.actor, "bench"))[0].reveal()
    made = await assemble(loaded.config)
    made.gateway.stages = made.gateway.forward_lane.stages = msgspec.structs.replace(made.gateway.stages, upstream=GitLab())
    return made, key


@pytest.fixture(params=[1_000_000])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    made, key = await made_with(tmp_path, request.param)
    one = Client(made, key)
    one.connection.connection_made(one.wire)
    await asyncio.sleep(0)
    yield one
    one.connection.connection_lost(None)
    await made.stack.aclose()


async def calls_of(client: Client, status: bytes, pages: Sequence[int], field: bytes = b"") -> float:
    """Calls a request, Python's and C's, after everything that is done once has been done."""
    for page in pages[:10]:
        assert (await client.ask(page, field)).split(b" ", 2)[1] == status
    with counted() as calls:
        for page in pages[10:]:
            await client.ask(page, field)
    return sum(calls) / len(pages[10:])


@contextmanager
def counted() -> Iterator[list[int]]:
    """What our own code calls: a list that holds the number in the end."""
    count, calls = 0, list[int]()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        if event in {"call", "c_call"}:
            file = frame.f_code.co_filename
            count += file.startswith(OURS) and not file.endswith(BY_THE_CLOCK)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        calls.append(count)


async def test_a_cached_answer(client: Client) -> None:
    await client.ask(1)
    assert await calls_of(client, b"200", [1] * (10 + ROUNDS)) <= CEILINGS["hit"]


async def test_a_cached_answer_with_buckets_in_redis(tmp_path: Path, redis_url: str) -> None:
    """Of several in one turn, which share its round trip. The cheapest turn counts: in others the copies at hand may be in
    doubt for a moment, which is the clock's doing."""
    made, key = await made_with(tmp_path, 1_000_000, redis_url)
    clients = [Client(made, key) for _ in range(IN_ONE_TURN)]
    for client in clients:
        client.connection.connection_made(client.wire)
    await asyncio.sleep(0)
    store = made.cache_assembly.store
    assert isinstance(store, TwoLevelCacheStore)
    async with asyncio.timeout(30):
        while not store.trusted:
            await clients[0].ask(1)
    turns = []
    for _ in range(ROUNDS):
        with counted() as calls:
            await asyncio.gather(*[client.ask(1) for client in clients])
        turns += calls
    assert min(turns) / len(clients) <= CEILINGS["Redis hit"]
    for client in clients:
        client.connection.connection_lost(None)
    await made.stack.aclose()


@pytest.mark.parametrize(
    ("what", "pages"), [("marked hit", [1] * (10 + ROUNDS)), ("marked miss", range(1000, 1010 + ROUNDS))]
)
async def test_requests_that_a_proxy_marks(client: Client, what: str, pages: Sequence[int]) -> None:
    """Each with an id of its own, as behind every load balancer: they take the lanes as any others do."""
    ids = [b"X-Request-Id: %032x\r\ntraceparent: 00-%032x-%016x-01\r\n" % (at, at, at) for at in range(1, 1 + len(pages))]
    for page, field in zip(pages[:10], ids[:10], strict=True):
        assert (await client.ask(page, field)).split(b" ", 2)[1] == b"200"
    with counted() as calls:
        for page, field in zip(pages[10:], ids[10:], strict=True):
            await client.ask(page, field)
    assert sum(calls) / len(pages[10:]) <= CEILINGS[what]


async def test_a_304_from_the_cache(client: Client) -> None:
    await client.ask(1)
    assert (
        await calls_of(client, b"304", [1] * (10 + ROUNDS), b"If-None-Match: " + ETAG + b"\r\n") <= CEILINGS["not modified"]
    )


async def test_a_miss_that_is_stored(client: Client) -> None:
    """Of one list, page by page: on the forward lane."""
    assert await calls_of(client, b"200", range(1000, 1010 + ROUNDS)) <= CEILINGS["miss"]


async def test_a_miss_at_a_path_that_nobody_asked_for(client: Client) -> None:
    """On the forward lane, too, with a plan made on the spot."""
    client.path = b"/api/v4/projects/%d/issues?page=1"
    assert await calls_of(client, b"200", range(1000, 1010 + ROUNDS)) <= CEILINGS["new path"]


@pytest.mark.parametrize("client", [1], indirect=True)
async def test_a_refusal(client: Client) -> None:
    await client.ask(1)
    assert await calls_of(client, b"429", [1] * (10 + ROUNDS)) <= CEILINGS["refused"]


def test_what_a_start_leaves_unloaded() -> None:
    """Half of the start-up's time and a fifth of its memory were libraries that the embedded default never calls."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import gateway.cli, gateway.app, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()
    assert "gateway.app.serving" in loaded
    assert not {"graphql", "redis", "joserfc", "gateway.demo.gitlab"} & set(loaded)


@pytest.mark.parametrize("how", ["answer", "in chunks", "in pieces"])
async def test_an_answer_on_its_connection(how: str) -> None:
    """From the octets to whoever asked: of a form that came before."""
    length, body = b"Content-Length: %d" % len(BODY), BODY
    if how == "in chunks":
        length, body = CHUNKED_LINE, b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    lines = [length if name == b"Content-Length" else b"%b: %b" % (name, value) for name, value in ANSWER.fields]
    octets = b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", body])
    pieces = [octets] if how != "in pieces" else [octets[:-100], octets[-100:]]
    forms, total = HeadForms(), 0
    for number in range(3 + ROUNDS):
        asked = Request(forms, collects=True)
        with counted() as calls:
            asked.feed(*pieces)
        assert (await asked.answer())[2] == BODY
        total += calls[0] if number >= 3 else 0
    assert total / ROUNDS <= CEILINGS[how]
