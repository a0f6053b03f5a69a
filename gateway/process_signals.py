"""The signals of a process that serves, from its start to its very end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator

OnSignal = Callable[[int, Callable[[], None]], None]
"""Sets the callback of a signal from now on, as ``AbstractEventLoop.add_signal_handler`` does."""

HANDLED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def run_process(
    main: Callable[[OnSignal], Coroutine[None, None, int]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """As ``asyncio.run``, for a process that ends afterwards and has no threads yet. Returns the exit code.

    When an event loop closes, it gives up the signals that it handled, and their default action ends the process: one that
    had drained, and would exit with 0, would be killed by a second signal. Here all threads block these signals for good,
    but for one that waits for them and does nothing else; what comes before ``main`` sets a callback is kept, and what
    comes after its end is ignored. Raises OSError where no further thread can be started, here or later.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    with _thread_limit_explained(), asyncio.Runner(loop_factory=loop_factory) as runner, _wakeup_fd(runner.get_loop()):
        dispatcher = _Dispatcher(runner.get_loop())
        for number in HANDLED:
            # For a thread of somebody else's that was there before. Besides, a shell has its background jobs ignore some of
            # these signals, and what is ignored the system may drop instead of keeping it pending.
            signal.signal(number, lambda number, _: dispatcher.dispatch(number))
        threading.Thread(target=_listen, args=(dispatcher,), name="signals", daemon=True).start()
        return runner.run(main(dispatcher.on_signal))


@contextlib.contextmanager
def _thread_limit_explained() -> Iterator[None]:
    """Say in words that no thread can be started: Python gives neither a reason nor a class of exception of its own."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        raise OSError(errno.EAGAIN, "no thread can be started: a limit of processes is reached") from error


@contextlib.contextmanager
def _wakeup_fd(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Wake the loop, whichever thread takes a signal: asyncio's own loop sleeps on unless it handles that signal itself."""
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


class _Dispatcher:
    """Calls the callbacks set for signals. For the thread of its loop alone, except ``dispatch``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._pending: set[int] = set()

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        self._callbacks[number] = callback
        if number in self._pending:
            self._pending.remove(number)
            self._loop.call_soon(callback)

    def dispatch(self, number: int) -> None:
        """Pass a signal on; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._dispatch, number)

    def _dispatch(self, number: int) -> None:
        if (callback := self._callbacks.get(number)) is not None:
            callback()
        else:
            self._pending.add(number)


def _listen(dispatcher: _Dispatcher) -> None:
    while True:
        dispatcher.dispatch(signal.sigwait(HANDLED))
