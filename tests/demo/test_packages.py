"""Bodies of any size, whole and by ranges."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gateway.demo.packages import pattern
from gateway.demo.seed import TOKENS

GENERIC = "/api/v4/projects/platform%2Fapi/packages/generic"
STREAM = f"{GENERIC}/stream/1.0.0"


async def collect(start: int, end: int) -> bytes:
    return b"".join([chunk async for chunk in pattern(start, end)])


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 256), (255, 257), (3, 200_000)])
async def test_the_pattern_repeats_every_256_octets(start: int, end: int) -> None:
    assert await collect(start, end) == bytes(number % 256 for number in range(start, end))


async def test_as_many_octets_as_asked_for(ask: Any) -> None:
    reply = await ask("GET", f"{STREAM}/100000.bin", TOKENS.ada)
    assert reply.body == await collect(0, 100_000)
    assert reply.headers["Content-Length"] == "100000"
    assert "ETag" not in reply.headers
    head = await ask("HEAD", f"{STREAM}/10000000000.bin", TOKENS.ada)
    assert (head.headers["Content-Length"], head.body) == ("10000000000", b"")


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=10-", 206, 10, 1000),
        ("bytes=-5", 206, 995, 1000),
        ("bytes=990-5000", 206, 990, 1000),
        ("bytes=1000-", 416, 0, 0),
        ("bytes=5-1", 416, 0, 0),
        ("bytes=-", 200, 0, 1000),
        ("bytes=0-1,5-6", 200, 0, 1000),
        ("lines=1-2", 200, 0, 1000),
    ],
)
async def test_ranges(ask: Any, asked: str, status: int, start: int, end: int) -> None:
    reply = await ask("GET", f"{STREAM}/1000.bin", TOKENS.ada, {"Range": asked})
    assert (reply.status, reply.body) == (status, await collect(start, end))
    if status == 206:
        assert reply.headers["Content-Range"] == f"bytes {start}-{end - 1}/1000"
    if status == 416:
        assert reply.headers["Content-Range"] == "bytes */1000"


@pytest.mark.parametrize(
    ("token", "headers"),
    [
        (TOKENS.ada, {}),
        (None, {"Authorization": f"Bearer {TOKENS.ada}"}),
        (None, {"JOB-TOKEN": TOKENS.job}),
    ],
)
async def test_what_goes_up_comes_down(ask: Any, token: str | None, headers: dict[str, str]) -> None:
    target = f"{GENERIC}/pkg/1.0+x~1/dir%2Ff%20g.bin"
    sent = await ask("PUT", target, token, headers, b"\0\xff" * 10)
    assert sent.json["file_sha256"] == hashlib.sha256(b"\0\xff" * 10).hexdigest()
    assert (await ask("GET", target, token, headers)).body == b"\0\xff" * 10
    assert (await ask("GET", f"{GENERIC}/pkg/1.0+x~1/dir/f%20g.bin", token, headers)).status == 200
    listed = await ask("GET", "/api/v4/projects/1/packages", TOKENS.ada)
    assert listed.json == [{"name": "pkg/1.0+x~1/dir/f g.bin", "size": 20}]


async def test_a_deploy_token_reads(ask: Any) -> None:
    reply = await ask("GET", f"{STREAM}/1.bin", None, {"Deploy-Token": TOKENS.deploy})
    assert reply.body == b"\0"


async def test_what_is_too_large_is_counted_but_not_kept(ask: Any) -> None:
    sent = await ask("PUT", f"{GENERIC}/big/1/f", TOKENS.ada, body=bytes(9 * 1024 * 1024))
    assert sent.json["size"] == 9 * 1024 * 1024
    assert (await ask("GET", f"{GENERIC}/big/1/f", TOKENS.ada)).body == b'{"message":"404 Package Not Found"}'


async def test_packages_of_an_unknown_type_are_refused(ask: Any) -> None:
    assert (await ask("GET", "/api/v4/projects/1/packages?package_type=unknown", TOKENS.ada)).status == 400
