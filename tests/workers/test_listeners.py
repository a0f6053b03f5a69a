"""Sockets bound for others to accept at."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from gateway.config.units import HostPort
from gateway.workers.listeners import bind, naming, place_of


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
        place = HostPort("127.0.0.1", port)
        with (
            pytest.raises(OSError, match=f"listen.admin 127.0.0.1:{port}: Address already in use$"),
            naming("listen.admin", place),
        ):
            bind(place)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError(errno.EADDRINUSE, "error while attempting to bind: in use"), os.strerror(errno.EADDRINUSE)),
        (OSError("no address of it can be used here"), "no address of it can be used here"),
    ],
    ids=["unknown name", "the loop's own sentence", "no number"],
)
def test_whose_place_can_not_be_had_is_said(error: OSError, said: str) -> None:
    with pytest.raises(OSError, match="listen") as raised, naming("listen.address", HostPort("nowhere.invalid", 8080)):
        raise error
    assert raised.value.strerror == f"listen.address nowhere.invalid:8080: {said}"


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
