"""Sockets bound once, for several processes to accept at.

One socket for all rather than one each (``SO_REUSEPORT``): connections that wait belong to no worker yet, so one that dies
or is slow takes none with it, and a port that another program has is an error instead of half of the traffic.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

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
            one.bind(address)
            sockets.append(one)
        if not sockets:
            raise OSError("no address of it can be used here")
        bound.pop_all()
    return tuple(sockets)


@contextlib.contextmanager
def naming(setting: str, place: HostPort) -> Iterator[None]:
    """Name the setting and its ``place`` in the OSError of whoever can't listen there: the resolver's names neither."""
    try:
        yield
    except OSError as error:
        # Event loops write a sentence of their own about a port, and a resolver's number is not one of the system's.
        resolver = isinstance(error, socket.gaierror)
        why = error.strerror or str(error) if resolver or error.errno is None else os.strerror(error.errno)
        raise OSError(error.errno, f"{setting} {place}: {why}") from error


def place_of(bound: socket.socket) -> str:
    """The ``host:port`` that the socket is bound to."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
