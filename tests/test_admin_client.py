"""Asking the admin port: what it says, and what says nothing."""

from __future__ import annotations

import argparse
import socket
import threading

import pytest

from gateway.admin_client import KEY, KeyUnusable, address, ask, place_to_ask, read_admin_key
from gateway.config.units import parse_host_port


def answering(octets: bytes) -> tuple[str, list[bytes]]:
    """A server of one answer, and what it was asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with listener, connection:
            asked.append(connection.recv(65536))
            connection.sendall(octets)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}", asked


def test_status_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "an-admin-key")
    place, asked = answering(b'HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\n{"a":1}')
    assert ask(place, "POST", "/-/x", {"b": 2}) == (201, {"a": 1})
    assert b"Authorization: Bearer an-admin-key" in asked[0]


@pytest.mark.parametrize("given", ["an-admin-key\r\n", "an-admin-key\r", "  an-admin-key\t"])
def test_white_space_around_the_key_is_not_the_key(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, given)
    place, asked = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert ask(place, "GET", "/-/x") == (200, {})
    assert b"Authorization: Bearer an-admin-key\r\n" in asked[0]


@pytest.mark.parametrize("given", ["abc def", "abc\r\ndef", "schlüssel", "abc€", "abc\x7f", "abc\udcff"])
def test_what_is_no_key_is_refused_and_not_shown(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, given)
    with pytest.raises(KeyUnusable) as refused:
        ask("127.0.0.1:9", "GET", "/-/x")
    assert KEY in str(refused.value)
    assert "abc" not in str(refused.value)
    assert "schl" not in str(refused.value)


def test_without_a_key_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    assert read_admin_key() == ""


@pytest.mark.parametrize("octets", [b"\x16\x03\x01", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<h", b""])
def test_who_is_no_admin_port_is_said_to_be_none(octets: bytes) -> None:
    place, _ = answering(octets)
    with pytest.raises(OSError, match=r"does not answer like an admin port|reset"):
        ask(place, "GET", "/-/x")


def test_an_address_is_judged_as_an_argument() -> None:
    assert address("[::1]:9901") == "[::1]:9901"
    with pytest.raises(argparse.ArgumentTypeError, match="'foo' is not an address"):
        address("foo")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(OSError, match=rf"^{place}: Connection refused: .*--admin"):
        ask(place, "GET", "/-/x")


@pytest.mark.parametrize(
    ("listens", "asked"),
    [
        ("127.0.0.1:9901", "127.0.0.1:9901"),
        ("gateway:9901", "gateway:9901"),
        ("0.0.0.0:9902", "127.0.0.1:9902"),
        ("[::]:9902", "[::1]:9902"),
    ],
)
def test_every_address_is_none_to_ask_at(listens: str, asked: str) -> None:
    assert place_to_ask(parse_host_port(listens)) == asked
