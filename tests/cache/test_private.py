from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from gateway.cache import CacheOutcome, CacheRequest, PrivateCache
from gateway.cache.hook_watch import HookWatch
from gateway.core.cache_status import CacheReason, CacheStatus, Stored
from gateway.core.catalogue import Access
from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Fields, first, values
from gateway.core.private_caching import PrivatePolicy
from gateway.ports import Lookup, Reply
from gateway.stores.cache_memory import MemoryCacheStore

from .origin import ISSUES, NEW_ISSUE, Clock, Origin, drain, get, json, streamed, whole

ETAG = b'W/"0123456789abcdef0123456789abcdef"'
OTHER = b'W/"ffffffffffffffffffffffffffffffff"'
DOWN = Rejection(Code.UPSTREAM_TIMEOUT, 504, "504 Gateway Timeout", source=Source.UPSTREAM)
AWAY = Rejection(Code.UPSTREAM_BREAKER_OPEN, 503, "503 Service Unavailable", source=Source.UPSTREAM)
KEPT = PrivatePolicy(ttl_s=30.0)


class Unavailable:
    """A store that never answers in time."""

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        return Lookup(available=False)

    async def put(self, *_: object) -> bool:
        raise AssertionError("not asked while it is away")

    async def delete(self, key: bytes) -> None:
        raise AssertionError("not asked while it is away")

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        return False

    async def close(self) -> None:
        return None


class Room:
    """One cache with its clock."""

    def __init__(self, policy: PrivatePolicy = PrivatePolicy()) -> None:  # noqa: B008
        self.clock = Clock()
        self.store = MemoryCacheStore(1 << 20, self.clock)
        self.cache = PrivateCache(self.store, policy)

    async def fetch(self, request: CacheRequest, origin: Origin) -> tuple[int, Fields, bytes, CacheOutcome]:
        head, body, outcome = await drain(await self.cache.fetch(request, origin, self.clock))
        assert origin.held == 0, "every reply is given back"
        return head.status, head.fields, body, outcome


async def test_an_answer_is_revalidated_on_every_reuse_by_default() -> None:
    room = Room()
    origin = Origin(json(ETAG, (b"X-Total", b"5"), (b"Link", b"<n>"), body=b"[1]"), whole(304, (b"ETag", ETAG)))
    status, fields, body, outcome = await room.fetch(get(), origin)
    assert (status, body, outcome.status, outcome.stored) == (200, b"[1]", CacheStatus.MISS, Stored.STORED)
    assert first(fields, b"cache-status") == b"gateway; fwd=uri-miss; fwd-status=200; stored; ttl=0"
    room.clock.now += 5
    status, fields, body, outcome = await room.fetch(get(), origin)
    assert (status, body, outcome.status, outcome.stored) == (200, b"[1]", CacheStatus.REVALIDATED, Stored.FRESHENED)
    assert origin.condition() == ETAG
    assert (first(fields, b"x-total"), first(fields, b"link"), first(fields, b"age")) == (b"5", b"<n>", b"0")
    assert first(fields, b"cache-control") == b"max-age=0, private, must-revalidate"
    assert first(fields, b"cache-status") == b"gateway; fwd=stale; fwd-status=304; ttl=0"
    assert first(fields, b"content-length") == b"3"


async def test_a_changed_answer_replaces_the_stored_one() -> None:
    room = Room()
    origin = Origin(json(ETAG, body=b"[1]"), json(OTHER, body=b"[2]"), whole(304))
    await room.fetch(get(), origin)
    *_, body, outcome = await room.fetch(get(), origin)
    assert (body, outcome.status) == (b"[2]", CacheStatus.UPDATED)
    *_, body, outcome = await room.fetch(get(), origin)
    assert (body, outcome.status) == (b"[2]", CacheStatus.REVALIDATED)
    assert origin.condition() == OTHER


async def test_a_routes_lifetime_is_served_without_asking_and_ends_with_access_ttl() -> None:
    room = Room(PrivatePolicy(access_ttl_s=60.0, route_ttl_s={"GET /api/v4/projects/:id": 3600.0}))
    origin = Origin(json(ETAG, body=b"[1]"), whole(304))
    await room.fetch(get(), origin)
    room.clock.now += 59
    _, fields, body, outcome = await room.fetch(get(), origin)
    assert (body, outcome.status, outcome.age_s) == (b"[1]", CacheStatus.HIT, 59)
    assert first(fields, b"age") == b"59"
    assert first(fields, b"cache-status") == b"gateway; hit; ttl=1"
    room.clock.now += 1
    *_, outcome = await room.fetch(get(), origin)
    assert outcome.status is CacheStatus.REVALIDATED


async def test_what_belongs_to_one_answer_is_never_replayed() -> None:
    room = Room(KEPT)
    own: Fields = tuple(
        (name, b"one")
        for name in (b"RateLimit-Remaining", b"X-Request-Id", b"X-Runtime", b"X-Gitlab-Meta", b"Date", b"Cache-Status")
    )
    origin = Origin(
        json(ETAG, *own), whole(304, (b"X-Request-Id", b"two"), (b"RateLimit-Remaining", b"9"), (b"Date", b"now"))
    )
    await room.fetch(get(), origin)
    _, fields, _, outcome = await room.fetch(get(), origin)
    assert outcome.status is CacheStatus.HIT
    assert not [value for _, value in fields if value == b"one"]
    room.clock.now += 31
    _, fields, *_ = await room.fetch(get(), origin)
    assert (first(fields, b"x-request-id"), first(fields, b"ratelimit-remaining"), first(fields, b"date")) == (
        b"two",
        b"9",
        b"now",
    )
    _, fields, *_ = await room.fetch(get(), origin)
    assert not {b"x-request-id", b"date", b"set-cookie"} & {name.lower() for name, _ in fields}


async def test_a_304s_own_pagination_replaces_the_stored() -> None:
    room = Room(KEPT)
    origin = Origin(
        json(ETAG, (b"Link", b"<old>"), (b"X-Total", b"5")), whole(304, (b"Link", b"<new>"), (b"X-Total", b"6"))
    )
    await room.fetch(get(), origin)
    room.clock.now += 31
    for _ in range(2):
        _, fields, *_ = await room.fetch(get(), origin)
        assert (values(fields, b"link"), values(fields, b"x-total")) == ([b"<new>"], [b"6"])


async def test_the_clients_own_validator_is_answered() -> None:
    room = Room(KEPT)
    origin = Origin(json(ETAG, (b"Link", b"<n>"), body=b"[1]"), whole(304))
    await room.fetch(get(), origin)
    for later in (0, 31):
        room.clock.now += later
        status, fields, body, _ = await room.fetch(get(b"/api/v4/projects/42", (b"If-None-Match", ETAG)), origin)
        assert (status, body, first(fields, b"etag"), first(fields, b"link")) == (304, b"", ETAG, b"<n>")
        assert first(fields, b"content-length") is None
        status, *_ = await room.fetch(get(b"/api/v4/projects/42", (b"If-None-Match", b'"other"')), origin)
        assert status == 200


async def test_with_nothing_stored_the_clients_validator_goes_up_unless_a_lifetime_makes_the_body_worth_having() -> None:
    conditional = get(b"/api/v4/projects/42", (b"If-None-Match", ETAG))
    origin = Origin(whole(304, (b"ETag", ETAG)))
    status, *_, outcome = await Room().fetch(conditional, origin)
    assert (status, outcome.status, outcome.stored, origin.condition()) == (304, CacheStatus.MISS, Stored.STATUS, ETAG)
    origin = Origin(json(ETAG))
    status, *_, outcome = await Room(KEPT).fetch(conditional, origin)
    assert (outcome.stored, origin.condition()) == (Stored.STORED, None)


async def test_a_304_about_another_answer_is_asked_again_in_full() -> None:
    room = Room()
    origin = Origin(json(ETAG, body=b"[1]"), whole(304, (b"ETag", OTHER)), json(OTHER, body=b"[2]"))
    await room.fetch(get(), origin)
    *_, body, outcome = await room.fetch(get(), origin)
    assert (body, outcome.status, origin.asked[-1]) == (b"[2]", CacheStatus.UPDATED, ())


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_who_may_no_longer_see_it_loses_it(status: int) -> None:
    room = Room()
    origin = Origin(json(ETAG), whole(status), json(ETAG))
    await room.fetch(get(), origin)
    *_, outcome = await room.fetch(get(), origin)
    assert outcome.stored is Stored.DROPPED
    *_, outcome = await room.fetch(get(), origin)
    assert (outcome.status, origin.condition()) == (CacheStatus.MISS, None)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(get(), id="get"),
        pytest.param(CacheRequest("HEAD", b"/api/v4/projects/42", (), ISSUES, b"p"), id="head"),
        pytest.param(CacheRequest("POST", b"/api/v4/projects/1/issues", (), NEW_ISSUE, b"p"), id="write"),
    ],
)
async def test_a_401_takes_the_whole_partition_and_no_other(request_: CacheRequest) -> None:
    room = Room(KEPT)
    origin = Origin(json(ETAG), json(ETAG), whole(401), json(ETAG))
    await room.fetch(get(b"/api/v4/projects/7"), origin)
    await room.fetch(get(b"/api/v4/projects/7", partition=b"q"), origin)
    await room.fetch(request_, origin)
    assert (await room.fetch(get(b"/api/v4/projects/7"), origin))[3].status is CacheStatus.MISS
    assert (await room.fetch(get(b"/api/v4/projects/7", partition=b"q"), origin))[3].status is CacheStatus.HIT


async def test_dropping_a_partition() -> None:
    room = Room(KEPT)
    origin = Origin(json(ETAG), json(ETAG))
    await room.fetch(get(), origin)
    await room.cache.drop_partition(b"p")
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.MISS


@pytest.mark.parametrize(
    ("write", "answer", "gone"),
    [
        pytest.param(b"/api/v4/projects/42/issues", whole(201), True, id="same-project"),
        pytest.param(b"/api/v4/projects/42", whole(202), True, id="itself"),
        pytest.param(b"/api/v4/projects/43/issues", whole(201), False, id="another-project"),
        pytest.param(b"/api/v4/projects/42/issues", whole(409), False, id="refused"),
        pytest.param(b"/api/v4/projects/42/issues", whole(500), True, id="may-have-happened"),
        pytest.param(b"/api/v4/projects/42/issues", DOWN, True, id="answer-lost"),
        pytest.param(b"/api/v4/projects/42/issues", AWAY, False, id="never-sent"),
        pytest.param(b"/api/v4/projects/42/issues", whole(503), False, id="maintenance"),
    ],
)
async def test_a_write_takes_what_it_may_have_changed_for_everybody(
    write: bytes, answer: Reply | Exception, gone: bool
) -> None:
    room = Room(KEPT)
    origin = Origin(json(ETAG), answer, json(ETAG))
    await room.fetch(get(), origin)
    with contextlib.suppress(Rejection):
        await room.fetch(CacheRequest("POST", write, (), NEW_ISSUE, b"somebody-else"), origin)
    assert (await room.fetch(get(), origin))[3].status is (CacheStatus.MISS if gone else CacheStatus.HIT)


async def test_a_post_that_reads_takes_nothing() -> None:
    room = Room(KEPT)
    origin = Origin(json(ETAG), whole(200))
    await room.fetch(get(), origin)
    markdown = msgspec.structs.replace(NEW_ISSUE, access=Access.READ)
    await room.fetch(CacheRequest("POST", b"/api/v4/projects/42/markdown", (), markdown, b"p"), origin)
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.HIT


async def test_an_answer_overtaken_by_a_write_is_served_and_not_kept() -> None:
    room = Room(KEPT)

    async def slow(given: Fields) -> Reply:
        await room.fetch(CacheRequest("PUT", b"/api/v4/projects/42", (), NEW_ISSUE, b"p"), Origin(whole(200)))
        return json(ETAG, body=b"[old]")

    *_, body, outcome = await room.fetch(get(), Origin(slow))
    assert (body, outcome.stored) == (b"[old]", Stored.INVALIDATED)
    assert (await room.fetch(get(), Origin(json(ETAG))))[3].status is CacheStatus.MISS


@pytest.mark.parametrize("failure", [whole(503), whole(429), whole(500), DOWN])
async def test_the_last_answer_stands_in_where_the_operator_allows(failure: Reply | Exception) -> None:
    room = Room(PrivatePolicy(stale_if_error_s=600.0))
    origin = Origin(json(ETAG, body=b"[1]"), failure)
    await room.fetch(get(), origin)
    room.clock.now += 45
    status, fields, body, outcome = await room.fetch(get(), origin)
    assert (status, body, outcome.status) == (200, b"[1]", CacheStatus.STALE)
    assert first(fields, b"cache-status") == b"gateway; hit; ttl=-45; detail=stale-if-error"
    assert first(fields, b"age") == b"45"


async def test_nothing_stands_in_for_a_refused_credential_of_ours() -> None:
    room = Room(PrivatePolicy(stale_if_error_s=600.0))
    refused = Rejection(Code.BROKER_CREDENTIAL_REFUSED, 502, "502 Bad Gateway", source=Source.UPSTREAM)
    origin = Origin(json(ETAG), refused)
    await room.fetch(get(), origin)
    with pytest.raises(Rejection):
        await room.fetch(get(), origin)


async def test_failures_pass_where_he_does_not() -> None:
    room = Room()
    origin = Origin(json(ETAG), whole(503), DOWN, Rejection(Code.INTERNAL, 500, "x", source=Source.INTERNAL))
    await room.fetch(get(), origin)
    status, *_ = await room.fetch(get(), origin)
    assert status == 503
    for _ in range(2):
        with pytest.raises(Rejection):
            await room.fetch(get(), origin)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        pytest.param(get(b"/x", (b"Range", b"bytes=0-1")), CacheReason.RANGE, id="range"),
        pytest.param(get(b"/x", (b"If-Match", b"*")), CacheReason.CONDITIONAL, id="if-match"),
        pytest.param(get(b"/x", (b"Cookie", b"a=b")), CacheReason.SESSION, id="cookie"),
        pytest.param(get(b"/x", (b"Cache-Control", b"no-store")), CacheReason.REQUEST, id="no-store"),
        pytest.param(get(b"/x", partition=b""), CacheReason.NO_PARTITION, id="nobody's"),
        pytest.param(CacheRequest("HEAD", b"/x", (), ISSUES, b"p"), CacheReason.METHOD, id="head"),
    ],
)
async def test_past_the_cache(request_: CacheRequest, reason: CacheReason) -> None:
    room = Room(KEPT)
    origin = Origin(json(ETAG), json(ETAG))
    for _ in range(2):
        _, fields, _, outcome = await room.fetch(request_, origin)
        assert (outcome.status, outcome.reason) == (CacheStatus.BYPASS, reason)
        assert first(fields, b"cache-status")
    assert len(room.store) == 0


async def test_a_store_that_is_away_is_a_bypass() -> None:
    cache = PrivateCache(Unavailable(), KEPT)
    _, body, outcome = await drain(await cache.fetch(get(), Origin(json(ETAG, body=b"[1]")), Clock()))
    assert (body, outcome.status, outcome.reason) == (b"[1]", CacheStatus.BYPASS, CacheReason.STORE_UNAVAILABLE)
    await cache.close()


async def test_an_answer_that_may_not_be_kept_takes_the_one_before_it() -> None:
    room = Room()
    origin = Origin(json(ETAG), json(OTHER, (b"Set-Cookie", b"a=b")), json(ETAG))
    await room.fetch(get(), origin)
    *_, outcome = await room.fetch(get(), origin)
    assert outcome.stored is Stored.SET_COOKIE
    await room.fetch(get(), origin)
    assert origin.condition() is None


async def test_a_304_that_forbids_storing_takes_the_entry() -> None:
    room = Room()
    origin = Origin(json(ETAG, body=b"[1]"), whole(304, (b"Cache-Control", b"no-store")), json(ETAG))
    await room.fetch(get(), origin)
    *_, body, outcome = await room.fetch(get(), origin)
    assert (body, outcome.stored) == (b"[1]", Stored.NO_STORE)
    await room.fetch(get(), origin)
    assert origin.condition() is None


async def test_the_clients_directives_are_honoured() -> None:
    room = Room(KEPT)
    origin = Origin(json(ETAG), whole(304))
    with pytest.raises(Rejection) as refused:
        await room.fetch(get(b"/api/v4/projects/42", (b"Cache-Control", b"only-if-cached")), origin)
    assert (refused.value.status, refused.value.code) == (504, Code.ONLY_IF_CACHED)
    await room.fetch(get(), origin)
    *_, outcome = await room.fetch(get(b"/api/v4/projects/42", (b"Cache-Control", b"only-if-cached")), origin)
    assert outcome.status is CacheStatus.HIT
    *_, outcome = await room.fetch(get(b"/api/v4/projects/42", (b"Cache-Control", b"no-cache")), origin)
    assert (outcome.status, outcome.reason) == (CacheStatus.REVALIDATED, CacheReason.REQUEST)


async def test_vary_on_a_field_outside_the_key_is_honoured() -> None:
    room = Room(KEPT)
    origin = Origin(json(ETAG, (b"Vary", b"User-Agent")), json(OTHER, (b"Vary", b"User-Agent")))
    await room.fetch(get(b"/x", (b"User-Agent", b"a")), origin)
    assert (await room.fetch(get(b"/x", (b"User-Agent", b"a")), origin))[3].status is CacheStatus.HIT
    *_, outcome = await room.fetch(get(b"/x", (b"User-Agent", b"b")), origin)
    assert (outcome.status, outcome.reason) == (CacheStatus.MISS, CacheReason.VARY_MISS)


async def test_links_made_for_one_host_are_never_given_to_another() -> None:
    """Without a public URL the answer's links lead to the host that its client named: not to be chosen for others."""
    room = Room(KEPT)
    origin = Origin(json(ETAG, (b"Link", b"<https://evil/>")), json(ETAG, (b"Link", b"<https://good/>")))
    for host in (b"https://evil", b"https://good"):
        _, fields, *_ = await room.fetch(msgspec.structs.replace(get(), reached_as=host), origin)
        assert first(fields, b"link") == b"<" + host + b"/>"


async def test_an_unvalidatable_answer_with_a_lifetime_is_fetched_anew() -> None:
    room = Room(KEPT)
    plain = whole(200, (b"Content-Type", b"application/json"), body=b"{}")
    origin = Origin(plain, plain)
    await room.fetch(get(), origin)
    room.clock.now += 31
    *_, outcome = await room.fetch(get(), origin)
    assert (outcome.status, origin.asked[-1]) == (CacheStatus.UPDATED, ())


# Streams

LARGE = [b"x" * 200_000, b"y" * 200_000]
JSON = (b"Content-Type", b"application/json")


async def test_a_streamed_answer_is_kept_when_its_last_octet_came() -> None:
    room = Room()
    origin = Origin(streamed(200, JSON, (b"ETag", ETAG), chunks=list(LARGE)))
    room.store = MemoryCacheStore(1 << 30, room.clock)
    room.cache = PrivateCache(room.store, KEPT)
    reply, outcome = await room.cache.fetch(get(), origin, room.clock)
    assert reply.chunks is not None
    seen = []
    async for chunk in reply.chunks:
        assert len(room.store) == 0, "half an answer is never visible"
        seen.append(chunk)
    assert len(room.store) == 1
    reply.release()
    assert outcome.stored is Stored.STORED
    _, fields, body, outcome = await room.fetch(get(), Origin())
    assert (body, outcome.status) == (b"".join(LARGE), CacheStatus.HIT)
    assert first(fields, b"content-length") == b"400000"


async def test_a_client_that_leaves_half_way_stores_nothing_and_drops_what_was_there() -> None:
    room = Room()
    origin = Origin(json(ETAG), streamed(200, JSON, (b"ETag", OTHER), chunks=list(LARGE)), json(ETAG))
    await room.fetch(get(), origin)
    reply, outcome = await room.cache.fetch(get(), origin, room.clock)
    assert reply.chunks is not None
    await anext(reply.chunks)
    reply.release()
    assert (outcome.stored, origin.held) == (Stored.INCOMPLETE, 0)
    await reply.chunks.aclose()  # type: ignore[attr-defined]
    await room.fetch(get(), origin)
    assert origin.condition() is None


async def test_an_upstream_that_dies_in_a_small_body_is_a_refusal_not_half_an_answer() -> None:
    room = Room(KEPT)
    origin = Origin(streamed(200, JSON, (b"ETag", ETAG), (b"Content-Length", b"9"), chunks=[b"[", DOWN]), json(ETAG))
    with pytest.raises(Rejection):
        await room.fetch(get(), origin)
    assert origin.held == 0
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.MISS


async def test_a_body_too_large_streams_past() -> None:
    room = Room(PrivatePolicy(ttl_s=30.0, max_entry_bytes=300_000))
    origin = Origin(streamed(200, JSON, (b"ETag", ETAG), chunks=list(LARGE)), json(ETAG))
    *_, body, outcome = await room.fetch(get(), origin)
    assert (len(body), outcome.stored) == (400_000, Stored.TOO_LARGE)
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.MISS


# Collapsing


class Gate:
    """An origin that answers when it is let."""

    def __init__(self, *replies: Reply | Exception) -> None:
        self.replies = list(replies)
        self.open = asyncio.Event()
        self.asked = 0

    async def __call__(self, given: Fields) -> Reply:
        self.asked += 1
        answer = self.replies.pop(0)
        await self.open.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def together(
    room: Room, gate: Callable[[Fields], Awaitable[Reply]], requests: list[CacheRequest]
) -> list[asyncio.Task[tuple[Reply, CacheOutcome]]]:
    tasks = [asyncio.ensure_future(room.cache.fetch(request, gate, room.clock)) for request in requests]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_identical_requests_in_flight_become_one() -> None:
    room, gate = Room(), Gate(json(ETAG, body=b"[1]"))
    tasks = await together(room, gate, [get()] * 20)
    gate.open.set()
    results = [await drain(await task) for task in tasks]
    assert gate.asked == 1
    assert {body for _, body, _ in results} == {b"[1]"}
    assert [outcome.status for *_, outcome in results] == [CacheStatus.MISS] + [CacheStatus.COLLAPSED] * 19
    assert first(results[1][0].fields, b"cache-status") == b"gateway; fwd=uri-miss; fwd-status=200; collapsed; ttl=0"


async def test_revalidations_collapse_too() -> None:
    room = Room()
    await room.fetch(get(), Origin(json(ETAG, body=b"[1]")))
    gate = Gate(whole(304))
    tasks = await together(room, gate, [get()] * 5)
    gate.open.set()
    results = [await drain(await task) for task in tasks]
    assert gate.asked == 1
    assert {body for _, body, _ in results} == {b"[1]"}
    assert results[-1][2].upstream_status == 304


async def test_partitions_never_collapse_into_one() -> None:
    room, gate = Room(), Gate(json(ETAG, body=b"[p]"), json(ETAG, body=b"[q]"))
    tasks = await together(room, gate, [get(partition=b"p"), get(partition=b"q")])
    assert gate.asked == 2
    gate.open.set()
    assert [(await drain(await task))[1] for task in tasks] == [b"[p]", b"[q]"]


async def test_a_failing_leader_fails_nobody_else() -> None:
    room, gate = Room(KEPT), Gate(DOWN, json(ETAG, body=b"[1]"))
    tasks = await together(room, gate, [get()] * 3)
    gate.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], Rejection)
    assert gate.asked == 2
    for result in results[1:]:
        assert isinstance(result, tuple)
        assert (await drain(result))[1] == b"[1]"


async def test_nobody_shares_a_variant_that_is_not_his() -> None:
    room, gate = Room(), Gate(*[json(ETAG, (b"Vary", b"User-Agent"), body=body) for body in (b"[a]", b"[b]")])
    tasks = await together(room, gate, [get(b"/x", (b"User-Agent", agent)) for agent in (b"a", b"b")])
    gate.open.set()
    assert [(await drain(await task))[1] for task in tasks] == [b"[a]", b"[b]"]


async def test_a_cancelled_leader_hands_over() -> None:
    room, gate = Room(), Gate(json(ETAG), json(ETAG, body=b"[2]"))
    tasks = await together(room, gate, [get()] * 3)
    tasks[0].cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert gate.asked == 2
    gate.open.set()
    assert [(await drain(await task))[1] for task in tasks[1:]] == [b"[2]"] * 2


async def test_an_answer_that_cannot_be_shared_sends_everybody_up_at_once() -> None:
    room, gate = Room(), Gate(*[json(ETAG, (b"Set-Cookie", b"%d" % number)) for number in range(4)])
    tasks = await together(room, gate, [get()] * 4)
    gate.open.set()
    results = [await drain(await task) for task in tasks]
    assert gate.asked == 4
    assert len({first(head.fields, b"set-cookie") for head, *_ in results}) == 4


async def test_nobody_waits_for_a_stream_that_its_client_reads_slowly() -> None:
    room, gate = Room(), Gate(*[streamed(200, JSON, (b"ETag", ETAG), chunks=list(LARGE)) for _ in range(2)])
    tasks = await together(room, gate, [get()] * 2)
    gate.open.set()
    replies = [await task for task in tasks]
    assert gate.asked == 2
    for answered in replies:
        assert len((await drain(answered))[1]) == 400_000


async def test_who_waited_too_long_goes_alone() -> None:
    room = Room()
    room.cache = PrivateCache(room.store, PrivatePolicy(), wait_s=0.0)
    gate = Gate(json(ETAG), json(ETAG))
    tasks = await together(room, gate, [get()] * 2)
    assert gate.asked == 2
    gate.open.set()
    for task in tasks:
        await drain(await task)


async def test_a_stand_in_is_shared_as_one() -> None:
    room = Room(PrivatePolicy(stale_if_error_s=600.0))
    await room.fetch(get(), Origin(json(ETAG, body=b"[1]")))
    room.clock.now += 1
    gate = Gate(whole(503))
    tasks = await together(room, gate, [get()] * 3)
    gate.open.set()
    results = [await drain(await task) for task in tasks]
    assert [outcome.status for *_, outcome in results] == [CacheStatus.STALE] * 3


async def test_who_asks_after_a_write_does_not_get_what_was_asked_before_it() -> None:
    room, gate = Room(), Gate(json(ETAG, body=b"[old]"), json(OTHER, body=b"[new]"))
    before = await together(room, gate, [get()])
    await room.fetch(CacheRequest("PUT", b"/api/v4/projects/42", (), NEW_ISSUE, b"p"), Origin(whole(200)))
    after = await together(room, gate, [get()])
    assert gate.asked == 2
    gate.open.set()
    assert (await drain(await after[0]))[1] == b"[new]"
    assert (await drain(await before[0]))[1] == b"[old]"


PAGE = msgspec.structs.replace(get().operation, may_hold_secret=True)


async def test_a_page_with_a_runners_token_is_served_and_never_stored() -> None:
    room = Room(KEPT)
    request = msgspec.structs.replace(get(), operation=PAGE)
    origin = Origin(json(ETAG, body=b'{"id":1,"runners_token":"GR13"}'), json(ETAG, body=b'{"id":1}'))
    _, fields, body, outcome = await room.fetch(request, origin)
    assert (body, outcome.stored) == (b'{"id":1,"runners_token":"GR13"}', Stored.SECRET)
    assert b"stored" not in (first(fields, b"cache-status") or b"")
    assert len(room.store) == 0
    *_, outcome = await room.fetch(request, origin)
    assert (outcome.status, outcome.stored) == (CacheStatus.MISS, Stored.STORED)


async def test_a_runners_token_that_appears_takes_the_stored_page_with_it() -> None:
    room = Room()
    request = msgspec.structs.replace(get(), operation=PAGE)
    origin = Origin(json(ETAG, body=b'{"id":1}'), json(OTHER, body=b'{"id":1,"runners_token":"GR13"}'))
    await room.fetch(request, origin)
    *_, outcome = await room.fetch(request, origin)
    assert outcome.stored is Stored.SECRET
    assert len(room.store) == 0


SHA = b"0123456789abcdef0123456789abcdef01234567"
TREE = msgspec.structs.replace(
    get(target=b"/api/v4/projects/1/repository/tree?ref=" + SHA),
    operation=msgspec.structs.replace(get().operation, name="GET /api/v4/projects/:id/repository/tree"),
)


async def test_what_a_full_sha_names_is_reused_until_access_is_asked_again() -> None:
    room = Room()
    origin = Origin(json(ETAG, body=b"[]"), whole(304), whole(404))
    await room.fetch(TREE, origin)
    room.clock.now += 59
    assert (await room.fetch(TREE, origin))[3].status is CacheStatus.HIT
    room.clock.now += 3 * 86_400  # the body is still there, and its caller is judged anew
    assert (await room.fetch(TREE, origin))[3].status is CacheStatus.REVALIDATED
    room.clock.now += 60
    assert (await room.fetch(TREE, origin))[0] == 404
    assert len(room.store) == 0


async def test_immutability_can_be_switched_off() -> None:
    room = Room(PrivatePolicy(immutable=False))
    origin = Origin(json(ETAG, body=b"[]"), whole(304))
    await room.fetch(TREE, origin)
    assert (await room.fetch(TREE, origin))[3].status is CacheStatus.REVALIDATED


async def test_nothing_is_stored_while_a_purge_holds() -> None:
    room = Room(PrivatePolicy(ttl_s=30.0, hold_s=3.0))
    origin = Origin(*(json(ETAG, body=b"%d" % number) for number in range(5)))
    await room.fetch(get(), origin)
    await room.fetch(NEW, Origin(json(ETAG, body=b"{}")))
    assert (await room.fetch(get(), origin))[3].stored is Stored.HELD
    room.clock.now += 2.9
    assert (await room.fetch(get(), origin))[3].stored is Stored.HELD
    room.clock.now += 0.2
    assert (await room.fetch(get(), origin))[3].stored is Stored.STORED
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.HIT


NEW = CacheRequest("PUT", get().target, (), NEW_ISSUE, b"someone")


@pytest.mark.parametrize("spelt", [b"g%2FP", b"g%2fp", b"G%2Fp"])
async def test_a_write_by_one_name_of_a_project_takes_answers_by_the_other(spelt: bytes) -> None:
    room = Room(KEPT)
    page = json(ETAG, body=b'{"id":42,"path_with_namespace":"g/p"}')
    by_path, by_number = get(target=b"/api/v4/projects/" + spelt), get(target=b"/api/v4/projects/42")
    for read, write in ((by_path, by_number), (by_number, by_path)):
        origin = Origin(page, page)
        await room.fetch(read, origin)
        assert (await room.fetch(read, origin))[3].status is CacheStatus.HIT
        await room.fetch(msgspec.structs.replace(write, method="PUT", operation=NEW_ISSUE), Origin(whole(200)))
        assert (await room.fetch(read, origin))[3].status is CacheStatus.MISS


async def test_lifetimes_hang_on_hooks_where_there_are_some() -> None:
    room = Room()
    watch = HookWatch(room.store, room.clock, 900.0)
    room.cache = PrivateCache(room.store, KEPT, hooks=watch)
    origin = Origin(json(ETAG, body=b"[]"), whole(304), whole(304))
    await room.fetch(get(), origin)
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.REVALIDATED, "none ever came"
    await watch.heard()
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.HIT
    room.clock.now += 901
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.REVALIDATED
