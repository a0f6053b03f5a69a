"""The cache: nobody sees what is another's, and nobody asks GitLab twice for nothing."""

from __future__ import annotations

import itertools

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import OWN_TOKEN, Passage
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Reply, ask
from tests.fakes.gitlab import response

TARGET = "/api/v4/projects/platform%2Fapi"


def outcome(reply: Reply) -> str:
    """What ``Cache-Status`` says became of it."""
    return (reply.value("Cache-Status") or "").removeprefix("gateway; ")


def test_x20_identities_never_share_an_entry(gateway: GatewayProcess, bot_key: str, reader_key: str, sudo_key: str) -> None:
    """Each new caller's first answer is a miss, though Ada's token is behind three of them."""
    target = f"{TARGET}?x20"
    callers = [
        ({"token": TOKENS.ada}, ()),
        ({"token": TOKENS.bob}, ()),
        ({"token": TOKENS.ada_read}, ()),
        ({"token": bot_key}, ()),
        ({"token": reader_key}, ()),
        ({"token": TOKENS.root_sudo}, ()),
        ({"token": TOKENS.root_sudo}, ("Sudo: ada",)),
        ({"token": TOKENS.root_sudo}, ("Sudo: bob",)),
        ({}, (f"Authorization: Bearer {TOKENS.oauth}",)),
    ]
    for options, fields in callers:
        first = ask(gateway.port, target, *fields, **options)
        assert first.status == 200
        assert "fwd=uri-miss" in outcome(first) or "fwd=vary-miss" in outcome(first), (fields, outcome(first))
    for options, fields in callers:
        assert "fwd=stale; fwd-status=304" in outcome(ask(gateway.port, target, *fields, **options))
    assert ask(gateway.port, target).status == 404
    assert ask(gateway.port, target, token=TOKENS.eve).status == 404


@pytest.mark.parametrize("status", [401, 403, 404])
def test_x20_a_refused_revalidation_drops_the_entry(passage: Passage, status: int) -> None:
    target = f"/api/v4/projects/7?x20={status}"
    fields = (("ETag", 'W/"x20"'), ("Content-Type", "application/json"))
    passage(target, token=OWN_TOKEN, answer=response(200, b"secret", *fields))
    _, asked = passage(target, token=OWN_TOKEN, answer=response(304, b"", fields[0]))
    assert asked.values("If-None-Match") == [b'W/"x20"']
    refused, _ = passage(target, token=OWN_TOKEN, answer=response(status, b"{}"))
    assert refused.status == status
    _, asked = passage(target, token=OWN_TOKEN, answer=response(200, b"{}"))
    assert asked.values("If-None-Match") == []


def test_two_gateways_share_entries_but_not_across_callers(
    pair: tuple[GatewayProcess, GatewayProcess], demo: DemoGitLab
) -> None:
    """Behind one name, that is: what an answer's links look like depends on what the client calls the gateway."""
    target = f"{TARGET}/issues?shared"
    first, second = pair
    assert "fwd=uri-miss" in outcome(ask(first.port, target, token=TOKENS.ada, host="gateway.test"))
    again = ask(second.port, target, token=TOKENS.ada, host="gateway.test")
    assert "fwd=stale; fwd-status=304" in outcome(again)
    assert demo.journal[-1].values("if-none-match") == [(again.value("ETag") or "").encode()]
    assert "fwd=uri-miss" in outcome(ask(second.port, target, token=TOKENS.bob, host="gateway.test"))


def test_a_write_is_seen_at_once(gateway: GatewayProcess, bot_key: str) -> None:
    target = f"{TARGET}/issues/4"
    for token, title in itertools.product((TOKENS.ada, bot_key), ("one", "two")):
        ask(gateway.port, f"{target}?title={title}", method="PUT", body=b"", token=token)
        for reader in (TOKENS.ada, bot_key, TOKENS.bob):
            assert f'"title":"{title}"' in ask(gateway.port, target, token=reader).body.decode()
