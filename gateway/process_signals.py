"""What a process that serves is told by signals, from its start to its very end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator

Hear = Callable[[int, Callable[[], None]], None]
"""Which call a signal means from now on, as ``AbstractEventLoop.add_signal_handler``."""

TOLD = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def run_process(
    main: Callable[[Hear], Coroutine[None, None, int]], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> int:
    """As ``asyncio.run``, for a process that ends then and has no threads yet; the exit code.

    A loop gives back the signals that it hears when it closes, and the system's answer to them is to end the process:
    who had drained, and left with 0, would be one that a second signal killed. Here all threads block them for good, but
    one that waits for them and does nothing else; what comes before ``main`` hears it is kept, and what comes behind its
    end is told to nobody. OSError: no further thread can be had, here or later.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
    with _limit_told(), asyncio.Runner(loop_factory=loop_factory) as runner, _woken(runner.get_loop()):
        told = _Told(runner.get_loop())
        for number in TOLD:
            # For a thread of somebody else's that was there before. And a shell has its background ignore some of them,
            # and the system may not keep what is ignored.
            signal.signal(number, lambda number, _: told.tell(number))
        threading.Thread(target=_listen, args=(told,), name="signals", daemon=True).start()
        return runner.run(main(told.hear))


@contextlib.contextmanager
def _limit_told() -> Iterator[None]:
    """In words: of a thread that can't be started Python says neither why, nor in a class of its own."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        raise OSError(errno.EAGAIN, "no thread can be started: a limit of processes is reached") from error


@contextlib.contextmanager
def _woken(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Whatever thread a signal came to: asyncio's own loop would sleep on unless it hears that signal itself."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for one in (ours, theirs):
            one.setblocking(False)
        loop.add_reader(ours, ours.recv, 4096)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            loop.remove_reader(ours)


class _Told:
    """In the thread of its loop, but for ``tell``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: dict[int, Callable[[], None]] = {}
        self._kept: set[int] = set()

    def hear(self, number: int, call: Callable[[], None]) -> None:
        self._calls[number] = call
        if number in self._kept:
            self._kept.remove(number)
            self._loop.call_soon(call)

    def tell(self, number: int) -> None:
        """In any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell, number)

    def _tell(self, number: int) -> None:
        if (call := self._calls.get(number)) is not None:
            call()
        else:
            self._kept.add(number)


def _listen(told: _Told) -> None:
    while True:
        told.tell(signal.sigwait(TOLD))
