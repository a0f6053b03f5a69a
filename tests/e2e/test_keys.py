"""Gateway keys with bounds, through the real process: by address, by time, and made elsewhere."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

from gateway.core.gateway_key import new_key
from gateway.demo.seed import TOKENS
from tests.e2e.running import GatewayProcess
from tests.e2e.test_lifecycle import REVOKED_WITHIN_S, until
from tests.e2e.wire import ask, stranger

TARGET = "/api/v4/projects/platform%2Fapi"


def _free(gateway: GatewayProcess, identity: str) -> None:
    for row in _rows(gateway, identity):
        if row["state"] in {"live", "pending"}:
            gateway.command("keys", "revoke", row["id"])


def _rows(gateway: GatewayProcess, identity: str) -> list[dict[str, Any]]:
    return list(json.loads(gateway.command("keys", "list", identity, "--json").stdout))


def test_a_key_bound_to_an_address_is_unknown_from_another(gateway: GatewayProcess) -> None:
    _free(gateway, "spare")
    key = gateway.command("keys", "new", "spare", "--cidr", "127.0.0.1/32").stdout.splitlines()[-1]
    source = stranger()
    for _ in range(3):  # the same head again and again, as it is answered by shorter and shorter ways
        assert ask(gateway.port, TARGET, token=key).status == 200
        refused = ask(gateway.port, TARGET, token=key, source=source)
        unknown = ask(gateway.port, TARGET, token=new_key(secrets.token_bytes(32)).reveal(), source=source)
        assert (refused.status, refused.body) == (unknown.status, unknown.body) == (401, b'{"message":"401 Unauthorized"}')
    assert [bool(row["last_used_at"]) for row in _rows(gateway, "spare") if row["state"] == "live"] == [True]


def test_a_key_before_its_time_is_unknown(gateway: GatewayProcess) -> None:
    _free(gateway, "spare")
    key = gateway.command("keys", "new", "spare", "--not-before", "1m", "--expires", "2m").stdout.splitlines()[-1]
    assert ask(gateway.port, TARGET, token=key, source=stranger()).status == 401
    assert [row["state"] for row in _rows(gateway, "spare")][-1] == "pending"


def test_a_key_made_elsewhere_works_once_its_hash_is_imported(gateway: GatewayProcess) -> None:
    _free(gateway, "spare")
    key = new_key(secrets.token_bytes(32)).reveal()
    assert ask(gateway.port, TARGET, token=key, source=stranger()).status == 401
    done = gateway.command("keys", "import", "spare", hashlib.sha256(key.encode()).hexdigest())
    line = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("{")))
    assert (line["operation"], line["identity"], line["principal_kind"]) == ("key imported", "spare", "command")
    # Each time from another address: one with many wrong keys is refused for a while.
    until(lambda: ask(gateway.port, TARGET, token=key, source=stranger()).status == 200, REVOKED_WITHIN_S)


def test_a_key_replaced_without_overlap_ends_and_its_successor_works(gateway: GatewayProcess) -> None:
    _free(gateway, "spare")
    older, source = gateway.new_key("spare"), stranger()
    assert ask(gateway.port, TARGET, token=older).status == 200
    newer = gateway.command("keys", "rotate", "spare", "--overlap", "0s").stdout.splitlines()[-1]
    assert ask(gateway.port, TARGET, token=newer).status == 200
    until(lambda: ask(gateway.port, TARGET, token=older, source=source).status == 401, REVOKED_WITHIN_S)


def test_both_keys_work_during_the_overlap(gateway: GatewayProcess) -> None:
    _free(gateway, "spare")
    older = gateway.new_key("spare")
    newer = gateway.command("keys", "rotate", "spare", "--overlap", "1h").stdout.splitlines()[-1]
    for _ in range(3):  # the same head again and again, as it is answered by shorter and shorter ways
        replies = [ask(gateway.port, TARGET, token=key) for key in (older, newer)]
        assert [reply.status for reply in replies] == [200, 200]
        named = [gateway.audited(reply.request_id)["credential_id"] for reply in replies]
        assert named == [row["id"] for row in _rows(gateway, "spare") if row["state"] == "live"]


def test_the_audit_names_a_persons_token_as_gitlab_does(gateway: GatewayProcess) -> None:
    own = json.loads(ask(gateway.port, "/api/v4/personal_access_tokens/self", token=TOKENS.ada).body)["id"]
    reply = ask(gateway.port, TARGET, token=TOKENS.ada)
    assert gateway.audited(reply.request_id)["credential_id"] == f"token:{own}"
