"""Sockets bound for others to accept at."""

from __future__ import annotations

import socket

import pytest

from gateway.config.units import HostPort
from gateway.workers.listeners import bind, place_of


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_it_is_bound_and_nobody_is_accepted_yet(host: str, shown: str) -> None:
    (bound,) = bind(HostPort(host, 0))
    with bound:
        port = bound.getsockname()[1]
        assert place_of(bound) == f"{shown}:{port}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), 5)
        bound.listen()
        socket.create_connection((host, port), 5).close()


def test_every_address_of_a_name_has_one() -> None:
    found = {address[4][0] for address in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    bound = bind(HostPort("localhost", 0))
    assert {one.getsockname()[0] for one in bound} == found
    for one in bound:
        one.close()


def test_a_port_that_is_taken_is_named_and_nothing_is_left_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: Address already in use"):
            bind(HostPort("127.0.0.1", port))


def test_a_process_started_again_gets_the_port_at_once() -> None:
    """Connections of the one before may still be ending."""
    (first,) = bind(HostPort("127.0.0.1", 0))
    first.listen()
    port = first.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port), 5)
    accepted, _ = first.accept()
    accepted.close()
    client.close()
    first.close()
    (second,) = bind(HostPort("127.0.0.1", port))
    second.listen()
    second.close()
