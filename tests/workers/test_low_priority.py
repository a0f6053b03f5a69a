"""A worker's start, and who goes first meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SESSION = Path("/proc/self/autogroup")
WATCHED = """
import os, pathlib, sys, threading, time

def seen():
    session = pathlib.Path("/proc/self/autogroup")
    return [os.nice(0), int(session.read_text().rpartition(" ")[2]) if session.exists() else None]
"""
MODULE = WATCHED + "meanwhile = seen()\n"
MAIN = f"sys.path[:0] = [{str(ROOT)!r}, sys.argv[1]]\nfrom gateway.workers.low_priority import NICENESS, imported\n"
REPORT = 'import json; print(json.dumps([NICENESS, before, imported("slow").meanwhile, seen()]))'

linux = pytest.mark.skipif(sys.platform != "linux", reason="niceness is a process's elsewhere")


def report(tmp_path: Path, code: str) -> list[list[int | None]]:
    (tmp_path / "slow.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + MAIN + code, str(tmp_path)],
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
    )
    niceness, *found = json.loads(done.stdout)
    assert niceness > 0
    return [[value if value is None else value // niceness for value in one] for one in found]


@linux
@pytest.mark.skipif(not SESSION.exists(), reason="this kernel does not share CPU time among sessions")
def test_others_go_first_until_all_is_imported(tmp_path: Path) -> None:
    assert report(tmp_path, "before = seen()\n" + REPORT) == [[0, 0], [1, 1], [0, 0]]


@linux
def test_where_sessions_do_not_matter_it_is_the_thread_alone_that_steps_back(tmp_path: Path) -> None:
    elsewhere = "from gateway.workers import low_priority\nlow_priority._SESSION = pathlib.Path('/nowhere')\n"
    before, meanwhile, afterwards = report(tmp_path, elsewhere + "before = seen()\n" + REPORT)
    assert before == afterwards
    assert [meanwhile[0], meanwhile[1]] == [1, before[1]]


@linux
@pytest.mark.skipif(not SESSION.exists(), reason="this kernel does not share CPU time among sessions")
def test_a_session_gets_its_own_again_though_the_kernel_makes_it_wait(tmp_path: Path) -> None:
    """As it does whoever has no privilege, after each change."""
    waits = """
refused = []
def write(path, text, write=pathlib.Path.write_text):
    if text == "0" and len(refused) < 2:
        refused.append(text)
        raise BlockingIOError
    return write(path, text)
pathlib.Path.write_text = write
"""
    assert report(tmp_path, waits + "before = seen()\n" + REPORT) == [[0, 0], [1, 1], [0, 0]]


@linux
def test_a_sandbox_may_forbid_to_step_back(tmp_path: Path) -> None:
    refusing = """
def refuse(by, nice=os.nice):
    if by:
        raise PermissionError
    return nice(by)
os.nice = refuse
"""
    assert [one[0] for one in report(tmp_path, refusing + "before = seen()\n" + REPORT)] == [0, 0, 0]


def test_a_session_above_others_keeps_what_it_could_not_have_back(tmp_path: Path) -> None:
    code = """
wrote = []
pathlib.Path.read_text = lambda _: "/autogroup-7 nice -5"
pathlib.Path.write_text = lambda _, text: wrote.append(text)
imported("slow")
import json; print(json.dumps([NICENESS, [len(wrote)]]))
"""
    assert report(tmp_path, code) == [[0]]


def test_without_a_thread_all_is_imported_all_the_same(tmp_path: Path) -> None:
    limited = 'def start(_): raise RuntimeError("can\'t start new thread")\nthreading.Thread.start = start\n'
    found = report(tmp_path, limited + "before = seen()\n" + REPORT)
    assert [one[0] for one in found] == [0, 0, 0]


def test_what_fails_to_import_says_why(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + MAIN + 'imported("no_such_module")', str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in done.stderr
