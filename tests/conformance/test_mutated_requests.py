"""The corpus of malformed requests, bent further, through the process: whatever comes, GitLab reads sound requests alone.

The same streams in every run. What each must end as nobody can say; what must never happen holds for all of them.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.credentials import CREDENTIAL_FIELDS
from tests.conformance.strict_upstream import Lane, Seen, StrictUpstream, cases, finals, lanes, over
from tests.conformance.test_malformed_requests import credentials, serve

LANES = 4
STREAMS = 400
SEED = 9112
LONGEST = 8192
QUIET_S = 0.1
SHARP = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0\r\n\r\n",
    b"5\r\n",
    b"Transfer-Encoding: chunked\r\n",
)
SHARP += (
    b"Content-Length: 5\r\n",
    b"\r\n\r\n",
    b"GET /x HTTP/1.1\r\n",
    b"%2e%2e/",
    b"%00",
    b"\xff",
    b"Host: gateway.test\r\n",
)


def bent(stream: bytes, other: bytes, chance: random.Random) -> bytes:
    """One change, or two: octets turned, cut out, repeated or put in; or the head of one stream on the tail of another."""
    for _ in range(chance.randint(1, 2)):
        at = chance.randint(0, len(stream))
        end = min(len(stream), at + chance.randint(1, 24))
        match chance.randrange(5):
            case 0:
                stream = (
                    stream[:at]
                    + bytes(octet ^ (1 << chance.randrange(8)) for octet in stream[at : at + 1])
                    + stream[at + 1 :]
                )
            case 1:
                stream = stream[:at] + stream[end:]
            case 2:
                stream = stream[:end] + stream[at:]
            case 3:
                stream = stream[:at] + chance.choice(SHARP) + stream[at:]
            case _:
                stream = stream[:at] + other[chance.randint(0, len(other)) :]
    return stream[:LONGEST]


async def _talk(lane: Lane, stream: bytes, cut: int) -> bytes:
    """In two segments; what came back before the connection fell silent or ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", lane.gateway.port)
    got = b""
    try:
        for part in (stream[:cut], stream[cut:]):
            writer.write(part)
            await writer.drain()
        while True:
            async with asyncio.timeout(QUIET_S):
                data = await reader.read(65536)
            if not data:
                break
            got += data
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return got


def _without_strange_fields(seen: Seen) -> Seen:
    """A key that a bent line carries in a field of no meaning is for the client to keep to itself."""
    return replace(seen, fields=[(name, value) for name, value in seen.fields if name.lower() in CREDENTIAL_FIELDS])


@pytest.mark.timeout(180)
async def test_whatever_comes_gitlab_reads_sound_requests_alone(tmp_path: Path) -> None:
    corpus = [case for case in cases("requests") if len(case["octets"]) < 40]
    sound = [case for case in corpus if case["expect"] == "forward_exact"]
    wrong: dict[int, list[str]] = {}
    forwarded = 0

    async def one(lane: Lane, number: int) -> None:
        nonlocal forwarded
        own = random.Random(SEED + number)
        stream = bent(*(lane.raw(own.choice(some)["octets"]) for some in (sound, corpus)), own)
        lane.upstream.forget()
        got = await _talk(lane, stream, own.randint(0, len(stream)))
        answers, _ = finals(got, [])
        found = [f"upstream: {anomaly}" for anomaly in lane.upstream.anomalies]
        found += credentials(lane, [_without_strange_fields(one) for one in lane.upstream.seen], got)
        found += [
            f"answered {answer.status}" for answer in answers if answer.status >= 500 and answer.status not in {501, 505}
        ]
        if f"/api/v4/canary/{number}".encode() not in await lane.canary(str(number)):
            found.append("the next request on a fresh connection did not get its own answer")
        forwarded += len(lane.upstream.seen)
        if found:
            wrong[number] = [repr(stream), *found]

    async with lanes(LANES, tmp_path, lambda: StrictUpstream(serve)) as found:
        await over(found, range(STREAMS), one)
    assert not wrong, "\n".join(f"{number}: {'; '.join(problems)}" for number, problems in wrong.items())
    assert forwarded > STREAMS + STREAMS // 10, "beside the canaries, some of it passes"
    assert [lane.secrets_told() for lane in found] == [[]] * LANES
