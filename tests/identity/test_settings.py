from __future__ import annotations

import pytest

from gateway.identity.settings import Networks


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.20.3.4", True),
        ("::ffff:10.20.3.4", True),
        ("10.21.0.1", False),
        ("2001:db8::7", True),
        ("2001:db9::7", False),
        ("fe80::1%eth0", False),
        ("unix:", False),
        ("", False),
        ("10.20.3.4, 10.20.3.5", False),
        ("010.20.3.4", False),
    ],
)
def test_where_an_identity_may_come_from(address: str, inside: bool) -> None:
    networks = Networks(("10.20.0.0/16", "2001:db8::/32"))
    assert (address in networks) is inside
    assert (address in networks) is inside


@pytest.mark.parametrize("address", ["192.0.2.1", "unix:", ""])
def test_without_networks_anywhere_will_do(address: str) -> None:
    assert address in Networks()


@pytest.mark.parametrize("cidr", ["10.20.0.1/16", "here", ""])
def test_what_is_no_network_is_refused(cidr: str) -> None:
    with pytest.raises(ValueError):
        Networks((cidr,))


def test_the_memory_of_judgements_is_bounded() -> None:
    networks = Networks(("10.0.0.0/8",))
    for number in range(10_000):
        assert f"10.{number >> 8}.{number & 255}.1" in networks
    assert len(networks._allowed) <= 4096
