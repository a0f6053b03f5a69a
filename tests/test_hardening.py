"""Limits that a process gives itself. They are lowered for good, so it is tried in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys


def test_no_core_is_dumped() -> None:
    code = (
        "import resource; from gateway.hardening import harden; harden();"
        "print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    core, _, files = done.stdout.rpartition(" ")
    assert core == "(0, 0)"
    assert int(files) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]
