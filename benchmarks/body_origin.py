"""An origin of large bodies: any GET is answered with OCTETS octets, any upload is read to its end.

python -m benchmarks.body_origin PORT OCTETS
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_PIECE = bytes(256 << 10)


class _Client(asyncio.Protocol):
    def __init__(self, octets: int) -> None:
        self._octets = octets
        self._head = b""
        self._missing = 0
        self._unsent = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport is one in all but name

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
            if not self._missing:
                self._transport.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        self._head = b""
        if head.startswith(b"GET"):
            head_format = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
            self._transport.write(head_format % self._octets)
            self._unsent = self._octets
            self.resume_writing()
        else:
            length = _LENGTH.search(head)
            self._missing = int(length[1]) if length is not None else 0
            if rest:
                self.data_received(rest)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        while self._unsent and not self._paused:
            piece = _PIECE[: self._unsent]
            self._unsent -= len(piece)
            self._transport.write(piece)


async def main(port: int, octets: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Client(octets), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
