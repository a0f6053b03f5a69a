"""Limits that a process gives itself. They are lowered for good, so it is tried in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


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


@pytest.mark.parametrize(
    ("files", "upstream", "most"), [(65536, 2200, 63272), (1024, 200, 760), (1024, 2200, 480), (64, 200, 16)]
)
def test_clients_leave_descriptors_for_those_who_serve_them(files: int, upstream: int, most: int) -> None:
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({min(files, FILES)}, {min(files, FILES)}));"
        f"from gateway.hardening import most_connections; print(most_connections({upstream}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == (most if files <= FILES else max(FILES // 4, (FILES - 64) // 2, FILES - upstream - 64))
