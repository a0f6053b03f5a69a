from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import pytest

from gateway.cache import CacheRequest, PrivateCache
from gateway.cache.hook_watch import HookWatch
from gateway.core.cache_status import CacheReason, CacheStatus, Stored
from gateway.core.cache_tags import ANONYMOUS
from gateway.core.catalogue import Access, Operation, Reference, ReferenceKind, Surface
from gateway.core.errors import Code, Rejection, Source
from gateway.core.messages import Fields, ResponseHead, first, values
from gateway.core.private_caching import PrivatePolicy
from gateway.ports import Lookup
from gateway.reply import Reply

from .origin import ISSUES, NEW_ISSUE, Clock, Origin, drain, get, json, whole
from .private_room import AWAY, DOWN, ETAG, KEPT, OTHER, Room

ONLY_IF_CACHED = (b"Cache-Control", b"only-if-cached")


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
    assert (body, outcome.status) == (b"[1]", CacheStatus.HIT)
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
    origin, room = Origin(json(ETAG)), Room(KEPT)
    status, fields, body, outcome = await room.fetch(conditional, origin)
    assert (status, body, outcome.stored, origin.condition()) == (304, b"", Stored.STORED, None)
    assert (first(fields, b"etag"), first(fields, b"content-length")) == (ETAG, None)
    assert first(fields, b"cache-status") == b"gateway; fwd=uri-miss; fwd-status=200; stored; ttl=30"
    status, _, body, _ = await room.fetch(get(), origin)
    assert (status, body) == (200, b"[]")


@pytest.mark.parametrize("etag", [OTHER, OTHER.removeprefix(b"W/"), b"*"])
async def test_who_holds_what_gitlab_sends_instead_of_what_is_stored_is_told_so(etag: bytes) -> None:
    room = Room()
    origin = Origin(json(ETAG, body=b"[1]"), json(OTHER, body=b"[2]"))
    await room.fetch(get(), origin)
    conditional = get(b"/api/v4/projects/42", (b"If-None-Match", etag))
    status, fields, body, outcome = await room.fetch(conditional, origin)
    assert (status, first(fields, b"etag"), body, origin.condition()) == (304, OTHER, b"", ETAG)
    assert (outcome.status, outcome.upstream_status, outcome.stored) == (CacheStatus.UPDATED, 200, Stored.STORED)


async def test_what_is_no_etag_is_nothing_to_hold() -> None:
    conditional = get(b"/api/v4/projects/42", (b"If-None-Match", b"7"))
    status, _, body, _ = await Room(KEPT).fetch(conditional, Origin(json(b"7", body=b"[1]")))
    assert (status, body) == (200, b"[1]")


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


@pytest.mark.parametrize("target", [b"/api/v4/projects/42", b"/api/v4/projects/7"])
async def test_a_401_to_nobody_takes_what_it_is_about_and_no_more(target: bytes) -> None:
    """Anybody may ask for what takes a credential: that must not empty the cache for all who have none."""
    room = Room(KEPT)
    origin = Origin(json(ETAG), whole(401), whole(401), json(ETAG))
    await room.fetch(get(b"/api/v4/projects/7", partition=ANONYMOUS), origin)
    afresh = (b"Cache-Control", b"no-cache")
    assert (await room.fetch(get(target, afresh, partition=ANONYMOUS), origin))[0] == 401
    await room.fetch(CacheRequest("POST", b"/api/v4/user/keys", (), MUTATION, ANONYMOUS), origin)
    *_, outcome = await room.fetch(get(b"/api/v4/projects/7", partition=ANONYMOUS), origin)
    assert outcome.status is (CacheStatus.MISS if target.endswith(b"7") else CacheStatus.HIT)


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


PUSH = Operation(
    "POST /*repository_path.git/git-receive-pack",
    Access.WRITE,
    Surface.GIT,
    references=(Reference(0, ReferenceKind.PROJECT, end=2, repository=True),),
)
MUTATION = Operation("POST /api/graphql", Access.WRITE, Surface.GRAPHQL)


def push(answer: Reply) -> tuple[CacheRequest, Origin]:
    return CacheRequest("POST", b"/g/p.git/git-receive-pack", (), PUSH, b"somebody-else"), Origin(answer)


@pytest.mark.parametrize("left", [False, True])
async def test_a_push_takes_the_project_before_its_answer_and_at_its_end(left: bool) -> None:
    """GitLab answers before the branches are moved: what is read meanwhile is old again."""
    room = Room(KEPT)
    branches = get(target=b"/api/v4/projects/g%2Fp/repository/branches")
    origin = Origin(*[json(ETAG)] * 3)

    async def progress() -> AsyncIterator[bytes]:
        yield b"remote: checking"
        yield b"ok refs/heads/main"

    await room.fetch(branches, origin)
    request, gitlab = push(Reply(ResponseHead(200, ()), None, progress()))
    reply, _ = await room.cache.fetch(request, gitlab, room.clock)
    assert (await room.fetch(branches, origin))[3].status is CacheStatus.MISS
    assert (await room.fetch(branches, origin))[3].status is CacheStatus.HIT
    assert isinstance(reply.chunks, AsyncGenerator)
    assert await anext(reply.chunks) == b"remote: checking"
    if left:
        await reply.chunks.aclose()
    else:
        assert [chunk async for chunk in reply.chunks] == [b"ok refs/heads/main"]
    reply.release()
    assert (await room.fetch(branches, origin))[3].status is CacheStatus.MISS


@pytest.mark.parametrize("pieces", [False, True])
async def test_what_a_write_made_elsewhere_takes_that_place_too(pieces: bool) -> None:
    room = Room(KEPT)
    list_ = get(target=b"/api/v4/projects/42/merge_requests")
    body = b'{"project_id":42,"source_project_id":43,"target_project_id":42}'

    async def bit_by_bit() -> AsyncIterator[bytes]:
        yield body[:20]
        yield body[20:]

    head = ResponseHead(201, ((b"Content-Type", b"application/json"),))
    answer = Reply(head, None, bit_by_bit()) if pieces else Reply(head, body)
    origin = Origin(json(ETAG), json(ETAG))
    await room.fetch(list_, origin)
    made = CacheRequest("POST", b"/api/v4/projects/43/merge_requests", (), NEW_ISSUE, b"somebody-else")
    assert (await room.fetch(made, Origin(answer)))[2] == body
    assert (await room.fetch(list_, origin))[3].status is CacheStatus.MISS


async def test_a_mutation_takes_what_its_caller_has() -> None:
    """Its address tells nobody what it changes."""
    room = Room(KEPT)
    origin = Origin(json(ETAG), json(ETAG), json(ETAG))
    theirs = msgspec.structs.replace(get(), partition=b"other")
    for request in (get(), theirs):
        await room.fetch(request, origin)
    await room.fetch(CacheRequest("POST", b"/api/graphql", (), MUTATION, get().partition), Origin(whole(200)))
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.MISS
    assert (await room.fetch(theirs, origin))[3].status is CacheStatus.HIT


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


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 410])
async def test_nothing_stands_in_for_what_gitlab_says(status: int) -> None:
    room = Room(PrivatePolicy(stale_if_error_s=600.0))
    origin = Origin(json(ETAG, body=b"[1]"), json(OTHER, body=b"[2]") if status == 200 else whole(status))
    await room.fetch(get(), origin)
    answered, _, body, outcome = await room.fetch(get(), origin)
    assert (answered, outcome.status) == (status, CacheStatus.UPDATED)
    assert body != b"[1]"


async def test_nothing_stands_in_where_gitlab_did_not_fail() -> None:
    room = Room(PrivatePolicy(stale_if_error_s=600.0))
    origin = Origin(json(ETAG), Rejection(Code.DRAINING, 503, "503 Service Unavailable", source=Source.INTERNAL))
    await room.fetch(get(), origin)
    with pytest.raises(Rejection):
        await room.fetch(get(), origin)


async def test_a_failure_takes_nothing_with_it() -> None:
    room = Room()
    origin = Origin(json(ETAG, body=b"[1]"), whole(500), whole(304, (b"ETag", ETAG)))
    await room.fetch(get(), origin)
    assert (await room.fetch(get(), origin))[0] == 500
    assert (await room.fetch(get(), origin))[2] == b"[1]"


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


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (get(b"/x", (b"Range", b"bytes=0-1"), ONLY_IF_CACHED), CacheReason.RANGE),
        (get(b"/x", (b"If-Modified-Since", b"x"), ONLY_IF_CACHED), CacheReason.CONDITIONAL),
        (get(b"/x", (b"Cache-Control", b"no-store, only-if-cached")), CacheReason.REQUEST),
        (get(b"/x", ONLY_IF_CACHED, partition=b""), CacheReason.NO_PARTITION),
        (msgspec.structs.replace(get(b"/x", ONLY_IF_CACHED), has_body=True), CacheReason.BODY),
        (msgspec.structs.replace(get(b"/x", ONLY_IF_CACHED), method="HEAD"), CacheReason.METHOD),
    ],
)
async def test_who_wants_a_stored_answer_or_none_is_not_led_past_the_cache(
    asked: CacheRequest, reason: CacheReason
) -> None:
    room, origin = Room(KEPT), Origin()
    with pytest.raises(Rejection) as refused:
        await room.fetch(asked, origin)
    assert (refused.value.status, refused.value.code) == (504, Code.ONLY_IF_CACHED)
    assert first(refused.value.headers, b"cache-status") == b"gateway; detail=" + reason.value.encode()


async def test_who_wants_a_stored_answer_or_none_gets_none_while_the_store_is_away() -> None:
    cache = PrivateCache(Unavailable(), KEPT)
    with pytest.raises(Rejection) as refused:
        await cache.fetch(get(b"/x", ONLY_IF_CACHED), Origin(), Clock())
    assert refused.value.code is Code.ONLY_IF_CACHED


async def test_a_write_goes_up_whatever_it_says_of_the_cache() -> None:
    """RFC 9111 §4: a cache must write unsafe requests through."""
    written = msgspec.structs.replace(
        get(b"/api/v4/projects/42/issues", ONLY_IF_CACHED), method="POST", operation=NEW_ISSUE
    )
    status, *_ = await Room(KEPT).fetch(written, Origin(whole(201)))
    assert status == 201


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
    await watch.record_hook()
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.HIT
    room.clock.now += 901
    assert (await room.fetch(get(), origin))[3].status is CacheStatus.REVALIDATED
