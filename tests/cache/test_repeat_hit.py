"""A stored answer looked up once more: as ``fetch`` would find it, or not at all."""

from __future__ import annotations

import dataclasses

import msgspec
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.cache import RepeatHit
from gateway.cache.hook_watch import HookWatch
from gateway.core.cache_entry import Entry
from gateway.core.messages import Fields
from gateway.core.project_names import ProjectNames
from gateway.stores.cache_memory import MemoryCacheStore

ETAG = b'W/"1"'
ENTRY = Entry(
    200,
    b"OK",
    ((b"Content-Type", b"application/json"), (b"Etag", ETAG), (b"Content-Length", b"2")),
    b"[]",
    received_at=1000.0,
    initial_age_s=0.0,
    lifetime_s=0.0,
    etag=ETAG,
)
TAGS = (b"all", b"project:1")


@dataclasses.dataclass
class Clock:
    now: float = 50.0

    def __call__(self) -> float:
        return self.now


async def made(
    *, condition: bytes | None = None, fields: Fields = (), entry: Entry = ENTRY, hooked: bool = False
) -> tuple[RepeatHit, MemoryCacheStore, ProjectNames, HookWatch, Clock]:
    clock = Clock()
    store = MemoryCacheStore(1 << 20, clock)
    await store.put(b"key", (entry,), 3600.0, TAGS, int(clock.now * 1_000_000))
    names = ProjectNames()
    watch = HookWatch(store, clock, 100.0)
    repeat_hit = RepeatHit(
        store.finder_for(b"key", TAGS),
        names=names,
        spelt=b"1",
        hooks=watch if hooked else None,
        reuse_s=60.0,
        fields=fields,
        condition=condition,
        member=b"gateway; hit; ttl=%d",
    )
    return repeat_hit, store, names, watch, clock


async def test_fresh_it_is_there_with_its_age() -> None:
    repeat_hit, *_ = await made()
    assert repeat_hit.current_entry(1012.9) is ENTRY
    assert repeat_hit.computed_lines(ENTRY, 1012.9) == b"Age: 12\r\nCache-Status: gateway; hit; ttl=47\r\n"
    assert repeat_hit.current_entry(999.0) is ENTRY
    assert repeat_hit.computed_lines(ENTRY, 999.0) == b"Age: 0\r\nCache-Status: gateway; hit; ttl=60\r\n", (
        "a clock that went back"
    )
    assert repeat_hit.current_entry(1060.0) is None


@given(
    received_at=st.floats(1.7e9, 1.7e9 + 5),
    reuse_s=st.floats(0.5, 90.0) | st.integers(1, 90),
    after_s=st.floats(-2.0, 90.0),
    share=st.floats(0.0, 1.0),
)
@example(received_at=1.7e9, reuse_s=60, after_s=0.0, share=1.0)
@example(received_at=1.7e9 + 0.3, reuse_s=60, after_s=11.0, share=1.0)
def test_what_is_computed_stays_the_same_for_as_long_as_it_is_said_to(
    received_at: float, reuse_s: float, after_s: float, share: float
) -> None:
    entry = msgspec.structs.replace(ENTRY, received_at=received_at)
    repeat_hit = RepeatHit(
        lambda: entry,
        names=ProjectNames(),
        spelt=b"",
        hooks=None,
        reuse_s=reuse_s,
        fields=(),
        condition=None,
        member=b"gateway; hit; ttl=%d",
    )
    at = received_at + after_s
    assume(repeat_hit.current_entry(at) is not None)
    until = repeat_hit.computed_until(entry, at)
    later = at + share * (until - at)
    if at <= later <= until:
        assert repeat_hit.computed_lines(entry, later) == repeat_hit.computed_lines(entry, at)
    # Once a second at most, but for the two edges (of the age, and of what is left).
    assert until <= at + max(1.0, received_at + 1.0 - at)


async def test_purged_or_gone_it_is_not() -> None:
    repeat_hit, store, *_ = await made()
    await store.purge((b"project:1",))
    assert repeat_hit.current_entry(1001.0) is None
    repeat_hit, store, *_ = await made()
    await store.delete(b"key")
    assert repeat_hit.current_entry(1001.0) is None


async def test_a_name_learnt_since_is_for_fetch() -> None:
    """The tags of then would miss a purge by it."""
    repeat_hit, _, names, *_ = await made()
    names.learn(b"2", b"else/where")
    assert repeat_hit.current_entry(1001.0) is not None, "another project's"
    names.learn(b"1", b"group/project")
    assert repeat_hit.current_entry(1001.0) is None


async def test_where_hooks_must_come_they_must_have_come() -> None:
    repeat_hit, _, _, watch, clock = await made(hooked=True)
    assert repeat_hit.current_entry(1001.0) is None, "nobody asked yet"
    await watch.record_hook()
    await watch.check_alive()
    assert repeat_hit.current_entry(1001.0) is not None
    clock.now += 5.0
    assert repeat_hit.current_entry(1001.0) is None, "time to look again for what other gateways heard"
    await watch.check_alive()
    assert repeat_hit.current_entry(1001.0) is not None
    clock.now += 100.0
    await watch.check_alive()
    assert repeat_hit.current_entry(1001.0) is None, "silence"


async def test_the_head_by_condition_and_vary() -> None:
    repeat_hit, *_ = await made()
    shown = repeat_hit.shown(ENTRY)
    assert shown is not None
    assert (shown.status, shown.fields) == (200, ENTRY.fields)
    repeat_hit, *_ = await made(condition=b'"0", ' + ETAG)
    shown = repeat_hit.shown(ENTRY)
    assert shown is not None
    assert shown.status == 304
    assert (b"Content-Length", b"2") not in shown.fields
    repeat_hit, *_ = await made(fields=((b"Origin", b"https://a"),))
    other = Entry(200, b"OK", (), b"", 1000.0, 0.0, 0.0, selecting=((b"origin", b"https://b"),))
    assert repeat_hit.shown(other) is None
