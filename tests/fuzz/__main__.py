"""Fuzz each target for a while: ``python -m tests.fuzz [SECONDS] [TARGET ...]``. A tenth hypothesis, the rest atheris.

A find is written to tests/fuzz/finds/TARGET, where the tests take it up, and makes the exit code 1. Without atheris (its
wheels are for Linux) hypothesis has all the time.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS
from tests.fuzz.test_targets import FINDS, mutated

MAX_BYTES = 2048


def by_hypothesis(name: str, seconds: float) -> tuple[int, bytes | None]:
    """How many octet strings were tried, and the one that failed."""
    end = time.monotonic() + seconds
    tried = 0
    failed: bytes | None = None

    @settings(
        max_examples=1000, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.binary(max_size=MAX_BYTES) | mutated(SEEDS[name]))
    def check(octets: bytes) -> None:
        nonlocal tried, failed
        tried += 1
        try:
            TARGETS[name](octets)
        except BaseException:
            failed = octets
            raise

    while time.monotonic() < end:
        try:
            check()
        except Exception as wrong:  # noqa: BLE001 — whatever it is, it is a find
            print(f"{name}: {type(wrong).__name__}: {wrong}")
            return tried, failed
    return tried, None


def by_atheris(name: str, seconds: float) -> int:
    """libFuzzer's exit code. It ends its process, so it has one of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as corpus:
        for number, seed in enumerate(SEEDS[name]):
            Path(corpus, str(number)).write_bytes(seed)
        finds = FINDS / name
        finds.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={int(seconds)}", f"-max_len={MAX_BYTES}", f"-artifact_prefix={finds}/", "-timeout=5"]
        return subprocess.run(
            [sys.executable, "-m", "tests.fuzz.coverage_guided", name, *options, "-print_final_stats=1", corpus],
            check=False,
        ).returncode


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    names = sys.argv[2:] or list(TARGETS)
    guided = importlib.util.find_spec("atheris") is not None
    found = 0
    for name in names:
        tried, failed = by_hypothesis(name, seconds / 10 if guided else seconds)
        print(f"{name}: hypothesis tried {tried}: {'a find' if failed is not None else 'nothing found'}", flush=True)
        if failed is not None:
            (FINDS / name).mkdir(parents=True, exist_ok=True)
            (FINDS / name / f"hypothesis-{int(time.time())}").write_bytes(failed)
            found += 1
        if guided and by_atheris(name, seconds * 0.9):
            print(f"{name}: atheris found something: {FINDS / name}", flush=True)
            found += 1
        elif guided:
            print(f"{name}: atheris found nothing in {seconds * 0.9:.0f} s", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
