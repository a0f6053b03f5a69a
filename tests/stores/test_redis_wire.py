"""One connection to Redis, at a real server and at one that lies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from gateway.host_resolver import Address, HostResolver
from gateway.stores.redis_address import parse_address
from gateway.stores.redis_link import RedisLink
from gateway.stores.redis_wire import (
    RedisError,
    RedisProtocolError,
    RedisUnavailable,
    RedisValue,
    Wire,
    connect,
    pack_commands,
    server_time_us,
)
from tests.fakes.redis_cluster import start_node


async def test_replies_come_in_order_once_it_is_greeted(redis_url: str) -> None:
    heard: list[RedisValue | RedisError] = []
    both = asyncio.Event()

    def receive(reply: RedisValue | RedisError) -> None:
        heard.append(reply)
        if len(heard) == 3:
            both.set()

    wire, _ = await connect(parse_address(redis_url), "wire-test", 2.0, receive)
    wire.write(pack_commands([("CLIENT", "GETNAME"), ("NOSUCH",)]) + pack_commands([("ECHO", b"\x00\xff")]))
    await asyncio.wait_for(both.wait(), 30)
    assert heard[0] == b"gitlab-gateway:wire-test"
    assert isinstance(heard[1], RedisError)
    assert heard[2] == b"\x00\xff"
    wire.abort()
    await asyncio.wait_for(wire.lost.wait(), 30)


async def served(
    script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> tuple[str, asyncio.Server]:
    server = await asyncio.start_server(script, "127.0.0.1", 0)
    return f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", server


async def test_an_address_where_nobody_answers_leaves_the_next_one(redis_url: str) -> None:
    class Two(HostResolver):
        async def addresses(self) -> list[Address]:
            (right,) = await super().addresses()
            return [(*right[:4], ("127.0.0.99", right[4][1])), right]  # type: ignore[list-item]

    at = parse_address(redis_url)
    wire, _ = await connect(at, "wire-test", 2.0, lambda _: None, Two(at.host, at.port))
    wire.abort()
    await wire.lost.wait()


async def test_a_refused_greeting_is_raised_and_the_connection_let_go(redis_url: str) -> None:
    address = parse_address(redis_url.replace("redis://", "redis://:wrong@"))
    with pytest.raises(RedisError):
        await connect(address, "wire-test", 2.0, lambda _: None)


async def test_a_user_without_a_password_is_not_taken_for_the_default_one(start_redis: Callable[..., Any]) -> None:
    server = start_redis("--user", "bare", "on", "nopass", "~*", "&*", "+@all")
    link = RedisLink.from_url(server.url.replace("redis://", "redis://bare@"), timeout_s=60.0, name="wire-test")
    assert await link.execute("ACL", "WHOAMI") == b"bare"
    await link.close()


async def test_a_server_that_hangs_up_while_it_is_greeted_is_unavailable() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.close()

    url, server = await served(hang_up)
    with pytest.raises(RedisUnavailable):
        await connect(parse_address(url), "wire-test", 2.0, lambda _: None)
    server.close()


@pytest.mark.parametrize("is_node", [False, True], ids=["alone", "a node"])
async def test_a_server_that_refuses_whoever_connects_is_heard(start_redis: Callable[..., Any], is_node: bool) -> None:
    """It says so before it is asked, and hangs up: with uvloop that is there first."""
    server = start_node(start_redis) if is_node else start_redis()
    at = parse_address(server.url)
    with redis.Redis(port=at.port) as client:
        client.config_set("maxclients", 1)  # itself
        _, wire = await asyncio.get_running_loop().create_connection(lambda: Wire(lambda _: None), at.host, at.port)
        await asyncio.wait_for(wire.lost.wait(), 10)
    with pytest.raises(RedisError) as refused:
        await wire.greet([("PING",)])
    assert refused.value.kind == "too many clients"


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+refused by the owner\r\n"])
async def test_what_is_out_of_step_ends_the_connection(nonsense: bytes) -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"SETNAME")
        writer.write(b"+OK\r\n")
        await reader.readuntil(b"PING")
        writer.write(b"+PONG\r\n")
        await reader.readuntil(b"ECHO")
        writer.write(nonsense)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    def refuse(_: RedisValue | RedisError) -> None:
        raise RedisProtocolError

    url, server = await served(lie)
    wire, _ = await connect(parse_address(url), "wire-test", 2.0, refuse)
    wire.write(pack_commands([("ECHO", "x")]))
    await asyncio.wait_for(wire.lost.wait(), 30)
    server.close()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("READONLY You can't write against a read only replica. script: 84b3, on @user_script:1.", "READONLY"),
        (f"ERR Error running script (call to f_{'8b' * 20}): @user_script:97: @user_script: 97: -OOM command not …", "OOM"),
        (f"ERR Error running script (call to f_{'8b' * 20}): @user_script:1: WRONGTYPE Operation against …", "WRONGTYPE"),
        (
            f"ERR Error running script (call to f_{'8b' * 20}): @user_script:14: ERR value is not an integer …",
            "the stored value is not an integer",
        ),
        (
            "ERR value is not an integer or out of range script: 84b3, on @user_script:10.",
            "the stored value is not an integer",
        ),
        (f"ERR Error running script (call to f_{'8b' * 20}): @user_script:1: Script killed by user …", "ERR"),
        ("ERR The user executing the script can't run this command or subcommand script: 84b3, on …", "NOPERM"),
        (f"ERR Error running script (call to f_{'8b' * 20}): @user_script:1: @user_script: 1: The user executing …", "ERR"),
        (
            f"ERR Error running script (call to f_{'8b' * 20}): @user_script:1: @user_script: 1: "
            "The user executing the script can't access at least one of the keys mentioned in the command arguments",
            "NOPERM",
        ),
        ("ERR ACL failure in script: User u has no permissions to run the 'set' command script: 84b3, on …", "NOPERM"),
        ("ERR ACL failure in script: No permissions to access a channel script: 84b3, on @user_script:1.", "NOPERM"),
        (
            f"ERR Error running script (call to f_{'8b' * 20}): @user_script:1: @user_script: 1: "
            "Unknown Redis command called from Lua script",
            "unknown command",
        ),
        ("ERR Unknown Redis command called from script script: 84b3, on @user_script:1.", "unknown command"),
        ("ERR Unknown command called from script script: 84b3, on @user_script:1.", "unknown command"),
        ("ERR unknown command 'x: -OOM y', with args beginning with: ", "unknown command"),
        ("ERR unknown subcommand 'x'. Try SENTINEL HELP.", "unknown command"),
        ("ERR value: ERR unknown command", "ERR"),
        ("ERR AUTH <password> called without any password configured for the default user. …", "no password is set there"),
        ("ERR DB index is out of range", "no such database"),
        ("ERR SELECT is not allowed in cluster mode", "no such database"),
        ("ERR This instance has cluster support disabled", "cluster support is disabled there"),
        ("", ""),
    ],
)
def test_an_error_is_of_its_kind(text: str, kind: str) -> None:
    assert RedisError(text).kind == kind


def test_the_servers_clock() -> None:
    assert server_time_us([b"1795392000", b"000042"]) == 1_795_392_000_000_042


@pytest.mark.parametrize(
    "reply",
    [None, 17, b"17", [], [b"1"], [b"1", 2], [b"", b"0"], [b"soon", b"0"], [b"9" * 5000, b"0"], RedisError("NOPERM no")],
    ids=lambda reply: repr(reply)[:20],
)
def test_what_is_no_clock_is_no_time(reply: RedisValue | RedisError) -> None:
    with pytest.raises(RedisUnavailable):
        server_time_us(reply)
