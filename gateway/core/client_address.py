"""The client's address: the peer's, or the one that a trusted proxy vouches for (``X-Forwarded-For``)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from .messages import Field, values

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MEMO_BOUND = 8192


class TrustedPeers:
    """The trusted proxies in front of the gateway; none by default.

    Args:
        networks: CIDRs; ``unix:`` trusts peers on Unix sockets.
    """

    __slots__ = ("_memo", "_networks", "_unix")

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._unix = "unix:" in networks
        self._networks: tuple[Network, ...] = tuple(
            ipaddress.ip_network(network, strict=False) for network in networks if network != "unix:"
        )
        self._memo: dict[str, bool] = {}

    def trusts(self, peer: str) -> bool:
        """Whether ``peer`` (an address without port) is a trusted proxy."""
        if not self._networks and not self._unix:
            return False
        known = self._memo.get(peer)
        if known is None:
            known = self._judge(peer)
            if len(self._memo) >= _MEMO_BOUND:
                self._memo.clear()
            self._memo[peer] = known
        return known

    def _judge(self, peer: str) -> bool:
        if peer == "unix:":
            return self._unix
        address = _address(peer)
        return address is not None and any(address in network for network in self._networks)

    def client(self, peer: str, fields: Iterable[Field]) -> str:
        """The address of the client: ``peer``, or the last X-Forwarded-For entry that is not a trusted proxy.

        Entries further left are only the client's word. An unreadable entry ends the walk: what vouched for it counts.
        """
        if not self.trusts(peer):
            return peer
        client = peer
        for entry in reversed(b",".join(values(fields, b"x-forwarded-for")).split(b",")):
            text = entry.strip(b" \t").decode("latin-1")
            address = _address(_without_port(text))
            if address is None:
                break
            client = str(address)
            if not self.trusts(client):
                break
        return client


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
