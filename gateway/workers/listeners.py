"""Sockets bound once, for several processes to accept at.

One socket for all rather than one each (``SO_REUSEPORT``): connections that wait belong to no worker yet, so one that dies
or is slow takes none with it, and a port that another program has is an error instead of half of the traffic.
"""

from __future__ import annotations

import contextlib
import socket

from ..config.units import HostPort


def bind(place: HostPort) -> tuple[socket.socket, ...]:
    """One socket for each address of the host, bound and not yet listening: the first worker that serves begins that.

    Raises OSError.
    """
    resolved = socket.getaddrinfo(place.host or None, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as bound:
        sockets = []
        for family, kind, protocol, _, address in dict.fromkeys(resolved):
            try:
                one = bound.enter_context(socket.socket(family, kind, protocol))
            except OSError:  # of a family that the system names, but does not speak
                continue
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind(address)
            except OSError as error:
                raise OSError(error.errno, f"{place}: {error.strerror}") from None
            sockets.append(one)
        if not sockets:
            raise OSError(f"{place}: no address of it can be used here")
        bound.pop_all()
    return tuple(sockets)


def place_of(bound: socket.socket) -> str:
    """The ``host:port`` that the socket is bound to."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
