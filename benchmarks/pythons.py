"""Which Python runs the gateway in a run: one built with profile-guided optimisation, as distributions ship it.

    python -m benchmarks.pythons [PYTHON]    # says what it is; exit code 1 when it was built without

A Python built without such a profile (pyenv's default) is slower by a good tenth, and nobody who measures deploys it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent
_ASK = """
import json, platform, sys, sysconfig
flag = sysconfig.get_config_var("PGO_PROF_USE_FLAG")
print(json.dumps({
    "version": platform.python_version(),
    "arguments": sysconfig.get_config_var("CONFIG_ARGS") or "",
    # Debian builds with a profile without that argument, and takes the flag out of what it installs; others leave it in.
    "taken_out": flag == "" and sys.base_prefix == "/usr",
    "usable": sys.version_info >= (3, 11),
}))
"""


class Python(msgspec.Struct, frozen=True):
    """An interpreter."""

    path: str
    version: str
    profiled: bool
    """Whether it was built with profile-guided optimisation."""

    def __str__(self) -> str:
        return f"{self.version}, built {'with' if self.profiled else 'without'} PGO"


def python_at(path: str) -> Python:
    """Ask an interpreter about itself.

    Raises:
        OSError, subprocess.SubprocessError, ValueError: It is not a Python, or does not answer.
    """
    done = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, check=True, timeout=20)
    found = json.loads(done.stdout)
    profiled = bool(found["usable"]) and ("--enable-optimizations" in found["arguments"] or bool(found["taken_out"]))
    return Python(path, found["version"], profiled)


def best_python() -> Python:
    """This Python if it was built with a profile, else ``.bench/venv``'s if that was, else this one."""
    own = python_at(sys.executable)
    other = ROOT / ".bench/venv/bin/python"
    if own.profiled or not other.exists():
        return own
    found = python_at(str(other))
    return found if found.profiled else own


if __name__ == "__main__":
    python = python_at(sys.argv[1]) if len(sys.argv) > 1 else best_python()
    print(python)
    sys.exit(not python.profiled)
