"""The origin asked: validators, variants, pieces, and what stands in when it fails."""

from __future__ import annotations

import asyncio

import pytest

from gateway.cache import SharedPolicy
from gateway.core.cache_status import CacheReason, CacheStatus, Stored
from gateway.core.errors import Code, Rejection, Source
from gateway.core.http_date import format_date
from gateway.core.messages import Fields, ResponseHead, first
from gateway.reply import Reply

from .origin import NOW, Origin, drain, streamed, whole
from .shared_room import CAPABILITY, DOWN, FRESH, Room, ask


async def test_a_stale_answer_is_validated_and_freshened() -> None:
    room = Room()
    origin = Origin(
        whole(200, FRESH, (b"ETag", b'"a"'), (b"Last-Modified", format_date(NOW - 5)), body=b"x"),
        whole(304, (b"Cache-Control", b"max-age=600"), (b"A", b"2")),
    )
    await room.fetch(ask(), origin)
    room.clock.now += 61
    status, fields, body, outcome = await room.fetch(ask((b"If-None-Match", b'"mine"')), origin)
    assert (status, body, outcome.status, outcome.stored) == (200, b"x", CacheStatus.REVALIDATED, Stored.FRESHENED)
    assert origin.condition() == b'"a"'
    assert first(origin.asked[-1], b"if-modified-since") == format_date(NOW - 5)
    assert first(fields, b"a") == b"2"
    room.clock.now += 500
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.HIT


async def test_without_a_validator_of_ours_the_clients_304_passes_and_changes_nothing() -> None:
    room, origin = Room(), Origin(whole(200, FRESH, body=b"x"), whole(304, (b"ETag", b'"a"')))
    await room.fetch(ask(), origin)
    room.clock.now += 61
    status, *_, outcome = await room.fetch(ask((b"If-None-Match", b'"a"')), origin)
    assert (status, outcome.stored, origin.condition()) == (304, Stored.STATUS, b'"a"')


async def test_variants_live_side_by_side() -> None:
    room = Room()
    vary = (b"Vary", b"Foo")
    origin = Origin(whole(200, FRESH, vary, body=b"1"), whole(200, FRESH, vary, body=b"2"))
    for value in (b"1", b"2", b"1", b"2"):
        assert (await room.fetch(ask((b"Foo", value)), origin))[2] == value
    assert len(origin.asked) == 2


async def test_the_origin_may_know_a_variant_to_be_another_requests_too() -> None:
    room = Room()
    vary = (b"Vary", b"Foo")
    origin = Origin(
        whole(200, FRESH, vary, (b"ETag", b'"1"'), body=b"1"),
        whole(200, FRESH, vary, (b"ETag", b'"2"'), body=b"2"),
        whole(304, vary, (b"ETag", b'"1"')),
        whole(304, vary, (b"ETag", b'"unknown"')),
        whole(200, FRESH, vary, (b"ETag", b'"4"'), body=b"4"),
    )
    await room.fetch(ask((b"Foo", b"1")), origin)
    await room.fetch(ask((b"Foo", b"2")), origin)
    *_, body, outcome = await room.fetch(ask((b"Foo", b"3")), origin)
    assert (body, outcome.status, outcome.reason) == (b"1", CacheStatus.REVALIDATED, CacheReason.VARY_MISS)
    assert set((origin.condition() or b"").split(b", ")) == {b'"1"', b'"2"'}
    assert (await room.fetch(ask((b"Foo", b"3")), origin))[3].status is CacheStatus.HIT
    assert (await room.fetch(ask((b"Foo", b"4")), origin))[2] == b"4"
    assert origin.asked[-1] == (CAPABILITY,)


async def test_a_304_that_turns_to_vary_on_everything_takes_the_entry() -> None:
    room = Room()
    origin = Origin(whole(200, FRESH, (b"ETag", b'"a"'), body=b"x"), whole(304, (b"Vary", b"*")), whole(200))
    await room.fetch(ask(), origin)
    room.clock.now += 61
    *_, body, outcome = await room.fetch(ask(), origin)
    assert (body, outcome.stored) == (b"x", Stored.VARY_ANY)
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.MISS


ALICES = ((b"ETag", b'"a"'), (b"Set-Cookie", b"session=alice"))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("said", "authorized", "asked", "stored", "kept"),
    [
        (b"max-age=60", True, (), Stored.AUTHORIZATION, True),
        (b"private, max-age=60", False, (), Stored.PRIVATE, False),
        (b"max-age=60", False, ((b"Cache-Control", b"no-store"),), Stored.REQUEST, True),
    ],
)
async def test_what_is_one_clients_own_updates_nothing_for_others(
    method: str, said: bytes, authorized: bool, asked: Fields, stored: Stored, kept: bool
) -> None:
    """RFC 9111 §3.5, §5.2.2.7: of a 304 and of a HEAD's answer as of a whole one."""
    room = Room()
    anybody = (FRESH, (b"ETag", b'"a"'), (b"Content-Length", b"1"))
    update = whole(304 if method == "GET" else 200, (b"Cache-Control", said), *ALICES)
    origin = Origin(whole(200, *anybody, body=b"x"), update, whole(304, FRESH) if kept else whole(200, *anybody, body=b"y"))
    await room.fetch(ask(), origin)
    room.clock.now += 61
    _, fields, _, outcome = await room.fetch(ask(*asked, method=method, authorized=authorized), origin)
    assert (outcome.stored, ALICES[1] in fields) == (stored, True)
    _, fields, body, outcome = await room.fetch(ask(), origin)
    assert (body, ALICES[1] in fields) == (b"x" if kept else b"y", False)
    assert outcome.status is (CacheStatus.REVALIDATED if kept else CacheStatus.MISS)


async def test_pieces_that_only_one_client_may_have_are_joined_for_it_alone() -> None:
    room = Room()
    strong = (b"ETag", b'"a"')
    first = whole(206, FRESH, strong, (b"Content-Range", b"bytes 0-1/4"), body=b"ab")
    rest = whole(206, *ALICES, (b"Cache-Control", b"private"), (b"Content-Range", b"bytes 2-3/4"), body=b"cd")
    origin = Origin(first, rest, whole(200, FRESH, body=b"abcd"))
    await room.fetch(ask((b"Range", b"bytes=0-1")), origin)
    _, _, body, outcome = await room.fetch(ask(), origin)
    assert (body, outcome.stored) == (b"abcd", Stored.PRIVATE)
    _, fields, body, outcome = await room.fetch(ask(), origin)
    assert (body, outcome.status, ALICES[1] in fields) == (b"abcd", CacheStatus.MISS, False)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("said", [b"no-cache", b"max-age=0"])
async def test_who_waited_for_what_each_must_ask_about_asks_beside_the_others(stored: bool, said: bytes) -> None:
    """One behind the other, the last of ten waits ten times as long."""
    room = Room()
    asking = 0
    first_may, all_are_up = asyncio.Event(), asyncio.Event()

    async def slow(given: Fields) -> Reply:
        nonlocal asking
        asking += 1
        if asking == 1:
            await first_may.wait()
        elif asking == 10:
            all_are_up.set()
        else:
            await all_are_up.wait()
        fields = ((b"Cache-Control", said), (b"ETag", b'"a"'))
        known = first(given, b"if-none-match") is not None
        return Reply(ResponseHead(304, fields), b"") if known else Reply(ResponseHead(200, fields), b"x")

    if stored:
        await room.fetch(ask(), Origin(whole(200, (b"Cache-Control", said), (b"ETag", b'"a"'), body=b"x")))
    origin = Origin(slow)

    async def fetched() -> bytes:
        return (await drain(await room.cache.fetch(ask(), origin, room.clock)))[1]

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(fetched()) for _ in range(10)]
        while not asking:
            await asyncio.sleep(0)
        first_may.set()
    assert [task.result() for task in tasks] == [b"x"] * 10


# Failing origins


@pytest.mark.parametrize("failure", [whole(503), DOWN])
async def test_a_stale_answer_stands_in(failure: Reply | Exception) -> None:
    room = Room(SharedPolicy(stale_if_error_s=600))
    origin = Origin(whole(200, FRESH, body=b"x"), failure)
    await room.fetch(ask(), origin)
    room.clock.now += 105
    status, fields, body, outcome = await room.fetch(ask(), origin)
    assert (status, body, outcome.status) == (200, b"x", CacheStatus.STALE)
    assert first(fields, b"cache-status") == b"gateway; hit; ttl=-45; detail=stale-if-error"


@pytest.mark.parametrize(
    "failure", [DOWN, Rejection(Code.INTERNAL, 500, "500 Internal Server Error", source=Source.INTERNAL)]
)
async def test_not_where_it_must_be_revalidated_nor_for_faults_of_our_own(failure: Exception) -> None:
    room = Room(SharedPolicy(stale_if_error_s=600))
    said = (b"Cache-Control", b"max-age=60, must-revalidate" if failure is DOWN else b"max-age=60")
    origin = Origin(whole(200, said, (b"ETag", b'"a"')), failure)
    await room.fetch(ask(), origin)
    room.clock.now += 61
    with pytest.raises(Rejection):
        await room.fetch(ask(), origin)


# Ranges


async def test_a_stored_whole_serves_ranges() -> None:
    room, origin = Room(), Origin(whole(200, FRESH, body=b"0123456789"))
    await room.fetch(ask(), origin)
    status, fields, body, _ = await room.fetch(ask((b"Range", b"bytes=2-4")), origin)
    assert (status, body, first(fields, b"content-range")) == (206, b"234", b"bytes 2-4/10")


async def test_a_stored_beginning_is_completed_by_its_strong_validator() -> None:
    room = Room()
    etag = (b"ETag", b'"a"')
    origin = Origin(
        whole(206, FRESH, etag, (b"Content-Range", b"bytes 0-4/10"), body=b"01234"),
        whole(206, FRESH, etag, (b"Content-Range", b"bytes 5-9/10"), body=b"56789"),
    )
    await room.fetch(ask((b"Range", b"bytes=0-4")), origin)
    status, fields, body, outcome = await room.fetch(ask(), origin)
    assert (status, body, outcome.reason) == (200, b"0123456789", CacheReason.PARTIAL)
    assert origin.asked[-1][:2] == ((b"Range", b"bytes=5-"), (b"If-Range", b'"a"'))
    assert first(fields, b"content-length") == b"10"
    assert (await room.fetch(ask(), origin))[3].status is CacheStatus.HIT
    assert (await room.fetch(ask((b"Range", b"bytes=3-6")), origin))[2] == b"3456"


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(whole(206, (b"ETag", b'"b"'), (b"Content-Range", b"bytes 5-9/10"), body=b"56789"), id="another"),
        pytest.param(whole(206, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 6-9/10"), body=b"6789"), id="gap"),
        pytest.param(whole(206, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 5-9/10"), body=b"567"), id="short"),
        pytest.param(whole(206, (b"ETag", b'"a"')), id="unsaid"),
        pytest.param(whole(416), id="416"),
    ],
)
async def test_pieces_that_do_not_fit_are_asked_for_as_one(rest: Reply) -> None:
    room = Room()
    origin = Origin(
        whole(206, FRESH, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 0-4/10"), body=b"01234"),
        rest,
        whole(200, body=b"new"),
    )
    await room.fetch(ask((b"Range", b"bytes=0-4")), origin)
    assert (await room.fetch(ask(), origin))[2] == b"new"
    assert origin.asked[-1] == (CAPABILITY,)


async def test_a_stored_piece_is_only_for_who_holds_the_rest_of_it() -> None:
    room, piece = Room(), (b"Range", b"bytes=5-9")
    origin = Origin(
        whole(206, FRESH, (b"ETag", b'"new"'), (b"Content-Range", b"bytes 5-9/10"), body=b"56789"),
        whole(200, FRESH, (b"ETag", b'"new"')),
        whole(200, FRESH, (b"ETag", b'"new"'), body=b"0123456789"),
    )
    await room.fetch(ask(piece), origin)
    assert (await room.fetch(ask(piece, (b"If-Range", b'"new"')), origin))[2] == b"56789"
    assert (await room.fetch(ask(piece, method="HEAD"), origin))[0] == 200, "HEAD knows no ranges (RFC 9110 §14.2)"
    other = (b"If-Range", b'"old"')
    assert (await room.fetch(ask(piece, other), origin))[2] == b"0123456789", "octets of two versions must not be joined"
    assert origin.asked[-1][:2] == (piece, other)


REST = (b"Range", b"bytes=5-9")


@pytest.mark.parametrize(
    ("asked", "came", "status", "body"),
    [
        pytest.param(
            (b"Range", b"bytes=7-8"),
            whole(206, (b"Content-Range", b"bytes 7-8/10"), body=b"78"),
            206,
            b"78",
            id="elsewhere",
        ),
        pytest.param((b"Range", b"bytes=50-"), whole(416, (b"Content-Range", b"bytes */10")), 416, b"", id="nowhere"),
        pytest.param(
            REST,
            whole(206, (b"ETag", b'"b"'), (b"Content-Range", b"bytes 5-9/10"), body=b"56789"),
            206,
            b"56789",
            id="another-version",
        ),
        pytest.param(
            REST,
            streamed(206, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 5-9/10"), chunks=[b"5", b"67"]),
            206,
            b"567",
            id="short",
        ),
        pytest.param(
            REST,
            streamed(206, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 5-9/10"), chunks=[b"56", b"789"]),
            206,
            b"56789",
            id="the-rest",
        ),
    ],
)
async def test_who_asks_for_another_piece_is_told_that_piece(
    asked: tuple[bytes, bytes], came: Reply, status: int, body: bytes
) -> None:
    """Who moves about in a film: asked for once, as the client did."""
    room = Room()
    origin = Origin(whole(206, FRESH, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 0-4/10"), body=b"01234"), came)
    await room.fetch(ask((b"Range", b"bytes=0-4")), origin)
    assert (await room.fetch(ask(asked), origin))[::2][:2] == (status, body)
    assert [given[0] for given in origin.asked] == [(b"Range", b"bytes=0-4"), asked]


async def test_a_range_that_is_none_is_told_to_nobody_else() -> None:
    room = Room()
    unsatisfied = whole(416, FRESH, (b"Content-Range", b"bytes */10"))
    origin = Origin(unsatisfied, whole(200, FRESH, body=b"0123456789"))
    assert (await room.fetch(ask((b"Range", b"bytes=50-")), origin))[0] == 416
    assert (await room.fetch(ask(), origin))[2] == b"0123456789"


@pytest.mark.parametrize("said", [b"items 0-4/10", b"0-4/10", b"bytes 0-4/3", b"bytes 4-0/10"])
async def test_a_piece_of_nobody_knows_what_is_not_told_for_the_whole(said: bytes) -> None:
    room = Room()
    origin = Origin(whole(206, FRESH, (b"Content-Range", said), body=b"01234"), whole(200, FRESH, body=b"0123456789"))
    await room.fetch(ask((b"Range", b"items=0-4")), origin)
    assert (await room.fetch(ask(), origin))[2] == b"0123456789"


async def test_what_would_be_too_large_is_not_joined() -> None:
    room = Room(SharedPolicy(max_entry_bytes=8))
    origin = Origin(
        whole(206, FRESH, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 0-4/10"), body=b"01234"),
        whole(206, FRESH, (b"ETag", b'"a"'), (b"Content-Range", b"bytes 5-9/10"), body=b"56789"),
        whole(200, body=b"0123456789"),
    )
    await room.fetch(ask((b"Range", b"bytes=0-4")), origin)
    assert (await room.fetch(ask(), origin))[2] == b"0123456789"


async def test_several_stored_pieces_and_variants_are_bounded() -> None:
    room = Room()
    origin = Origin(*(whole(200, FRESH, (b"Vary", b"Foo"), body=b"%d" % number) for number in range(40)))
    for number in range(40):
        await room.fetch(ask((b"Foo", b"%d" % number)), origin)
    assert (await room.fetch(ask((b"Foo", b"39")), origin))[3].status is CacheStatus.HIT
    lookup = await room.store.get(b"shared\nhttp://host\n/a", ())
    assert len(lookup.entries) == 16


# Streams and collapsing


async def test_a_stream_cut_short_is_not_stored() -> None:
    room = Room()
    origin = Origin(streamed(200, FRESH, chunks=[b"x" * 300_000, DOWN]), whole(200, FRESH, body=b"y"))
    reply, outcome = await room.cache.fetch(ask(), origin, room.clock)
    assert reply.chunks is not None
    with pytest.raises(Rejection):
        async for _ in reply.chunks:
            pass
    reply.release()
    assert outcome.stored is Stored.INCOMPLETE
    assert (await room.fetch(ask(), origin))[2] == b"y"


async def test_an_answer_overtaken_by_a_write_is_not_kept() -> None:
    room = Room()

    async def slow(given: Fields) -> Reply:
        await room.fetch(ask(method="DELETE"), Origin(whole(204)))
        return whole(200, FRESH, (b"ETag", b'"a"'), body=b"old")

    assert (await room.fetch(ask(), Origin(slow)))[3].stored is Stored.INVALIDATED
    assert (await room.fetch(ask(), Origin(whole(200))))[3].status is CacheStatus.MISS
