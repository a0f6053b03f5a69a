"""Two clients without opinions: a raw socket, and curl."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from dataclasses import dataclass

TIMEOUT_S = 30.0

_strangers = itertools.count(1)


@dataclass(frozen=True)
class Reply:
    """An answer, octet for octet."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field.lower() == name.lower()]

    def value(self, name: str) -> str | None:
        """Of a field that must not be there twice."""
        found = self.values(name)
        assert len(found) <= 1, f"{name} twice: {found}"
        return found[0] if found else None

    @property
    def names(self) -> set[str]:
        return {name.lower() for name, _ in self.fields}

    @property
    def request_id(self) -> str:
        found = self.value("X-Gateway-Request-Id")
        assert found is not None
        return found


class Peer:
    """One connection to the gateway."""

    def __init__(self, port: int, source: str | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source and (source, 0))
        self._unread = bytearray()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def more(self) -> bytes:
        return self.socket.recv(65536)

    def read_head(self) -> tuple[int, list[tuple[str, str]]]:
        while b"\r\n\r\n" not in self._unread:
            octets = self.more()
            assert octets, f"the connection ended within a head: {self._unread!r}"
            self._unread += octets
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        line, *rest = head.decode("latin-1").split("\r\n")
        fields = [(name, value.strip(" \t")) for name, _, value in (one.partition(":") for one in rest)]
        return int(line.split(" ")[1]), fields

    def read_exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            octets = self.more()
            assert octets, f"the connection ended {size - len(self._unread)} octets early"
            self._unread += octets
        found = bytes(self._unread[:size])
        del self._unread[:size]
        return found

    def read_line(self) -> bytes:
        while b"\r\n" not in self._unread:
            octets = self.more()
            assert octets, "the connection ended within a line"
            self._unread += octets
        line, _, self._unread = self._unread.partition(b"\r\n")
        return bytes(line)

    def read_to_end(self) -> bytes:
        found = [bytes(self._unread)]
        while octets := self.more():
            found.append(octets)
        return b"".join(found)

    def read_reply(self, method: str = "GET") -> Reply:
        status, fields = self.read_head()
        named = {name.lower(): value for name, value in fields}
        if method == "HEAD" or status in {204, 304} or status < 200:
            return Reply(status, fields, b"")
        if named.get("transfer-encoding", "").lower() == "chunked":
            return Reply(status, fields, b"".join(self._chunks()))
        if "content-length" in named:
            return Reply(status, fields, self.read_exactly(int(named["content-length"])))
        return Reply(status, fields, self.read_to_end())

    def _chunks(self) -> list[bytes]:
        chunks = []
        while size := int(self.read_line().partition(b";")[0], 16):
            chunks.append(self.read_exactly(size))
            assert self.read_line() == b""
        while self.read_line():
            pass
        return chunks


def raw(port: int, octets: bytes, *, source: str | None = None) -> Reply:
    """Send these octets and read one answer."""
    with Peer(port, source) as peer:
        peer.send(octets)
        return peer.read_reply(octets.partition(b" ")[0].decode("latin-1"))


def ask(
    port: int,
    target: str | bytes,
    *fields: str,
    method: str = "GET",
    body: bytes | None = None,
    token: str | None = None,
    source: str | None = None,
    host: str | None = None,
) -> Reply:
    """A plain request: ``target`` and ``fields`` (``"Name: value"``) go out as they are."""
    lines = [f"Host: {host or f'127.0.0.1:{port}'}", *fields]
    if token is not None:
        lines.append(f"PRIVATE-TOKEN: {token}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    raw_target = target if isinstance(target, bytes) else target.encode("latin-1")
    head = method.encode() + b" " + raw_target + b" HTTP/1.1\r\n" + "\r\n".join([*lines, "", ""]).encode("latin-1")
    return raw(port, head + (body or b""), source=source)


def curl(*arguments: str, code: int = 0) -> Reply:
    """Run curl with ``--include``; its final answer. ``code`` is the exit code it must have."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--include", "--max-time", "20", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S + 10,
        check=False,
    )
    assert done.returncode == code, f"curl ended with {done.returncode}: {done.stderr.decode()}"
    octets = done.stdout
    while True:  # past 100 Continue
        head, _, body = octets.partition(b"\r\n\r\n")
        line, *rest = head.decode("latin-1").split("\r\n")
        status = int(line.split(" ")[1])
        if status >= 200:
            break
        octets = body
    return Reply(status, [(name, value.strip(" \t")) for name, _, value in (one.partition(":") for one in rest)], body)


def stranger() -> str:
    """A loopback address that has not failed a login yet: failed logins are limited per address."""
    number = next(_strangers)
    return f"127.7.{number >> 8}.{number & 255}" if sys.platform == "linux" else "127.0.0.1"
