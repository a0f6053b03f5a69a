"""Answers that no upstream should give: a clean 502 or a cut connection, never a body that only looks whole.

``expect`` of a case in malformed_responses.jsonl:
    pass_exact     the client gets it, whole
    bad_gateway    502 or 504
    abort_client   the client cannot take what it got for a whole answer
    either_safe    any of these; never 500, never a hang
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.import_corpus import octets
from tests.conformance.strict_upstream import Lane, Seen, StrictUpstream, answer, cases, finals, lanes, over

LANES = 4
CORPUS = {case["id"]: case for case in cases("responses")}
EARLY_BODY = b"x" * (4 << 20)

_INTERIM = re.compile(rb"\AHTTP/1\.1 10[02-9][^\r]*\r\n(?:[^\r\n]+\r\n)*\r\n")
_CASE = re.compile(rb"/api/v4/(resp|canary)/([\w-]+)")


def _case_of(seen: Seen) -> dict[str, Any] | None:
    """The case a request asks for; None for a canary."""
    found = _CASE.fullmatch(seen.target)
    assert found is not None, seen.target
    return CORPUS[found[2].decode()] if found[1] == b"resp" else None


def _reads_body(seen: Seen) -> bool:
    case = _case_of(seen) if b"/resp/" in seen.target else None
    return case is None or case["category"] != "early"


async def _serve(seen: Seen, writer: asyncio.StreamWriter) -> bool:
    case = _case_of(seen)
    if case is None:
        writer.write(answer(b'{"canary":"%b"}' % seen.target.rpartition(b"/")[2]))
        return True
    writer.write(octets(case["octets"]).encode("latin-1"))
    await writer.drain()
    if case["category"] == "early":
        await asyncio.sleep(0.3)  # the answer is read before the connection ends
        return False
    return not case.get("closes")


async def _ask(lane: Lane, case: dict[str, Any]) -> tuple[bytes, bool]:
    method = case["method"]
    body = EARLY_BODY if case["category"] == "early" else b"hello" if method == "POST" else b""
    lines = [f"{method} /api/v4/resp/{case['id']} HTTP/1.1", "Host: gateway.test", f"PRIVATE-TOKEN: {lane.key}"]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    reader, writer = await asyncio.open_connection("127.0.0.1", lane.gateway.port)
    got = bytearray()
    try:
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        async with asyncio.timeout(8.0):
            while data := await reader.read(1 << 20):
                got += data
    except TimeoutError:
        return bytes(got), False
    except ConnectionError:
        pass
    finally:
        writer.close()
    return bytes(got), True


def _judge(case: dict[str, Any], got: bytes, ended: bool) -> list[str]:
    answers, left = finals(got, [case["method"].encode()])
    final = answers[0] if answers else None
    status = final.status if final is not None else None
    whole = final is not None and final.whole and not left
    wrong = [] if ended else ["a hang"]
    low = got.lower()
    lacks = [octets(one) for one in case.get("client_lacks", ())]
    wrong += [f"the client saw {text[:50]!r}" for text in lacks if text.encode("latin-1").lower() in low]
    match case["expect"]:
        case "pass_exact":
            sent = octets(case["octets"]).encode("latin-1")
            while interim := _INTERIM.match(sent):
                sent = sent[interim.end() :]
            if str(status).encode() != sent[9:12] or not whole:
                wrong.append(f"answered {status}, {'whole' if whole else 'in part'}")
            missing = [
                octets(one) for one in case.get("client_has", ()) if octets(one).encode("latin-1").lower() not in low
            ]
            wrong += [f"the client did not see {text[:50]!r}" for text in missing]
        case "bad_gateway":
            if status not in {502, 504}:
                wrong.append(f"answered {status}")
        case "abort_client":
            if whole and status not in {502, 504}:
                wrong.append(f"a {status} that looks whole")
        case "either_safe":
            if status == 500:
                wrong.append("answered 500")
        case other:
            wrong.append(f"unknown expectation {other}")
    return wrong


def _connections(lane: Lane, case: dict[str, Any]) -> list[str]:
    """No connection that answered wrongly answers again, and no POST is sent twice."""
    asked = [seen.connection for seen in lane.upstream.seen if b"/resp/" in seen.target]
    next_on = [seen.connection for seen in lane.upstream.seen if b"/canary/" in seen.target]
    wrong = [f"upstream: {anomaly}" for anomaly in lane.upstream.anomalies]
    desynchronised = case["category"] in {"framing", "bodyless", "early", "interim"} and case["expect"] != "either_safe"
    if desynchronised and not case.get("reusable") and set(asked) & set(next_on):
        wrong.append("a connection was used again after it")
    if case["method"] == "POST" and len(asked) > 1:
        wrong.append(f"a POST was sent {len(asked)} times")
    return wrong


@pytest.mark.timeout(180)
async def test_every_malformed_response_ends_as_expected(tmp_path: Path) -> None:
    wrong: dict[str, list[str]] = {}

    async def one(lane: Lane, case: dict[str, Any]) -> None:
        lane.upstream.forget()
        found = _judge(case, *await _ask(lane, case))
        if b'"canary":"%b"' % case["id"].encode() not in await lane.canary(case["id"]):
            found.append("the next request did not get its own answer")
        found += _connections(lane, case)
        if found:
            wrong[case["id"]] = found

    assert len(CORPUS) > 40
    async with lanes(LANES, tmp_path, lambda: StrictUpstream(_serve, _reads_body)) as found:
        await over(found, list(CORPUS.values()), one)
    assert not wrong, "\n".join(f"{name}: {'; '.join(problems)}" for name, problems in wrong.items())
    assert [lane.secrets_told() for lane in found] == [[]] * LANES
