"""The audit that real processes wrote: complete, free of secrets, and no single line of it can be touched unseen."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path

import pytest

from gateway.core.audit_chain import chain_key, verify
from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, EXTERNAL_URL, demo_config
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import ask, raw

ADMIN_KEY = "an-operators-key-of-some-length"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], bytes, list[str]]:
    """Lines, the key of their chains, and every secret that was shown to the gateway meanwhile."""
    upstreams = LoopThread()
    gitlab: DemoGitLab = build_demo_gitlab(external_url=EXTERNAL_URL, reveal=True)
    upstreams.run(gitlab.start())
    try:
        return _written(gitlab, tmp_path_factory.mktemp("record"))
    finally:
        upstreams.run(gitlab.close())
        upstreams.close()


def _written(gitlab: DemoGitLab, directory: Path) -> tuple[list[bytes], bytes, list[str]]:
    config = demo_config(
        gitlab.url,
        audit={"sink": f"file:{directory}/audit", "chain": True, "durability": "before_write"},
        admin={"keys": [{"id": "ops", "sha256": hashlib.sha256(ADMIN_KEY.encode()).hexdigest()}]},
        limits=[{"id": "caller", "by": "caller", "rate": "600/min", "burst": 200}],
    )
    gateway = GatewayProcess(config, directory / "gateway", DEMO_SECRETS)
    key = gateway.new_key("bot")
    issues = "/api/v4/projects/platform%2Fapi/issues"
    ask(gateway.port, issues, token=key)
    ask(gateway.port, f"{issues}?title=x&private_token={TOKENS.ada}", method="POST")
    ask(gateway.port, "/api/v4/internal/check", token=key)
    ask(gateway.port, "/api/v4/user", token="ggw_" + "0" * 49)
    raw(gateway.port, b"GET / HTTP/9.9\r\n\r\n")
    change = json.dumps({"limit": "caller", "subject": "bot", "factor": 2, "seconds": 60}).encode()
    reply = ask(
        gateway.admin_port,
        "/-/limits",
        f"Authorization: Bearer {ADMIN_KEY}",
        "Content-Type: application/json",
        method="POST",
        body=change,
    )
    assert reply.status == 200, reply.body
    (key_id,) = {line.split()[0] for line in gateway.command("keys", "list").stdout.splitlines()}
    gateway.command("keys", "revoke", key_id)
    assert gateway.stop() == 0
    secret = bytes.fromhex((directory / "gateway" / "state" / "audit_key").read_text())
    lines = (directory / "audit").read_bytes().splitlines()
    return lines, chain_key(secret), [key, TOKENS.ada, ADMIN_KEY, secret.hex(), *DEMO_SECRETS.values()]


Record = tuple[list[bytes], bytes, list[str]]


def found(lines: list[bytes], key: bytes) -> bool:
    return next(iter(verify(lines, key)), None) is not None


def test_as_it_was_written_it_is_whole(record: Record) -> None:
    lines, key, _ = record
    assert not found(lines, key)
    assert len({json.loads(line)["chain"] for line in lines}) == 3, "of the gateway and of two commands"


def test_every_event_is_there_and_no_secret(record: Record) -> None:
    lines, _, secrets = record
    events = [json.loads(line) for line in lines]
    requests = [
        (one.get("event"), one.get("status"), one.get("code")) for one in events if one.get("peer") and one["operation"]
    ]
    assert (None, 200, None) in requests
    assert ("forwarding", None, None) in requests
    assert (None, 201, None) in requests
    assert (None, 404, "blocked_route") in requests
    assert (None, 401, "unauthenticated") in requests
    assert [one for one in events if one.get("code") in {"bad_request", "version_not_supported"}], (
        "what never was a request"
    )
    kinds = {one.get("principal_kind") for one in events}
    assert {"admin", "command", "key"} <= kinds
    targets = " ".join(one.get("target", "") for one in events if one.get("principal_kind") == "command")
    assert "issued" in targets
    assert "revoked" in targets
    whole = b"\n".join(lines).decode()
    assert not [secret for secret in secrets if secret in whole]


def test_every_single_removal_repetition_and_move_is_found(record: Record) -> None:
    lines, key, _ = record
    for at in range(len(lines)):
        assert found(lines[:at] + lines[at + 1 :], key), at
        rest = lines[:at] + lines[at + 1 :]
        for to in range(len(lines) + 1):
            assert found([*lines[:to], lines[at], *lines[to:]], key), (at, to)
            moved = [*rest[:to], lines[at], *rest[to:]]
            assert found(moved, key) or chains(moved) == chains(lines), (at, to)
    for one, other in itertools.combinations(range(len(lines)), 2):
        swapped = [*lines]
        swapped[one], swapped[other] = lines[other], lines[one]
        assert found(swapped, key) or chains(swapped) == chains(lines), (one, other)


def chains(lines: list[bytes]) -> dict[str, list[bytes]]:
    """Lines of several processes may stand mixed in any way: each chain is in order for itself."""
    by_name: dict[str, list[bytes]] = {}
    for line in lines:
        by_name.setdefault(json.loads(line)["chain"], []).append(line)
    return by_name


def test_every_single_changed_octet_is_found(record: Record) -> None:
    """Each octet of each line, changed to another that a text may hold."""
    lines, key, _ = record
    chance = random.Random(1)
    for at, line in enumerate(lines):
        for position, octet in enumerate(line):
            other = chance.choice([each for each in b'a0"},:{ ' if each != octet])
            changed = line[:position] + bytes([other]) + line[position + 1 :]
            assert found([*lines[:at], changed, *lines[at + 1 :]], key), (at, position)


def test_every_line_put_in_by_whoever_has_no_key_is_found(record: Record) -> None:
    lines, key, _ = record
    forged = (lines[1].replace(b'"status":', b'"status":1'), b"{}", b"", lines[-1][: len(lines[-1]) // 2])
    for at in range(len(lines) + 1):
        for line in forged:
            assert found([*lines[:at], line, *lines[at:]], key), (at, line)
