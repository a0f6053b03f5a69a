"""Requests one after another on a few kept connections, while a test breaks things; and words on what a gateway holds."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Peer, ask

WAIT_S = 60.0


@dataclass(frozen=True)
class Answered:
    status: int
    took_s: float
    code: str


class Load:
    """Runs until its context ends. Each worker asks for ``targets`` in turn; a connection that ended is made anew."""

    def __init__(
        self, gateway: GatewayProcess, *targets: str, token: str, workers: int = 4, pause_s: float = 0.002
    ) -> None:
        self.answers: list[Answered] = []
        self.broken = 0
        """Connections that ended without the answer that was due."""
        self._port = gateway.port
        self._targets = targets
        self._token = token
        self._pause_s = pause_s
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    @property
    def slowest_s(self) -> float:
        return max(answer.took_s for answer in self.answers)

    def more(self, count: int) -> None:
        """Wait for so many further answers."""
        wanted = len(self.answers) + count
        until(lambda: len(self.answers) >= wanted, f"{count} more answers")

    def _work(self) -> None:
        number = 0
        while not self._over.is_set():
            try:
                with Peer(self._port) as peer:
                    keep = True
                    while keep and not self._over.wait(self._pause_s):
                        number += 1
                        keep = self._once(peer, self._targets[number % len(self._targets)])
            except (AssertionError, OSError):
                self.broken += 1

    def _once(self, peer: Peer, target: str) -> bool:
        started = time.monotonic()
        peer.send(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nPRIVATE-TOKEN: {self._token}\r\n\r\n".encode())
        reply = peer.read_reply()
        code = reply.value("X-Gateway-Error") or ""
        self.answers.append(Answered(reply.status, time.monotonic() - started, code))
        return (reply.value("Connection") or "").lower() != "close"


def until(holds: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for a fact about another process, which sends no events."""
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        pause.wait(0.02)


def checks(gateway: GatewayProcess) -> dict[str, str]:
    """What ``/readyz`` says of each part."""
    found: dict[str, str] = json.loads(ask(gateway.admin_port, "/readyz").body)["checks"]
    return found


def figure(gateway: GatewayProcess, sample: str) -> float:
    """One sample of ``/metrics``, by its name with labels; 0 when it is not there."""
    for line in gateway.metrics().splitlines():
        if line.startswith(sample + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


def descriptors(gateway: GatewayProcess) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def resident_kib(gateway: GatewayProcess) -> int:
    """Memory in RAM."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def quiet(gateway: GatewayProcess) -> None:
    """Wait until nothing is left of what was asked: no request, no client, nothing under way at GitLab."""
    for sample in (
        "gitlab_gateway_requests_in_flight",
        "gitlab_gateway_client_connections",
        'gitlab_gateway_upstream_connections{state="busy"}',
        "gitlab_gateway_upstream_waiting",
    ):
        until(lambda sample=sample: figure(gateway, sample) == 0, f"{sample} is 0")  # type: ignore[misc]
