"""Octets: a target reaches GitLab exactly as it was sent, or it is refused; nothing in between."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.errors import Rejection
from gateway.core.target import parse_target
from tests.e2e.conftest import OWN_TOKEN
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Peer, Reply
from tests.fakes.gitlab import FakeGitLab, response

TABLE = Path(__file__).parent.parent / "data" / "nasty_targets.txt"


def rows() -> list[tuple[str, bytes]]:
    found = []
    for line in TABLE.read_text("ascii").split("\n")[:-1]:
        if not line.startswith("#"):
            expected, _, written = line.partition(" ")
            found.append((expected, written.encode().decode("unicode_escape").encode("latin-1")))
    return found


def send(port: int, target: bytes, *fields: bytes) -> Reply:
    """Ask for ``target`` and read the answer."""
    with Peer(port) as peer:
        peer.send(b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"Host: x", *fields, b"", b""]))
        return peer.read_reply()


_NUGET = b"/api/v4/projects/1/packages/nuget/download/a/1/a.nupkg"


def in_origin_form(target: bytes) -> bytes:
    """What an absolute target is to the server it names (RFC 9112 §3.2.1)."""
    if target[:7].lower() not in {b"http://", b"https:/"}:
        return target
    rest = target.partition(b"://")[2]
    end = next((index for index, octet in enumerate(rest) if octet in b"/?"), len(rest))
    return rest[end:] if rest[end : end + 1] == b"/" else b"/" + rest[end:]


@pytest.fixture(params=["own", "brokered"])
def token(request: pytest.FixtureRequest, recorded_keys: SimpleNamespace) -> str:
    return OWN_TOKEN if request.param == "own" else str(recorded_keys.bot)


def test_every_target_of_the_table_arrives_as_sent_or_not_at_all(
    recorded_gateway: GatewayProcess, recorder: FakeGitLab, token: str
) -> None:
    table = rows()
    assert len(table) >= 200
    if token != OWN_TOKEN:
        # What GitLab calls the credential's user is asked once, before the first request that bears the name.
        recorder.script(response(200, b'{"username": "bot"}'), response(200, b"[]"))
        assert send(recorded_gateway.port, _NUGET, b"PRIVATE-TOKEN: " + token.encode()).status == 200
        recorder.settle()
    arrived: list[bytes] = []
    wanted: list[bytes] = []
    wrong: list[tuple[bytes, int]] = []
    for expected, target in table:
        if b"\r\n" in target:
            continue  # at a socket that is no target but the end of one
        before = len(recorder.requests)
        recorder.script(response(200, b"[]"))
        reply = send(recorded_gateway.port, target, b"PRIVATE-TOKEN: " + token.encode())
        came = [one.target for one in recorder.requests[before:]]
        if not came:
            recorder.unscript()
        if b" " in target.strip(b" "):
            wrong += [(target, reply.status)] if came else []
        elif b" " in target:
            # The parser skips blanks around a target (RFC 9112 §3 lets it); they must not go up.
            wrong += [(target, reply.status)] if came not in ([], [target.strip(b" ")]) else []
        elif expected == "400":
            wrong += [] if reply.status == 400 and not came else [(target, reply.status)]
        elif reply.value("X-Gateway-Error") == "blocked_route":
            wrong += [(target, reply.status)] if came else []
        elif b"?token=" in target and reply.value("X-Gateway-Error") == "ambiguous_credential":
            # Beside a gateway key another credential, which no way of writing it lets up.
            wrong += [(target, reply.status)] if came else []
        else:
            wrong += [] if reply.status == 200 else [(target, reply.status)]
            wanted.append(in_origin_form(target))
            arrived += came
    assert wrong == []
    assert len(wanted) >= 200
    assert arrived == wanted


_octets = st.sampled_from(
    [bytes([octet]) for octet in range(0x21, 0x7F) if octet not in b'#\\"<>^`{|}']
    + [b"%%%02x" % octet for octet in range(1, 256)]
    + [b"%%%02X" % octet for octet in range(1, 256)]
    + [b"%252F", b"%2F", b"%2f", b"//", b"/", b"..", b".", b"+", b"%20", b";", b"[]", b"&", b"=", b"?", b"%25"]
)
_targets = st.lists(_octets, max_size=40).map(lambda parts: b"/api/v4/projects/" + b"".join(parts))


def _is_well_formed(target: bytes) -> bool:
    try:
        parse_target(target, max_bytes=16384)
    except Rejection:
        return False
    return True


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=_targets)
def test_any_target_arrives_as_sent_or_not_at_all(
    recorded_gateway: GatewayProcess, recorder: FakeGitLab, target: bytes
) -> None:
    recorder.settle()
    recorder.script(response(200, b"[]"))
    # No credential: what a target may hold beside one is a question of its own (test_credentials.py).
    status = send(recorded_gateway.port, target).status
    if not recorder.requests:
        recorder.unscript()
        assert 400 <= status < 500
        assert not _is_well_formed(target) or b"_method" in target
        return
    assert status == 200
    assert [one.target for one in recorder.requests] == [target]
