from __future__ import annotations

from gateway.cache.contract import CacheOutcome, NoCache, with_status
from gateway.core.cache_status import CacheStatus
from gateway.core.messages import ResponseHead, values

from .origin import Clock, Origin, drain, get, whole

CONDITION = (b"If-None-Match", b'"a"')


async def test_without_a_cache_the_clients_conditions_go_up() -> None:
    origin = Origin(whole(304))
    cache = NoCache()
    head, _, outcome = await drain(await cache.fetch(get(b"/", CONDITION, (b"A", b"1")), origin, Clock()))
    assert origin.asked == [(CONDITION,)]
    assert (head.status, outcome.status) == (304, CacheStatus.OFF)
    await cache.drop_partition(b"p")
    await cache.close()


def test_our_member_is_appended_to_what_other_caches_said() -> None:
    head = ResponseHead(200, ((b"Cache-Status", b"origin; hit"), (b"A", b"1")))
    assert with_status(head, b"gateway; fwd=miss").fields == (
        (b"A", b"1"),
        (b"Cache-Status", b"origin; hit, gateway; fwd=miss"),
    )


def test_a_stored_answer_tells_its_age() -> None:
    head = with_status(ResponseHead(200, ()), b"gateway; hit", 12.7)
    assert values(head.fields, b"age") == [b"12"]
    assert values(with_status(ResponseHead(200, ()), b"x").fields, b"age") == []


def test_an_outcome_begins_as_a_bypass() -> None:
    assert CacheOutcome().status is CacheStatus.BYPASS
