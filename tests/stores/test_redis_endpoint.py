"""Where Redis is: told by Sentinels or by a cluster, followed through failovers, all of it real."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.core.limits import Take
from gateway.stores import redis_endpoint, redis_link
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.keys_redis import RedisKeys
from gateway.stores.redis_address import parse_address
from gateway.stores.redis_endpoint import HashTag, RedisEndpoint, describe_error
from gateway.stores.redis_link import RedisLink, RedisUnavailable
from gateway.stores.redis_subscriber import RedisSubscriber
from gateway.stores.redis_wire import RedisError, RedisValue
from tests.fakes.line import TcpRelay
from tests.fakes.redis_cluster import migrate_slot, slot, start_cluster, start_divided_cluster, start_node
from tests.fakes.redis_sentinel import NAME, Sentinel, start_pair, until

from .bucket_contract import NARROW
from .key_contract import T, record

NOWHERE = "127.0.0.1:1"


def test_a_host_that_nobody_knows_is_told_in_words() -> None:
    assert (
        describe_error(socket.gaierror(socket.EAI_NONAME, "Name or service not known")) == "its host name can't be resolved"
    )


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Sentinel]]:
    """Start a Sentinel that watches a primary."""
    with ExitStack() as sentinels:
        count = 0

        def begin(primary: Any, *lines: str) -> Sentinel:
            nonlocal count
            count += 1
            sentinel = Sentinel(tmp_path / f"sentinel-{count}", primary.port, *lines)
            sentinels.callback(sentinel.close)
            until(lambda: sentinel.ask("PING", password="s3cret" if lines else None) in {True, b"PONG"})
            return sentinel

        yield begin


@pytest.fixture
async def linked() -> AsyncIterator[Callable[..., RedisLink]]:
    links: list[RedisLink] = []

    def make(url: str, tag: HashTag = HashTag.LIMITS) -> RedisLink:
        links.append(RedisLink.from_url(url, timeout_s=60.0, name="place-test", tag=tag))
        return links[-1]

    yield make
    for link in links:
        await link.close()


async def put(link: RedisLink, value: bytes, server: Any) -> None:
    """Written, as soon as that server is the one that takes it."""
    async with asyncio.timeout(30):
        with redis.Redis(port=server.port) as client:
            while True:
                with contextlib.suppress(RedisError, RedisUnavailable):
                    await link.execute("SET", "{gw}:x", value)
                with contextlib.suppress(redis.RedisError):
                    if client.get("{gw}:x") == value:
                        return
                await asyncio.sleep(0.02)


class TestSentinels:
    async def test_the_primary_they_tell_of_is_written_to(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        primary = start_redis()
        sentinel = watch(primary)
        link = linked(f"redis+sentinel://{sentinel.place}/{NAME}/3")
        await link.execute("SET", "x", "1")
        with redis.Redis(port=primary.port, db=3) as client:
            assert client.get("x") == b"1"
        assert link.healthy

    async def test_one_that_does_not_answer_leaves_the_next(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        sentinel = watch(start_redis())
        link = linked(f"redis+sentinel://{NOWHERE},{sentinel.place}/{NAME}")
        assert await link.execute("PING") == b"PONG"

    async def test_a_failover_that_somebody_asked_for_is_followed_though_the_old_primary_lives(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        primary, replica = start_pair(start_redis)
        sentinel = watch(primary)
        until(lambda: len(sentinel.ask("SENTINEL", "REPLICAS", NAME)) == 1)
        link = linked(f"redis+sentinel://{sentinel.place}/{NAME}")
        await put(link, b"before", primary)
        until(lambda: sentinel.ask("SENTINEL", "FAILOVER", NAME) in {True, b"OK"})
        await asyncio.to_thread(until, lambda: sentinel.primary() == replica.port)
        await put(link, b"after", replica)
        assert link.connected

    async def test_a_primary_that_dies_is_followed(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        primary, replica = start_pair(start_redis)
        sentinel = watch(primary)
        until(lambda: len(sentinel.ask("SENTINEL", "REPLICAS", NAME)) == 1)
        store = RedisBuckets(linked(f"redis+sentinel://{sentinel.place}/{NAME}"))
        assert not (await store.take([Take("{gw}:b:n:y", NARROW)])).degraded
        primary.stop()
        async with asyncio.timeout(30):
            while (await store.take([Take("{gw}:b:n:z", NARROW)])).degraded:
                await asyncio.sleep(0.02)
        with redis.Redis(port=replica.port) as client:
            assert client.exists("{gw}:b:n:z")
        await store.close()

    async def test_another_primary_is_followed_though_the_one_before_it_takes_all_that_it_is_given(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        """As it does for ten seconds after a failover that somebody asked for, and forgets it then."""
        old, new = start_redis(), start_redis()
        sentinel = watch(old)
        link = linked(f"redis+sentinel://{sentinel.place}/{NAME}")
        await put(link, b"before", old)
        sentinel.ask("SENTINEL", "REMOVE", NAME)
        await put(link, b"meanwhile", old)  # who knows of none says nothing against the one there is
        sentinel.ask("SENTINEL", "MONITOR", NAME, "127.0.0.1", str(new.port), "1")
        await put(link, b"after", new)

    async def test_who_is_where_sentinels_say_stays(
        self,
        start_redis: Callable[..., Any],
        watch: Callable[..., Sentinel],
        monkeypatch: pytest.MonkeyPatch,
        linked: Callable[..., RedisLink],
    ) -> None:
        monkeypatch.setattr(redis_endpoint, "_LOOK_S", 0.01)
        sentinel = watch(start_redis())
        link = linked(f"redis+sentinel://{sentinel.place}/{NAME}")
        number = await link.execute("CLIENT", "ID")
        asked = sentinel.answered()
        await asyncio.to_thread(until, lambda: sentinel.answered() > asked + 20)
        assert await link.execute("CLIENT", "ID") == number

    async def test_a_server_that_is_demoted_under_a_connection_is_left_at_its_first_refusal(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        """Whoever told of it last is asked last: it may not have heard."""
        old, new = start_redis(), start_redis()
        ignorant, knowing = watch(old), watch(new)
        link = linked(f"redis+sentinel://{ignorant.place},{knowing.place}/{NAME}")
        await put(link, b"before", old)
        with redis.Redis(port=old.port) as client:
            client.replicaof("127.0.0.1", new.port)
        await put(link, b"after", new)

    async def test_a_primary_that_is_cut_off_with_the_one_who_tells_of_it_is_left(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        """Which `min-replicas-to-write` is for: NOREPLICAS, while others have made another primary."""
        old, new = start_redis(), start_redis()
        beside, majority = watch(old), watch(new)
        link = linked(f"redis+sentinel://{beside.place},{majority.place}/{NAME}")
        await put(link, b"before", old)
        with redis.Redis(port=old.port) as client:
            client.config_set("min-replicas-to-write", 1)
        await put(link, b"after", new)

    async def test_a_replica_is_not_taken_for_the_primary(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        _, replica = start_pair(start_redis)
        # A Sentinel that was started with a replica's address tells of it until it has asked it.
        fixed = FixedSentinel(replica.port)
        async with fixed:
            link = linked(f"redis+sentinel://127.0.0.1:{fixed.port}/{NAME}")
            with pytest.raises(RedisUnavailable):
                await link.execute("GET", "x")
            assert link.trouble == "not the primary"

    async def test_one_that_tells_of_a_primary_that_is_none_leaves_the_next(
        self, start_redis: Callable[..., Any], linked: Callable[..., RedisLink]
    ) -> None:
        """One call must do: a command such as `keys revoke` makes no second one."""
        _, replica = start_pair(start_redis)
        good = start_redis()
        gone, demoted, knowing = FixedSentinel(1), FixedSentinel(replica.port), FixedSentinel(good.port)
        async with gone, demoted, knowing:
            sentinels = ",".join(f"127.0.0.1:{one.port}" for one in (gone, demoted, knowing))
            link = linked(f"redis+sentinel://{sentinels}/{NAME}")
            await link.execute("SET", "x", "1")
        with redis.Redis(port=good.port) as client:
            assert client.get("x") == b"1"

    async def test_what_one_says_weighs_more_than_that_another_is_away(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        sentinel = watch(start_redis())
        for sentinels in (f"{NOWHERE},{sentinel.place}", f"{sentinel.place},{NOWHERE}"):
            link = linked(f"redis+sentinel://{sentinels}/other")
            with pytest.raises(RedisUnavailable):
                await link.execute("PING")
            assert link.trouble == "Sentinel: no primary named other"

    @pytest.mark.parametrize("port", [0, -1, 65536, 10**30])
    async def test_a_port_that_is_none_is_told(self, linked: Callable[..., RedisLink], port: int) -> None:
        """asyncio raises OverflowError for some, which would end the link for good."""
        fixed = FixedSentinel(port)
        async with fixed:
            link = linked(f"redis+sentinel://127.0.0.1:{fixed.port}/{NAME}")
            with pytest.raises(RedisUnavailable):
                await link.execute("PING")
            assert link.trouble == "Sentinel: not a valid address"

    async def test_a_name_that_nobody_watches_is_told(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        sentinel = watch(start_redis())
        link = linked(f"redis+sentinel://{sentinel.place}/other")
        with pytest.raises(RedisUnavailable):
            await link.execute("PING")
        assert link.trouble == "Sentinel: no primary named other"

    async def test_none_that_answers_is_told(self, linked: Callable[..., RedisLink]) -> None:
        link = linked(f"redis+sentinel://{NOWHERE}/{NAME}")
        with pytest.raises(RedisUnavailable):
            await link.execute("PING")
        assert link.trouble == "Sentinel: ConnectionRefusedError"

    async def test_their_password_is_theirs_and_the_primarys_its_own(
        self, start_redis: Callable[..., Any], watch: Callable[..., Sentinel], linked: Callable[..., RedisLink]
    ) -> None:
        primary = start_redis()
        sentinel = watch(primary, "requirepass s3cret", f"sentinel auth-pass {NAME} pr1mary")
        with redis.Redis(port=primary.port) as client:
            client.config_set("requirepass", "pr1mary")
        link = linked(f"redis+sentinel://:pr1mary@{sentinel.place}/{NAME}?sentinel_password=s3cret")
        assert await link.execute("PING") == b"PONG"
        for url, trouble in (
            (f"redis+sentinel://:pr1mary@{sentinel.place}/{NAME}", "Sentinel: NOAUTH"),
            (f"redis+sentinel://{sentinel.place}/{NAME}?sentinel_password=s3cret", "NOAUTH"),
        ):
            link = linked(url)
            with pytest.raises(RedisUnavailable):
                await link.execute("PING")
            assert link.trouble == trouble


class FixedSentinel:
    """A Sentinel that answers every query for the primary with one address."""

    def __init__(self, port: int) -> None:
        self._answer = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)
        self.port = 0

    async def __aenter__(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"SETNAME")
        writer.write(b"+OK\r\n")
        await reader.readuntil(b"GET-MASTER-ADDR-BY-NAME")
        writer.write(self._answer)
        await reader.read()
        writer.close()


class TestCluster:
    async def test_whoever_is_asked_the_owner_of_the_stores_slot_serves(
        self, start_redis: Callable[..., Any], linked: Callable[..., RedisLink]
    ) -> None:
        owner, other = start_divided_cluster(start_redis, "{gw}")
        for asked in (owner, other):
            store = RedisBuckets(linked(f"redis+cluster://{NOWHERE},127.0.0.1:{asked.port}"))
            assert not (await store.take([Take("{gw}:b:n:y", NARROW)])).degraded
            await store.close()
        keys = RedisKeys(linked(f"redis+cluster://127.0.0.1:{owner.port}", HashTag.KEYS))
        await keys.put(record())
        await keys.revoke(record().id, T)
        with redis.Redis(port=owner.port) as mine, redis.Redis(port=other.port) as theirs:
            assert {slot(name) for name in mine.scan_iter("*")} == {slot("{gw}")}
            assert {slot(name) for name in theirs.scan_iter("*")} == {slot("{keys}")}

    @pytest.mark.parametrize("tag", list(HashTag))
    def test_the_slot_is_the_tags(self, tag: HashTag) -> None:
        place = RedisEndpoint(parse_address("redis+cluster://n1"), tag)
        assert place._slot == slot(f"{{{tag}}}")

    async def test_a_slot_that_goes_to_another_is_followed(
        self, start_redis: Callable[..., Any], linked: Callable[..., RedisLink]
    ) -> None:
        owner, other = start_divided_cluster(start_redis, "{gw}")
        link = linked(f"redis+cluster://127.0.0.1:{owner.port}")
        await put(link, b"before", owner)
        migrate_slot("{gw}", owner, other)
        await put(link, b"after", other)

    async def test_nodes_that_were_told_are_asked_when_those_of_the_url_have_gone(
        self, start_redis: Callable[..., Any], linked: Callable[..., RedisLink]
    ) -> None:
        owner, other = start_divided_cluster(start_redis, "{gw}")
        with redis.Redis(port=owner.port) as client:
            client.config_set("cluster-require-full-coverage", "no")
        link = linked(f"redis+cluster://127.0.0.1:{other.port}")
        await put(link, b"before", owner)
        other.stop()
        with redis.Redis(port=owner.port) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await put(link, b"after", owner)

    async def test_an_owner_that_is_cut_off_from_the_cluster_is_left_for_the_one_that_took_its_place(
        self, start_redis: Callable[..., Any], linked: Callable[..., RedisLink]
    ) -> None:
        """It answers CLUSTERDOWN, and does not know whose its slots are now; whoever is connected need not stay."""
        old, new = start_cluster(start_redis), start_cluster(start_redis)
        link = linked(f"redis+cluster://127.0.0.1:{old.port},127.0.0.1:{new.port}")
        await put(link, b"before", old)
        with redis.Redis(port=old.port) as client:
            client.execute_command("CLUSTER", "DELSLOTS", 0)
        await put(link, b"after", new)

    async def test_an_owner_stays_where_all_that_is_told_is_that_the_cluster_is_down(
        self, start_redis: Callable[..., Any], linked: Callable[..., RedisLink], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_endpoint, "_LOOK_S", 0.01)
        server = start_cluster(start_redis)
        link = linked(f"redis+cluster://127.0.0.1:{server.port}")
        await put(link, b"before", server)
        number = await link.execute("CLIENT", "ID")
        with redis.Redis(port=server.port) as client:
            client.execute_command("CLUSTER", "DELSLOTS", 0)
            asked = client.info("stats")["total_connections_received"]
            while client.info("stats")["total_connections_received"] < asked + 10:
                with pytest.raises(RedisError):
                    await link.execute("GET", "{gw}:x")
        assert await link.execute("CLIENT", "ID") == number

    async def test_nobody_who_owns_the_slot_is_told(
        self, start_redis: Callable[..., Any], linked: Callable[..., RedisLink]
    ) -> None:
        node = start_node(start_redis)
        link = linked(f"redis+cluster://127.0.0.1:{node.port}")
        with pytest.raises(RedisUnavailable):
            await link.execute("PING")
        assert link.trouble == "cluster: nobody owns slot 7373"

    async def test_an_owner_without_a_name_is_told_as_one(
        self, start_redis: Callable[..., Any], linked: Callable[..., RedisLink]
    ) -> None:
        """Nodes that are to be called by their host names, and were given none."""
        node = start_cluster(start_redis)
        with redis.Redis(port=node.port) as client:
            client.config_set("cluster-preferred-endpoint-type", "hostname")
        link = linked(f"redis+cluster://127.0.0.1:{node.port}")
        with pytest.raises(RedisUnavailable):
            await link.execute("PING")
        assert link.trouble == "cluster: the owner of slot 7373 has no usable address"

    async def test_a_server_that_is_no_cluster_is_told(self, redis_url: str, linked: Callable[..., RedisLink]) -> None:
        link = linked(redis_url.replace("redis://", "redis+cluster://").removesuffix("/0"))
        with pytest.raises(RedisUnavailable):
            await link.execute("PING")
        assert link.trouble == "cluster: cluster support is disabled there"


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([[b"10.0.0.1", 6379, b"id", []]], ("10.0.0.1", 6379)),
        ([[b"", 6380, b"id"]], ("n1", 6380)),
        ([[None, 6380, b"id"]], ("n1", 6380)),
        ([[b"?", 6380, b"id"]], None),
        ([[b"10.0.0.1", 0, b"id"]], None),
        ([[b"10.0.0.1", 6379, b"id"], [b"10.0.0.2", 0, b"id"]], ("10.0.0.1", 6379)),
        ([], None),
    ],
    ids=["a name", "no name", "nil", "unknown", "no port", "a replica without one", "nobody"],
)
async def test_who_owns_a_slot(nodes: RedisValue, found: tuple[str, int] | None) -> None:
    """Redis Cluster specification, CLUSTER SLOTS: an empty or nil endpoint is whoever was asked, `?` is one unknown."""
    place = RedisEndpoint(parse_address("redis+cluster://n1"))
    assert isinstance(nodes, list)
    shards: RedisValue = [[0, 100, [b"n9", 0]], [101, 16383, *nodes]]
    guide = parse_address("redis://n1")
    if found is not None:
        assert place._parse_owner(shards, guide) == found
    else:
        with pytest.raises(RedisUnavailable):
            place._parse_owner(shards, guide)


def test_who_was_asked_is_the_last_after_a_doubt() -> None:
    """And there once: a node that is cut off would be asked again at once."""
    place = RedisEndpoint(parse_address("redis+cluster://n1,n2"))
    shards: RedisValue = [[0, 16383, [b"n1", 6379, b"id"], [b"n3", 6379, b"id"]]]
    place._parse_owner(shards, place._guides[0][0])
    place.rotate_guides()
    hosts = [guide.host for guide, _ in place._guides]
    assert sorted(hosts) == ["n1", "n2", "n3"]
    assert hosts[-1] == "n1"


async def test_a_subscriber_goes_where_its_link_has_gone(
    start_redis: Callable[..., Any], linked: Callable[..., RedisLink]
) -> None:
    """Else it would hear late, or never, of what is published there."""
    owner, other = start_divided_cluster(start_redis, "{gw}")
    link = linked(f"redis+cluster://127.0.0.1:{owner.port}")
    await put(link, b"before", owner)
    stands: asyncio.Queue[int] = asyncio.Queue()
    subscriber = RedisSubscriber(
        link.endpoint, channel="c", name="place-test-subscriber", clock=asyncio.get_running_loop().time
    )
    subscriber.listen(lambda _: None, lambda: stands.put_nowait(1))
    await asyncio.wait_for(stands.get(), 30)
    assert pubsub_clients(owner) == 1
    migrate_slot("{gw}", owner, other)
    await put(link, b"after", other)
    await asyncio.wait_for(stands.get(), 30)
    assert (pubsub_clients(owner), pubsub_clients(other)) == (0, 1)
    await subscriber.close()


def pubsub_clients(server: Any) -> int:
    with redis.Redis(port=server.port) as client:
        return len(client.client_list(_type="pubsub"))


async def test_a_plain_address_is_as_it_was(redis_url: str) -> None:
    place = RedisEndpoint(parse_address(redis_url))
    wire = await place.connect("place-test", 2.0, lambda _: None)
    assert not place.has_guides
    assert wire.at == place.at
    wire.abort()
    await wire.lost.wait()


async def test_nothing_is_left_of_a_conversation_with_a_sentinel(
    start_redis: Callable[..., Any], watch: Callable[..., Sentinel]
) -> None:
    sentinel = watch(start_redis())
    link = RedisLink.from_url(f"redis+sentinel://{sentinel.place}/{NAME}", timeout_s=60.0, name="place-test")
    await link.execute("PING")
    subscriber = RedisSubscriber(
        link.endpoint, channel="c", name="place-test-subscriber", clock=asyncio.get_running_loop().time
    )
    stands = asyncio.Event()
    subscriber.listen(lambda _: None, stands.set)
    await asyncio.wait_for(stands.wait(), 30)
    await link.close()
    await subscriber.close()
    until(lambda: not [client for client in sentinel.clients() if client["name"].startswith("gitlab-gateway")])


async def test_a_subscriber_leaves_a_server_that_its_link_has_left_though_the_address_is_the_same(
    start_redis: Callable[..., Any], linked: Callable[..., RedisLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a name or a balancer: what is published at the next server is not heard at one that was demoted."""
    monkeypatch.setattr(redis_link, "STAYS_S", 0.0)
    old, new = start_redis(), start_redis()
    line = TcpRelay(old.port)
    await line.open()
    link = linked(f"redis://127.0.0.1:{line.port}")
    await put(link, b"before", old)
    stands: asyncio.Queue[int] = asyncio.Queue()
    subscriber = RedisSubscriber(
        link.endpoint, channel="c", name="place-test-subscriber", clock=asyncio.get_running_loop().time
    )
    subscriber.listen(lambda _: None, lambda: stands.put_nowait(1))
    await asyncio.wait_for(stands.get(), 30)
    assert pubsub_clients(old) == 1
    line.to_port = new.port
    with redis.Redis(port=old.port) as client:
        client.replicaof("127.0.0.1", 1)
    await put(link, b"after", new)
    await asyncio.to_thread(until, lambda: (pubsub_clients(old), pubsub_clients(new)) == (0, 1))
    await subscriber.close()
    await link.close()
    await line.cut()
