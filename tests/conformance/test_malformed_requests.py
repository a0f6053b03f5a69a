"""Requests that nobody should send: each ends as its ``expect`` says, and nothing of it reaches GitLab unseen.

``expect`` of a case in malformed_requests.jsonl:
    reject4xx       one refusal (4xx, or 501 and 505 where ``statuses`` lists them), nothing whole upstream
    forward_exact   reaches upstream, well framed, with what ``upstream_has`` says; the client gets 200
    close           the connection ends, nothing whole upstream
    either_safe     RFC 9112 allows both: refused with nothing upstream, or forwarded once beyond doubt
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.import_corpus import octets
from tests.conformance.strict_upstream import (
    INJECTED,
    Final,
    Lane,
    Seen,
    StrictUpstream,
    answer,
    cases,
    finals,
    lanes,
    over,
)

LANES = 6
QUIET_S = 0.3
"""A kept connection that has been silent for so long has nothing more to say."""
FIRST_S = 4.0
"""For the first octet, or the end of a connection that must close: more than the gateway's own timeouts."""


async def serve(seen: Seen, writer: asyncio.StreamWriter) -> bool:
    body = b'{"target":"%b"}' % seen.target.replace(b'"', b"'")
    whole = answer(body, b"Cache-Control: no-store")
    writer.write(whole[: -len(body)] if seen.method == b"HEAD" else whole)
    await writer.drain()
    return True


async def _learn(lane: Lane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Two plain requests: the second is understood without the parser, as what comes next would be if it could."""
    for _ in range(2):
        writer.write(f"GET /api/v4/version HTTP/1.1\r\nHost: gateway.test\r\nPRIVATE-TOKEN: {lane.key}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
    lane.upstream.forget()


async def _talk(lane: Lane, case: dict[str, Any], raw: bytes, *, known: bool) -> tuple[bytes, bool]:
    """What came back, and whether the gateway ended the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", lane.gateway.port)
    if known:
        await _learn(lane, reader, writer)
    got, ended = bytearray(), False
    step = case.get("split") or len(raw) or 1
    try:
        try:
            for start in range(0, len(raw), step):
                writer.write(raw[start : start + step])
                await writer.drain()
                await asyncio.sleep(0.002 if case.get("split") else 0)  # segments of their own
            if case.get("half_closes"):
                writer.write_eof()
        except OSError:
            pass  # ended already: a reset, or nothing left to half-close
        while not ended:
            waiting_s = FIRST_S if not got or case.get("closes") else QUIET_S
            try:
                async with asyncio.timeout(waiting_s):
                    data = await reader.read(65536)
            except TimeoutError:
                break
            except ConnectionError:
                ended = True
                break
            got += data
            ended = not data
    finally:
        writer.close()
    return bytes(got), ended


def _judge(case: dict[str, Any], lane: Lane, got: bytes, ended: bool) -> list[str]:
    """What is wrong."""
    raw = octets(case["octets"]).encode("latin-1")
    methods = [raw.lstrip(b"\r\n").split(b" ", 1)[0], b"GET"]
    answers, left = finals(got, methods)
    statuses = [one.status for one in answers]
    seen = lane.upstream.seen
    whole = [one for one in seen if one.whole]
    heads = b"".join(one.head + one.trailers for one in seen).lower()
    everything = heads + b"".join(one.body for one in whole).lower()
    wrong = [f"upstream: {anomaly}" for anomaly in lane.upstream.anomalies]

    if any(b"smuggled" in one.target for one in seen):
        wrong.append("a smuggled request reached GitLab")
    wrong += credentials(lane, seen, got)
    for folded in case.get("upstream_lacks", ()):
        text = octets(folded).encode("latin-1").lower()
        if text in (everything if case["category"] == "CL" else heads):
            wrong.append(f"GitLab saw {text[:60]!r}")
    if wrong_5xx := [status for status in statuses if status >= 500 and status not in {501, 505}]:
        wrong.append(f"answered {wrong_5xx}")
    if any(not one.whole for one in answers) or left.strip(b"\r\n"):
        wrong.append(f"unreadable to the client: {left[:60]!r}")
    least, most = case["upstream"]
    if len(whole) > most:
        wrong.append(f"{len(whole)} requests reached GitLab, at most {most} may")
    expected = case.get("answers")
    if expected and not expected[0] <= len(answers) <= expected[1]:
        wrong.append(f"{len(answers)} answers, not {expected}")
    if least <= len(whole) and len(whole):
        missing = [
            octets(one)[:60] for one in case.get("upstream_has", ()) if octets(one).encode().lower() not in everything
        ]
        wrong += [f"GitLab did not see {text!r}" for text in missing]
    wrong += _expected(case, answers, statuses, len(whole), ended)
    return wrong


def credentials(lane: Lane, seen: list[Seen], got: bytes) -> list[str]:
    """GitLab sees the brokered credential, exactly once, and never the gateway's key; the client sees neither."""
    wrong = []
    for key in (lane.key.encode(), lane.other_key.encode()):
        if any(key in one.head for one in seen):
            wrong.append("a gateway key reached GitLab")
        if key in got:
            wrong.append("a gateway key was echoed")
    if any(one.head.count(INJECTED.encode()) != 1 for one in seen):
        wrong.append("the brokered credential is not there exactly once")
    if INJECTED.encode() in got:
        wrong.append("the brokered credential reached the client")
    return wrong


def _expected(case: dict[str, Any], answers: list[Final], statuses: list[int], whole: int, ended: bool) -> list[str]:
    refused = bool(statuses) and (400 <= statuses[0] < 500 or statuses[0] in {501, 505})
    match case["expect"]:
        case "reject4xx":
            fits = refused and statuses[0] in case.get("statuses", statuses) and len(answers) == 1
            if not fits:
                return [f"answered {statuses} instead of one of {case.get('statuses', '4xx')}"]
            if case.get("closes") and not ended:
                return ["the connection stayed open"]
        case "close":
            if not ended or (statuses and statuses[0] < 400):
                return [f"answered {statuses}, {'ended' if ended else 'open'}"]
        case "forward_exact":
            if whole < case["upstream"][0] or not statuses or statuses[0] != 200:
                return [f"{whole} requests upstream, answered {statuses}"]
        case "either_safe":
            if not whole and not refused and not ended:
                return [f"neither forwarded, refused nor closed: {statuses}"]
        case other:
            return [f"unknown expectation {other}"]
    return []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("known", [False, True], ids=["by the parser", "behind requests that are known"])
async def test_every_malformed_request_ends_as_expected(tmp_path: Path, *, known: bool) -> None:
    wrong: dict[str, list[str]] = {}

    async def one(lane: Lane, case: dict[str, Any]) -> None:
        lane.upstream.forget()
        got, ended = await _talk(lane, case, lane.raw(case["octets"]), known=known)
        found = _judge(case, lane, got, ended)
        if f"/api/v4/canary/{case['id']}".encode() not in await lane.canary(case["id"]):
            found.append("the next request on a fresh connection did not get its own answer")
        if found:
            wrong[case["id"]] = found

    corpus = cases("requests")
    assert len(corpus) > 300
    async with lanes(LANES, tmp_path, lambda: StrictUpstream(serve)) as found:
        await over(found, corpus, one)
        exposed = [await asyncio.to_thread(lane.gateway.metrics) for lane in found]
    assert not wrong, "\n".join(f"{name}: {'; '.join(problems)}" for name, problems in wrong.items())
    assert [lane.secrets_told() for lane in found] == [[]] * LANES
    assert not [text for text in exposed if "canary" in text or "smuggled" in text]  # no client's text in labels
