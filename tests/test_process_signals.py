"""What signals do to a process, from before its loop to behind it: in one of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

HANDLED = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
CODE = """
    import asyncio, atexit, os, signal, sys, time, uvloop
    from gateway.process_signals import run_process
    def me():
        os.kill(os.getpid(), int(sys.argv[1]))
    {before}
    async def main(on_signal):
        signals = asyncio.Queue()
        {main}
        return 7
    atexit.register(print, "ended")
    raise SystemExit(run_process(main, {loop}))
    """
LOOPS = ["None", "uvloop.new_event_loop"]


def run(number: signal.Signals, main: str, before: str = "", loop: str = "None") -> tuple[int, str, str]:
    code = textwrap.dedent(CODE).format(before=before, main=main.replace("\n", "\n    "), loop=loop)
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(number))], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", HANDLED)
@pytest.mark.parametrize("loop", LOOPS)
def test_told_again_when_it_has_gone_it_ends_as_it_was_told_once(number: signal.Signals, loop: str) -> None:
    """Behind the loop, where other threads (those of uvloop for names) are still there."""
    main = "on_signal(int(sys.argv[1]), lambda: signals.put_nowait(1)); me(); await signals.get()\n"
    main += "await asyncio.get_running_loop().getaddrinfo('localhost', 1)"
    assert run(number, main, "atexit.register(me); atexit.register(time.sleep, 0.1)", loop) == (7, "ended\n", "")


@pytest.mark.parametrize("number", HANDLED)
def test_told_at_the_very_end_it_ends_as_it_was_told_once(number: signal.Signals) -> None:
    """When Python has given the signals back already, and takes its modules down."""
    before = """class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=int(sys.argv[1])):
        kill(pid, number)
last = Last()"""
    assert run(number, "pass", before) == (7, "ended\n", "")


@pytest.mark.parametrize("number", HANDLED)
@pytest.mark.parametrize("loop", LOOPS)
def test_what_comes_before_it_is_handled_is_kept(number: signal.Signals, loop: str) -> None:
    main = "me(); await asyncio.sleep(0.1)\n"
    main += "on_signal(int(sys.argv[1]), lambda: signals.put_nowait(1)); await signals.get()"
    assert run(number, main, "", loop) == (7, "ended\n", "")


@pytest.mark.parametrize("number", HANDLED)
def test_what_was_ignored_is_handled(number: signal.Signals) -> None:
    """A shell has what it starts in the background ignore interrupts."""
    main = "on_signal(int(sys.argv[1]), lambda: signals.put_nowait(1)); me(); await signals.get()"
    assert run(number, main, "signal.signal(int(sys.argv[1]), signal.SIG_IGN)") == (7, "ended\n", "")


def test_each_is_handled_and_another_callback_takes_the_place_of_the_one_before() -> None:
    main = """on_signal(15, lambda: signals.put_nowait("first"))
me(); print(await signals.get()); me(); print(await signals.get())
on_signal(15, lambda: signals.put_nowait("second"))
me(); print(await signals.get())"""
    assert run(signal.SIGTERM, main) == (7, "first\nfirst\nsecond\nended\n", "")


def test_what_was_pending_is_handled_once() -> None:
    """Not again to the call that takes the first one's place."""
    main = """from gateway.process_signals import _Dispatcher
dispatcher = _Dispatcher(asyncio.get_running_loop())
dispatcher._dispatch(15)
dispatcher.on_signal(15, lambda: print("first"))
dispatcher.on_signal(15, lambda: print("second"))
await asyncio.sleep(0)"""
    assert run(signal.SIGTERM, main) == (7, "first\nended\n", "")


def test_behind_its_end_no_signal_is_written_to_what_woke_the_loop() -> None:
    """Its descriptor is closed, and may be somebody else's by then."""
    before = "atexit.register(lambda: print(signal.set_wakeup_fd(-1)))"
    assert run(signal.SIGTERM, "pass", before) == (7, "ended\n-1\n", "")


def test_one_that_fails_ends_as_it_fails() -> None:
    assert run(signal.SIGTERM, "raise SystemExit(3)", "atexit.register(me)") == (3, "ended\n", "")


@pytest.mark.parametrize("number", HANDLED)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_thread_that_was_there_before_ends_nobody_and_keeps_nothing_back(number: signal.Signals, loop: str) -> None:
    """As somebody's tracer starts one; the system may tell it as well as any other, while the loop sleeps."""
    before = """import threading
held = threading.Event()
def alone():
    held.wait()
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "S":
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), int(sys.argv[1]))
threading.Thread(target=alone, daemon=True).start()"""
    main = "on_signal(int(sys.argv[1]), lambda: signals.put_nowait(1)); held.set(); await signals.get()"
    assert run(number, main, before, loop) == (7, "ended\n", "")


@pytest.mark.parametrize("main", ["", "await asyncio.to_thread(print)"], ids=["here", "later"])
def test_where_no_thread_can_be_started_the_limit_is_reported(main: str) -> None:
    """As a container's `--pids-limit`, a unit's `TasksMax=` or a user's `ulimit -u` does it."""
    before = f"""import threading
start, left = threading.Thread.start, [None] * {len(main) > 0}
def limited(self):
    if not left:
        raise RuntimeError("can't start new thread")
    left.pop()
    start(self)
threading.Thread.start = limited"""
    code, out, error = run(signal.SIGTERM, main, before)
    assert (code, out) == (1, "ended\n")
    assert error.endswith("no thread can be started: a limit of processes is reached\n")


def test_other_errors_are_left_as_they_are() -> None:
    code, _, error = run(signal.SIGTERM, "raise RuntimeError('else')")
    assert code == 1
    assert error.endswith("RuntimeError: else\n")
