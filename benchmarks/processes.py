"""Programs started for a run: pinned to a core, measured by CPU time and memory, ended with the run. Linux only."""

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

# Deployed code has its bytecode files: a variable in the user's environment must not make each start compile anew.
_WITH_BYTECODE = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

_NICENESS = -15
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_PR_SET_PDEATHSIG = 1


class Program:
    """One program and all processes that it starts, in a process group of its own."""

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
                preexec_fn=functools.partial(set_up_child, cpu),
            )
        self._log = log
        self.pid = self._process.pid

    def wait_for_port(self, port: int, patience_s: float = 15.0) -> None:
        """Wait until the program listens. Raises RuntimeError with the end of its log if it does not in time."""
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
        """Seconds of CPU time that all its threads have used, to the nanosecond (``getrusage`` counts ticks)."""
        total = 0
        for pid in _family(self._process.pid):
            for task in _tasks(pid):
                try:
                    total += int((task / "schedstat").read_text().split()[0])
                except (OSError, IndexError):
                    continue
        return total / 1e9

    def pin(self, *cores: Collection[int]) -> None:
        """Pin its children to ``cores`` in order; the program itself, and any further children, to the last of them."""
        for number, child in enumerate(_children(self.pid)):
            for pid in _family(child):
                _pin(pid, cores[min(number, len(cores) - 1)])
        _pin(self.pid, cores[-1])

    def rss_kib(self) -> int:
        """Resident memory of all its processes; pages that they share are counted once for each."""
        return self._memory_kib("VmRSS:")

    def peak_kib(self) -> int:
        """Peak resident memory so far, summed like ``rss_kib``: peaks of each process, so the true total was no higher."""
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
        """Send its process group SIGTERM, then SIGKILL."""
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


def set_up_child(cpu: int | None) -> None:
    """Set up a process that begins in a session of its own: on core ``cpu``, and with the precedence of its parent.

    It ends with its parent, however that ends: Ctrl-C does not reach a session of its own.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    # Where the kernel first shares CPU time among sessions (sched_autogroup), niceness counts only within a session.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))


def raise_priority() -> bool:
    """Give this process and those that it starts precedence over others, as far as permitted; returns whether it was.

    Niceness alone is not enough: a process that wakes still waits until the running one has used up its slice of some 3 ms.
    These processes therefore ask for slices of 0.1 ms, and are let in at once. Their own threads then wait for each other
    just as briefly.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    except PermissionError:
        return False
    # sched_setattr(2): size, policy (the default), flags, niceness, priority, slice in ns, two fields of other policies.
    attributes = struct.pack("IIQiIQQQ", 48, 0, 0, _NICENESS, 0, 100_000, 0, 0)
    number = _SCHED_SETATTR.get(platform.machine())
    return number is not None and ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0


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
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
