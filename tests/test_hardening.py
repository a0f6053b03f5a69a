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


def test_no_socket_becomes_a_standard_stream() -> None:
    code = (
        "import os; from gateway.hardening import harden; os.close(0); os.close(2); harden();"
        "import socket; print(socket.socket().fileno() > 2, os.fstat(0) == os.fstat(2) == os.stat(os.devnull))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
