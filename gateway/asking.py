"""A request that is answered without a task of its own: the connection it came by, and whoever deals with it."""

from __future__ import annotations

from typing import Protocol

from .core.messages import RequestHead


class Begun(Protocol):
    """A request that has come some way without a task of its own, and needs one now."""

    head: RequestHead

    def leave(self) -> None:
        """The client went away before anybody took it on."""
        ...


class Asker(Protocol):
    """A connection whose request is being answered without a task."""

    def is_gone(self) -> bool:
        """Nobody is there to be told."""
        ...

    def told(self, octets: bytes | None, begun: Begun | None = None) -> None:
        """The whole answer as it goes over the wire; None: the request is to be handled as any other, or from where it was
        ``begun``. Called once."""
        ...


class Asking(Protocol):
    """That request, until its ``Asker`` is told."""

    def leave(self) -> None:
        """The client went away. Nobody is told any more."""
        ...

    def drained(self) -> bytes:
        """The gateway can't wait any longer: the answer that says so. Nobody is told any more."""
        ...
