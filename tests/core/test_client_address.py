"""Only listed peers are believed, and only about who stood before them."""

from __future__ import annotations

import pytest

from gateway.core import client_address
from gateway.core.client_address import TrustedPeers


def xff(*lines: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"X-Forwarded-For", line) for line in lines)


def test_nobody_is_trusted_by_default() -> None:
    peers = TrustedPeers()
    assert not peers.trusts("127.0.0.1")
    assert peers.client("127.0.0.1", xff(b"1.2.3.4")) == "127.0.0.1"


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        pytest.param((b"203.0.113.9",), "203.0.113.9", id="one"),
        pytest.param((b"6.6.6.6, 203.0.113.9, 10.0.0.2",), "203.0.113.9", id="spoofed-entries-left"),
        pytest.param((b"6.6.6.6", b"203.0.113.9"), "203.0.113.9", id="two-lines"),
        pytest.param((b"203.0.113.9:4711",), "203.0.113.9", id="with-port"),
        pytest.param((b"[2001:db8::1]:4711",), "2001:db8::1", id="ipv6-with-port"),
        pytest.param((b"2001:db8::1",), "2001:db8::1", id="ipv6"),
        pytest.param((b"::ffff:203.0.113.9",), "203.0.113.9", id="mapped"),
        pytest.param((b"6.6.6.6, garbage, 10.0.0.2",), "10.0.0.2", id="unreadable-ends-the-walk"),
        pytest.param((b"10.0.0.3, 10.0.0.2",), "10.0.0.3", id="all-trusted"),
        pytest.param((), "10.0.0.1", id="none"),
    ],
)
def test_behind_a_trusted_proxy(lines: tuple[bytes, ...], client: str) -> None:
    peers = TrustedPeers(["10.0.0.0/8"])
    assert peers.client("10.0.0.1", xff(*lines)) == client


def test_unix_peers_are_trusted_by_name() -> None:
    assert TrustedPeers(["unix:"]).client("unix:", xff(b"203.0.113.9")) == "203.0.113.9"
    assert not TrustedPeers(["10.0.0.0/8"]).trusts("unix:")


def test_the_memo_is_bounded() -> None:
    peers = TrustedPeers(["10.0.0.0/8"])
    for number in range(9000):
        assert peers.trusts(f"10.0.{number // 256}.{number % 256}")
    assert 0 < len(peers._memo) <= client_address._MEMO_BOUND
    assert not peers.trusts("not an address")
