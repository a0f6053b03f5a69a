from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json

import pytest

from gateway.cache.hook_watch import HookWatch
from gateway.core.cache_tags import answer_tags
from gateway.core.client_address import TrustedPeers
from gateway.core.exchange import Exchange
from gateway.core.hook_verifier import HookVerifier
from gateway.core.messages import Fields, ResponseHead
from gateway.core.project_names import ProjectNames
from gateway.core.secret import Secret
from gateway.edge.hooks import MAX_BODY_BYTES, HookReceiver
from gateway.ports import DRAINED, Downstream
from gateway.stores.cache_memory import MemoryCacheStore
from tests.fakes.world import FakeDownstream
from tests.stores.cache_contract import ENTRY

NOW = 1_800_000_000.0
TOKEN = (b"X-Gitlab-Token", b"hook-s3cret-of-gitlab")
PUSH = json.dumps({"object_kind": "push", "project": {"id": 42, "path_with_namespace": "g/p"}}).encode()
KEY = bytes(range(32))


class Recorder:
    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def monotonic(self) -> float:
        return NOW

    def mint_id(self) -> str:
        return "1"

    def observe(self, x: Exchange) -> None:
        self.exchanges.append(x)


class World:
    def __init__(self, secret: str = "hook-s3cret-of-gitlab", hold_s: float = 0.0, proxies: tuple[str, ...] = ()) -> None:
        self.recorder = Recorder()
        self.store = MemoryCacheStore(1 << 20, lambda: NOW)
        self.watch = HookWatch(self.store, lambda: NOW, 900.0)
        self.names = ProjectNames()
        self.receiver = HookReceiver(
            "/-/gateway/hooks",
            HookVerifier(Secret(secret)),
            TrustedPeers(proxies),
            store=self.store,
            watch=self.watch,
            names=self.names,
            wall=lambda: NOW,
            hold_s=hold_s,
            recorder=self.recorder,
            handle=self.handle,
        )
        self.tags = answer_tags(b"p", b"/api/v4/projects/42", self.names)

    async def handle(self, down: Downstream) -> None:
        await down.respond(ResponseHead(418, ()), b"")

    async def send(self, *fields: tuple[bytes, bytes], body: bytes | None = PUSH, **more: object) -> FakeDownstream:
        method, target = str(more.get("method", "POST")), str(more.get("target", "/-/gateway/hooks"))
        pieces = (body,) if body is not None else None
        down = FakeDownstream(method, target, fields, pieces, chunked=bool(more.get("chunked")))
        await self.receiver.handle(down)
        return down

    async def keep(self) -> None:
        await self.store.put(b"k", (ENTRY,), 60.0, self.tags, (await self.store.get(b"k", self.tags)).stamp)

    async def kept(self) -> bool:
        return bool((await self.store.get(b"k", self.tags)).entries)


async def test_a_hook_purges_what_it_tells_of_and_is_written_down() -> None:
    world = World()
    await world.keep()
    down = await world.send(TOKEN)
    assert (down.status, down.written) == (200, b'{"message":"purged"}')
    assert not await world.kept()
    assert not world.watch.silent
    assert world.names.others(b"42") == (b"g/p",)
    (x,) = world.recorder.exchanges
    assert (x.operation, x.status, x.principal, x.rule) == ("hook", 200, "gitlab", "hook:push")
    assert world.receiver.purged_total == 1


async def test_everything_else_goes_on() -> None:
    world = World()
    for target in ("/-/gateway/hooks/more", "/api/v4/projects", "/-/gateway/hook"):
        assert (await world.send(target=target)).status == 418
    assert not world.recorder.exchanges


@pytest.mark.parametrize(
    "fields", [(), ((b"X-Gitlab-Token", b"hook-s3cret-of-gitla"),), ((b"Private-Token", b"hook-s3cret-of-gitlab"),)]
)
async def test_a_stranger_purges_nothing(fields: Fields) -> None:
    world = World()
    await world.keep()
    down = await world.send(*fields)
    assert down.status == 401
    assert down.closed, "its body was not read"
    assert await world.kept()
    assert world.watch.silent
    assert world.receiver.refused_total == 1
    assert world.recorder.exchanges[0].code == "unauthenticated"


@pytest.mark.parametrize(("proxies", "client"), [(("192.0.2.7/32",), "203.0.113.9"), ((), "192.0.2.7")])
async def test_a_stranger_is_written_down_by_its_own_address(proxies: tuple[str, ...], client: str) -> None:
    """Behind a load balancer all strangers would look like one, and that one like a friend."""
    world = World(proxies=proxies)
    assert (await world.send((b"X-Forwarded-For", b"198.51.100.1, 203.0.113.9"))).status == 401
    assert world.recorder.exchanges[0].peer == client


async def test_other_methods_are_none_of_gitlabs() -> None:
    down = await World().send(TOKEN, method="GET", body=None)
    assert (down.status, down.field("Allow")) == (405, "POST")


async def test_deliveries_without_an_id_count_each_time() -> None:
    """An old GitLab sends none, nor does an operator's curl: alike is not the same."""
    world = World()
    for _ in range(2):
        await world.keep()
        assert (await world.send(TOKEN)).written == b'{"message":"purged"}'
        assert not await world.kept()
    assert (world.receiver.purged_total, world.receiver.repeated_total) == (2, 0)


async def test_a_delivery_counts_once() -> None:
    """A recorded one sent again costs nothing; the same event to two hooks of different content is two."""
    world = World()
    uuid = (b"X-Gitlab-Event-UUID", b"u-1")
    await world.send(TOKEN, uuid)
    await world.keep()
    assert (await world.send(TOKEN, uuid)).written == b'{"message":"seen before"}'
    assert await world.kept()
    assert (await world.send(TOKEN, uuid, body=PUSH + b" ")).written == b'{"message":"purged"}'
    assert (world.receiver.purged_total, world.receiver.repeated_total) == (2, 1)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_hook_too_long_to_be_read_takes_everything(chunked: bool) -> None:
    world = World()
    await world.keep()
    down = await world.send(TOKEN, body=b"x" * (MAX_BODY_BYTES + 1), chunked=chunked)
    assert (down.status, down.closed) == (200, True)
    assert not await world.kept()


@pytest.mark.parametrize("body", [None, b"", b"no json", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"])
async def test_a_hook_that_says_nothing_takes_everything(body: bytes | None) -> None:
    world = World()
    await world.keep()
    assert (await world.send(TOKEN, body=body)).status == 200
    assert not await world.kept()


async def test_what_was_purged_is_held_back() -> None:
    world = World(hold_s=3.0)
    await world.send(TOKEN)
    await world.keep()
    assert not await world.kept()


def signature(body: bytes, stamp: bytes) -> Fields:
    digest = hmac.new(KEY, b"id." + stamp + b"." + body, hashlib.sha256).digest()
    return (
        (b"webhook-id", b"id"),
        (b"webhook-timestamp", stamp),
        (b"webhook-signature", b"v1," + base64.b64encode(digest)),
    )


async def test_a_signing_token_asks_for_a_signature() -> None:
    world = World("whsec_" + base64.b64encode(KEY).decode())
    assert (await world.send(*signature(PUSH, b"1800000000"))).status == 200
    assert (await world.send(*signature(PUSH, b"1800000000"), body=PUSH + b" ")).status == 401
    assert (await world.send(*signature(PUSH, b"1700000000"))).status == 401
    assert (await world.send(*signature(b"", b"1800000000"), body=b"x" * (MAX_BODY_BYTES + 1))).status == 401


async def test_a_sender_that_leaves_is_written_down() -> None:
    world = World()
    down = FakeDownstream("POST", "/-/gateway/hooks", (TOKEN,), (PUSH,), gone_after=0)
    with pytest.raises(ConnectionError):
        await world.receiver.handle(down)
    assert (world.recorder.exchanges[0].status, world.recorder.exchanges[0].aborted) == (499, "client")


async def test_a_delivery_that_the_gateways_end_cuts_off_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """GitLab shows it among its recent deliveries, from where it can be sent again."""
    world, begun = World(), asyncio.Event()

    async def purge(tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(world.store, "purge", purge)
    down = FakeDownstream("POST", "/-/gateway/hooks", (TOKEN,), (PUSH,))
    serving = asyncio.ensure_future(world.receiver.handle(down))
    await begun.wait()
    serving.cancel(DRAINED)
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert (down.status, down.field("Retry-After"), down.closed) == (503, "5", True)
    (x,) = world.recorder.exchanges
    assert (x.status, x.code, x.aborted) == (503, "draining", "")


async def test_an_answer_that_the_gateways_end_cuts_is_laid_at_its_door() -> None:
    world = World()
    down = FakeDownstream("POST", "/-/gateway/hooks", (TOKEN,), (PUSH,))
    serving = asyncio.ensure_future(world.receiver.handle(down))
    while not down.started:
        await asyncio.sleep(0)
    serving.cancel(DRAINED)
    with pytest.raises(asyncio.CancelledError):
        await serving
    (x,) = world.recorder.exchanges
    assert (x.status, x.code, x.aborted) == (200, "draining", "gateway")


async def test_a_fault_is_ours_and_not_the_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(world.watch, "record_hook", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await world.send(TOKEN)
    (exchange,) = world.recorder.exchanges
    assert (exchange.status, exchange.aborted, exchange.code) == (500, "", "internal_error")
