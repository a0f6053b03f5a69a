"""Programs started for a run: pinned to a core, watched by their CPU time and memory, ended with it. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

# What is installed has its bytecode: a variable of whoever runs the bench must not have each start compile it anew.
_WITH_BYTECODE = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

_NICENESS = -15
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_PR_SET_PDEATHSIG = 1


class Program:
    """One program and whatever it starts, in a process group of its own."""

    def __init__(
        self, argv: Sequence[str], *, cpu: int, log: Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.started_at = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**_WITH_BYTECODE, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=functools.partial(settle, cpu),
            )
        self._log = log
        self.pid = self._process.pid

    def wait_for_port(self, port: int, patience_s: float = 15.0) -> None:
        """Raises RuntimeError with the end of its log when nothing listens in time."""
        give_up_at = time.monotonic() + patience_s
        while time.monotonic() < give_up_at:
            if self._process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.01)
        raise RuntimeError(f"{self._process.args!r} does not listen:\n{self._log.read_text()[-2000:]}")

    def cpu_s(self) -> float:
        """Seconds of CPU that all its threads have used, to the nanosecond (``getrusage`` counts ticks)."""
        total = 0
        for pid in _family(self._process.pid):
            for task in _tasks(pid):
                try:
                    total += int((task / "schedstat").read_text().split()[0])
                except (OSError, IndexError):
                    continue
        return total / 1e9

    def pin(self, *cores: Collection[int]) -> None:
        """Its children to these, one after the other; itself, and those there is no more for, to the last."""
        for number, child in enumerate(_children(self.pid)):
            for pid in _family(child):
                _pin(pid, cores[min(number, len(cores) - 1)])
        _pin(self.pid, cores[-1])

    def rss_kib(self) -> int:
        """Resident memory of all its processes; pages they share are counted once for each."""
        return self._memory_kib("VmRSS:")

    def peak_kib(self) -> int:
        """The most that was resident so far, as ``rss_kib``: each process by itself, so all together were no more."""
        return self._memory_kib("VmHWM:")

    def _memory_kib(self, named: str) -> int:
        total = 0
        for pid in _family(self._process.pid):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith(named)), 0)
        return total

    def stop(self) -> None:
        """SIGTERM to its group, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait(5)


def settle(cpu: int | None) -> None:
    """A process that begins, in a session of its own: on that core, and before others if whoever begins it is.

    It ends with whoever begins it, however that ends: a session of its own is not reached by Ctrl-C.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    # Where the kernel shares out by sessions first (sched_autogroup), niceness tells only within one.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))


def go_first() -> bool:
    """Before other processes, as far as it may, this one and what it starts from now on: whether that was so.

    Niceness alone does not do it: who wakes still waits until whoever runs has had its slice, which is some 3 ms. So these
    ask for slices of 0.1 ms, and are let in at once. Threads of one of them wait for each other as shortly.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    except PermissionError:
        return False
    # sched_setattr(2): size, policy (as it is by default), flags, niceness, priority, slice in ns, two for other policies.
    asked = struct.pack("IIQiIQQQ", 48, 0, 0, _NICENESS, 0, 100_000, 0, 0)
    number = _SCHED_SETATTR.get(platform.machine())
    return number is not None and ctypes.CDLL(None).syscall(number, 0, asked, 0) == 0


def _pin(pid: int, cores: Collection[int]) -> None:
    for task in _tasks(pid):
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended
            os.sched_setaffinity(int(task.name), cores)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in _children(pid):
        yield from _family(child)


def _children(pid: int) -> Iterator[int]:
    for task in _tasks(pid):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        yield from map(int, children)


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
