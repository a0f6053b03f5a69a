"""The Redis link against real servers: order, timeouts, cancellation, reconnecting, TLS."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop

from gateway.stores import redis_link
from gateway.stores.redis_link import RedisError, RedisLink, RedisUnavailable
from gateway.stores.redis_wire import pack_commands
from tests.fakes.line import TcpRelay

from .patience import LONG_S, waits

StartRedis = Callable[..., Any]
PAUSE_MS = 2000


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=LONG_S, name="test")
    yield link
    await link.close()


async def back(link: RedisLink) -> None:
    """Until the link answers again, now patient. Asks at each turn of the keeper's own pace."""
    link._timeout_s = LONG_S
    async with asyncio.timeout(30):
        while True:
            try:
                await link.execute("PING")
            except RedisUnavailable:
                await asyncio.sleep(0.02)
            else:
                return


async def test_values_of_every_kind(link: RedisLink) -> None:
    assert await link.execute("SET", b"k\x00\xff", 1.5) == b"OK"
    assert await link.execute("GET", b"k\x00\xff") == b"1.5"
    assert await link.execute("GET", "absent") is None
    assert await link.execute("INCRBY", "n", 7) == 7
    assert await link.execute("MGET", "n", "absent") == [b"7", None]
    assert link.healthy


async def test_a_server_without_a_command_that_is_needed_is_unwell(start_redis: Callable[..., Any]) -> None:
    """A Sentinel, say, or a Redis where it is renamed."""
    link = RedisLink.from_url(start_redis("--rename-command", "EVALSHA", "").url, timeout_s=LONG_S, name="link-test")
    with pytest.raises(RedisError):
        await link.execute("EVALSHA", "0" * 40, "0")
    assert (link.healthy, link.trouble) == (False, "unknown command")
    await link.close()


async def test_an_error_is_raised_or_a_value_in_place(link: RedisLink) -> None:
    with pytest.raises(RedisError) as refused:
        await link.execute("INCR")
    assert refused.value.kind == "ERR"
    replies = await link.execute_many([("SET", "k", "x"), ("LPUSH", "k", "y"), ("GET", "k")])
    assert isinstance(replies[1], RedisError)
    assert replies[1].kind == "WRONGTYPE"
    assert (replies[0], replies[2]) == (b"OK", b"x")
    assert link.healthy


async def test_an_error_does_not_repeat_what_was_sent(link: RedisLink) -> None:
    with pytest.raises(RedisError) as refused:
        await link.execute("AUTHENTICATE", "hunter2")
    assert "hunter2" not in str(refused.value) + repr(refused.value)


async def test_many_callers_each_get_their_own_reply(link: RedisLink) -> None:
    replies = await asyncio.gather(*[link.execute("ECHO", str(number)) for number in range(1000)])
    assert replies == [str(number).encode() for number in range(1000)]


async def test_calls_in_between_have_their_own_replies_in_order(link: RedisLink, caplog: pytest.LogCaptureFixture) -> None:
    """Posts leave at the turn's end, calls at once; a fault of one who hears harms nobody."""
    await link.execute("PING")
    heard: list[object] = []

    def fail(reply: object) -> None:
        heard.append(reply)
        raise ZeroDivisionError

    posts = [link.submit([("ECHO", "post 1"), ("ECHO", "post 2")])]
    link.call_now(pack_commands([("ECHO", "call 1")]), heard.append)
    link.call_now(pack_commands([("ECHO", "call 2")]), fail)
    link.call_now(pack_commands([("INCR",)]), heard.append)
    posts.append(link.submit([("ECHO", "post 3")]))
    assert await asyncio.gather(*posts) == [[b"post 1", b"post 2"], [b"post 3"]]
    assert heard[:2] == [[b"call 1"], [b"call 2"]]
    assert isinstance(heard[2], list)
    assert isinstance(heard[2][0], RedisError)
    assert "Redis reply callback failed" in caplog.text
    assert link.healthy


async def test_what_is_asked_leaves_with_the_turns_posts_and_may_be_cancelled(link: RedisLink) -> None:
    await link.execute("PING")
    heard: list[object] = []
    writes: list[bytes] = []
    assert link._wire is not None
    real = link._wire.write
    link._wire.write = lambda octets: (writes.append(octets), real(octets))  # type: ignore[method-assign, assignment, return-value]
    link.call_batched(pack_commands([("ECHO", "1"), ("ECHO", "2")]), 2, heard.append)
    left = link.call_batched(pack_commands([("ECHO", "3"), ("ECHO", "4")]), 2, heard.append)
    left.cancel()
    posted = link.submit([("ECHO", "5")])
    link.call_batched(pack_commands([("ECHO", "6")]), 1, heard.append)
    assert writes == []
    assert await posted == [b"5"]
    await link.execute("PING")
    assert heard == [[b"1", b"2"], [b"6"]]
    left.cancel()
    assert len(writes) == 2
    assert link.healthy


async def test_who_left_is_not_told_of_an_outage(start_redis: StartRedis) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="test")
    await link.execute("PING")
    waits(link, 0.1)
    server.process.send_signal(signal.SIGSTOP)
    heard: list[object] = []
    done = asyncio.Event()
    link.call_batched(pack_commands([("PING",)]), 1, heard.append).cancel()
    link.call_batched(pack_commands([("PING",)]), 1, lambda _replies: done.set())
    await done.wait()
    server.process.send_signal(signal.SIGCONT)
    assert heard == []
    await link.close()
    with pytest.raises(RedisUnavailable):
        link.call_batched(pack_commands([("PING",)]), 1, heard.append)
    assert heard == []


async def test_one_who_is_told_of_an_outage_may_leave_for_another_or_ask_again(start_redis: StartRedis) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="test")
    await link.execute("PING")
    waits(link, 0.1)
    server.process.send_signal(signal.SIGSTOP)
    heard: list[str] = []
    done = asyncio.Event()

    def first(_: object) -> None:
        heard.append("first")
        second.cancel()
        link.call_batched(pack_commands([("PING",)]), 1, lambda _: (heard.append("again"), done.set()))  # type: ignore[arg-type, return-value]

    link.call_batched(pack_commands([("PING",)]), 1, first)
    second = link.call_batched(pack_commands([("PING",)]), 1, lambda _: heard.append("second"))
    link.call_batched(pack_commands([("PING",)]), 1, lambda _: heard.append("third"))
    async with asyncio.timeout(30):
        await done.wait()
    server.process.send_signal(signal.SIGCONT)
    assert heard == ["first", "third", "again"]
    await link.close()


async def test_who_asks_again_when_told_of_an_outage_makes_nobody_wait_longer(start_redis: StartRedis) -> None:
    """Of those that wait the first in time is looked at next, whoever asked last."""
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="test")
    await link.execute("PING")
    waits(link, 1.0)
    server.process.send_signal(signal.SIGSTOP)
    looks: list[float] = []
    done = asyncio.Event()

    def again(_: object) -> None:
        link.call_batched(pack_commands([("PING",)]), 1, lambda _: done.set())

    link.call_batched(pack_commands([("PING",)]), 1, again)
    await asyncio.sleep(0.5)
    link.call_batched(pack_commands([("PING",)]), 1, lambda _: looks.append(min(slot.deadline for slot in link._slots)))
    deadline = link._slots[-1].deadline
    while len(link._slots) < 3:
        await asyncio.sleep(0)
    assert link._timer is not None
    assert link._timer.when() == pytest.approx(deadline, abs=0.01)
    async with asyncio.timeout(30):
        await done.wait()
    server.process.send_signal(signal.SIGCONT)
    assert looks
    await link.close()


async def test_who_calls_a_redis_that_stops_hears_of_it(start_redis: StartRedis) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="test")
    await link.execute("PING")
    waits(link, 0.2)
    server.process.send_signal(signal.SIGSTOP)
    heard: list[object] = []
    done = asyncio.Event()
    link.call_now(pack_commands([("PING",)]), heard.append)
    link.call_now(pack_commands([("PING",)]), lambda reply: (heard.append(reply), done.set()))  # type: ignore[arg-type, return-value]
    await done.wait()
    server.process.send_signal(signal.SIGCONT)
    assert [type(one) for one in heard] == [RedisUnavailable] * 2
    assert await link.execute("ECHO", "mine") == b"mine", "late replies are nobody's"
    assert len(heard) == 2
    await link.close()
    with pytest.raises(RedisUnavailable):
        link.call_now(pack_commands([("PING",)]), heard.append)


async def test_no_commands_no_replies(link: RedisLink) -> None:
    assert await link.execute_many([]) == []


async def test_what_cannot_be_sent_leaves_no_place_in_the_queue(link: RedisLink) -> None:
    with pytest.raises((TypeError, ValueError)):
        await link.execute("ECHO", object())  # type: ignore[arg-type]
    assert await link.execute("ECHO", "mine") == b"mine"


async def test_a_cancelled_caller_leaves_nobody_the_wrong_reply(link: RedisLink) -> None:
    await link.execute("PING")
    for turns in range(4):
        gone = asyncio.ensure_future(link.execute("ECHO", "gone"))
        for _ in range(turns):
            await asyncio.sleep(0)
        gone.cancel()
        assert await link.execute("ECHO", "mine") == b"mine"


async def test_a_slow_reply_is_dropped_and_the_next_is_ones_own(redis_url: str) -> None:
    link = RedisLink.from_url(redis_url, timeout_s=LONG_S, name="test")
    admin = RedisLink.from_url(redis_url, timeout_s=LONG_S, name="admin")
    await link.execute("PING")
    waits(link, 0.05)
    await admin.execute("CLIENT", "PAUSE", PAUSE_MS, "ALL")
    started = time.monotonic()
    with pytest.raises(RedisUnavailable):
        await link.execute("ECHO", "late")
    assert time.monotonic() - started >= 0.045
    assert not link.healthy
    assert len(link._slots) == 1, "the pause is not over, and its place is kept"
    await back(link)
    assert await link.execute("ECHO", "mine") == b"mine"
    assert link.healthy
    await link.close()
    await admin.close()


async def test_a_stopped_redis_costs_the_first_callers_their_timeout_and_later_ones_nothing(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="test")
    await link.execute("PING")
    waits(link, 0.05)
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        first = await asyncio.gather(*[link.execute("PING") for _ in range(20)], return_exceptions=True)
        assert all(isinstance(one, RedisUnavailable) for one in first)
        for _ in range(200):
            with pytest.raises(RedisUnavailable):
                link.execute("PING").send(None)  # without one turn of the event loop
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await back(link)
    await link.close()


async def test_a_killed_redis_fails_at_once_and_is_found_again(start_redis: StartRedis) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="test")
    await link.execute("PING")
    server.stop()
    results = await asyncio.gather(*[link.execute("PING") for _ in range(50)], return_exceptions=True)
    assert all(isinstance(one, RedisUnavailable) for one in results)
    while link.trouble != "ConnectionRefusedError":
        await asyncio.sleep(0.01)
    with pytest.raises(RedisUnavailable):
        link.execute("PING").send(None)  # without one turn of the event loop
    server.start()
    await back(link)
    await link.close()


async def test_what_greets_a_new_connection_stands_before_whatever_waited_for_it(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="test")
    heard: list[object] = []
    link.on_connect = lambda: link.call_batched(pack_commands([("INCR", "n")]), 1, heard.append)  # type: ignore[assignment, return-value]
    assert await asyncio.gather(link.execute("INCR", "n"), link.execute("INCR", "n")) == [2, 3]
    assert heard == [[1]]
    server.stop()
    server.start()
    async with asyncio.timeout(30):
        while len(heard) < 2:  # asked by nobody
            await asyncio.sleep(0.01)
    assert await link.execute("INCR", "n") == 2
    link.on_connect = lambda: 1 / 0  # type: ignore[assignment, return-value]
    await link.execute_many([("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")])
    await back(link)
    assert "Redis greeting callback failed" in caplog.text
    await link.close()


async def test_nobody_listening() -> None:
    link = RedisLink.from_url("redis://127.0.0.1:1/0", timeout_s=LONG_S, name="test")
    with pytest.raises(RedisUnavailable):
        await link.execute("PING")
    assert not link.healthy
    await link.close()


async def test_a_host_name_no_resolver_takes() -> None:
    link = RedisLink.from_url(f"redis://{'x' * 70}.localhost:1/0", timeout_s=LONG_S, name="test")
    for _ in range(2):
        with pytest.raises(RedisUnavailable):
            await link.execute("PING")
    await link.close()


async def test_password_user_and_database(start_redis: StartRedis) -> None:
    server = start_redis()
    admin = RedisLink.from_url(server.url, timeout_s=LONG_S, name="admin")
    await admin.execute("CONFIG", "SET", "requirepass", "p@ss word")
    await admin.close()
    link = RedisLink.from_url(f"redis://default:p%40ss%20word@127.0.0.1:{server.port}/2", timeout_s=LONG_S, name="cache")
    await link.execute("SET", "k", 1)
    info = await link.execute("CLIENT", "INFO")
    assert isinstance(info, bytes)
    assert b" db=2 " in info
    assert b" name=gitlab-gateway:cache " in info
    wrong = RedisLink.from_url(f"redis://:nope@127.0.0.1:{server.port}/2", timeout_s=LONG_S, name="cache")
    with pytest.raises(RedisUnavailable):
        await wrong.execute("GET", "k")
    assert wrong.trouble == "WRONGPASS"
    await link.close()
    await wrong.close()


async def test_unix_socket(start_redis: StartRedis, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    start_redis("--unixsocket", str(path))
    link = RedisLink.from_url(f"unix://{path}?db=1", timeout_s=LONG_S, name="test")
    assert await link.execute("SET", "k", 1) == b"OK"
    await link.close()


async def test_closing_fails_who_waits_and_later_callers(redis_url: str) -> None:
    link = RedisLink.from_url(redis_url, timeout_s=LONG_S, name="test")
    await link.execute("PING")
    waiting = asyncio.ensure_future(link.execute("BLPOP", "nothing", 4))
    await asyncio.sleep(0)
    await link.close()
    with pytest.raises(RedisUnavailable):
        await waiting
    with pytest.raises(RedisUnavailable):
        await link.execute("PING")
    await link.close()


async def test_a_link_never_used_closes() -> None:
    link = RedisLink.from_url("redis://127.0.0.1:1/0", timeout_s=LONG_S, name="test")
    await link.close()
    with pytest.raises(RedisUnavailable):
        await link.execute("PING")


async def test_calls_under_way_are_bounded(redis_url: str) -> None:
    link = RedisLink.from_url(redis_url, timeout_s=LONG_S, name="test")
    results = await asyncio.gather(*[link.execute("PING") for _ in range(5000)], return_exceptions=True)
    assert results.count(b"PONG") == 4096
    assert sum(isinstance(one, RedisUnavailable) for one in results) == 904
    assert await link.execute("PING") == b"PONG"
    await link.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(4096)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n+PONG\r\n", b"$-7\r\n"])
async def test_a_peer_that_is_out_of_step_is_left(garbage: bytes) -> None:
    """Too many replies, or none that Redis would give: the connection can't be believed any more."""
    connections = 0
    ended: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while asked := await _read(reader):
            greetings = asked.count(b"SETNAME") + asked.count(b"PING")
            writer.write(b"+OK\r\n" * greetings or garbage)
        writer.close()
        ended.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = RedisLink.from_url(f"redis://127.0.0.1:{port}/0", timeout_s=LONG_S, name="test")
    outcomes = [
        await asyncio.gather(link.execute("GET", "k"), return_exceptions=True),
        await asyncio.gather(link.execute("GET", "k"), return_exceptions=True),
    ]
    assert any(isinstance(outcome[0], RedisUnavailable) for outcome in outcomes)
    while connections < 2:
        await asyncio.sleep(0.01)
    await link.close()
    while len(ended) < connections:
        await asyncio.sleep(0.01)
    await asyncio.gather(*[writer.wait_closed() for writer in ended], return_exceptions=True)
    server.close()
    await server.wait_closed()


def test_the_loop_that_serves_reaches_redis_too(redis_url: str) -> None:
    """uvloop's transports are no subclass of asyncio's."""

    async def ask() -> None:
        link = RedisLink.from_url(redis_url, timeout_s=LONG_S, name="test")
        assert await link.execute("PING") == b"PONG"
        assert link.healthy
        await link.close()

    uvloop.run(ask())


async def test_a_read_only_redis_is_unwell_though_it_answers(redis_url: str) -> None:
    link = RedisLink.from_url(redis_url, timeout_s=LONG_S, name="test")
    await link.execute("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(RedisError):
            await link.execute("SET", "k", "v")
        assert await link.execute("PING") == b"PONG"
        assert (link.healthy, link.trouble, link.failures) == (False, "READONLY", 1)
    finally:
        await link.execute("REPLICAOF", "NO", "ONE")
        await link.close()


async def test_failures_are_counted_and_named() -> None:
    link = RedisLink.from_url("redis://127.0.0.1:1/0", timeout_s=LONG_S, name="test")
    for failures in (1, 2):
        with pytest.raises(RedisUnavailable):
            await link.execute("PING")
        assert (link.failures, link.trouble, link.healthy) == (failures, "ConnectionRefusedError", False)
    await link.close()


async def test_a_name_that_leads_to_another_server_since_is_asked_again_when_this_one_takes_no_writes(
    start_redis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "STAYS_S", 0.0)
    old, new = start_redis(), start_redis()
    line = TcpRelay(old.port)
    await line.open()
    link = RedisLink.from_url(f"redis://127.0.0.1:{line.port}", timeout_s=LONG_S, name="link-test")
    try:
        await link.execute("SET", "x", "1")
        line.to_port = new.port
        with redis.Redis(port=old.port) as client:
            client.replicaof("127.0.0.1", 1)
        with pytest.raises(RedisError):
            await link.execute("SET", "x", "2")
        await link.execute("SET", "x", "3")
        with redis.Redis(port=new.port) as client:
            assert client.get("x") == b"3"
    finally:
        await link.close()
        await line.cut()


async def test_a_server_that_takes_no_writes_is_not_left_at_once(start_redis: Callable[..., Any]) -> None:
    """What it can be asked it answers; a read-only Redis is no reason for an outage of reads."""
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="link-test")
    await link.execute("SET", "x", "1")
    with redis.Redis(port=server.port) as client:
        client.replicaof("127.0.0.1", 1)
    number = await link.execute("CLIENT", "ID")
    for _ in range(3):
        with pytest.raises(RedisError):
            await link.execute("SET", "x", "2")
    assert await link.execute("CLIENT", "ID") == number
    await link.close()
