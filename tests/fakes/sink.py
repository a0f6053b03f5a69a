"""An audit's sink in memory."""

from __future__ import annotations


class MemorySink:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.octets = b""

    def write(self, lines: bytes) -> int:
        self.octets += lines
        return len(lines)

    def sync(self) -> None:
        return

    def was_emptied(self) -> bool:
        return False

    def close(self) -> None:
        return
