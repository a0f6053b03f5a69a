"""Who has how many connections is seen by all, whichever process says it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from gateway.config.worker_checks import MOST_WORKERS
from gateway.workers.connection_counts import _SLOTS, ConnectionCounts, WorkerCounts


@pytest.fixture
def file() -> Iterator[int]:
    with tempfile.TemporaryFile() as empty:
        yield empty.fileno()


def group(file: int, first: int = 0, of: int = 2) -> list[WorkerCounts]:
    """Each with a mapping of its own."""
    worker_ids = range(first, first + of)
    counts = [ConnectionCounts(file).for_worker(worker_id, worker_ids) for worker_id in worker_ids]
    for one in counts:
        one.join()
    return counts


@pytest.mark.parametrize(
    ("own", "other", "is_busier"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, True),
        (3, 2, False),
        (9, 7, False),
        (9, 6, True),
        (64, 57, False),
        (66, 57, True),
    ],
)
def test_busier_is_who_has_more_by_two_and_an_eighth(file: int, own: int, other: int, is_busier: bool) -> None:
    one, two = group(file)
    one.tell(own)
    two.tell(other)
    assert one.is_busier is is_busier
    assert not two.is_busier


def test_who_has_no_room_leaves_all_that_comes_to_who_has(file: int) -> None:
    one, two = group(file)
    for counts in (one, two):
        counts.capacity = 20
    one.tell(19)
    two.tell(18)
    assert not one.is_busier
    one.tell(20)
    assert one.is_busier
    two.tell(19)
    assert one.is_busier
    two.tell(20)
    assert not one.is_busier  # somebody has to tell the client
    assert not two.is_busier


def test_any_other_one_counts_and_one_alone_is_never_busier(file: int) -> None:
    one, two, three = group(file, of=3)
    for counts, count in ((one, 5), (two, 9), (three, 1)):
        counts.tell(count)
    assert [counts.is_busier for counts in (one, two, three)] == [True, True, False]
    (alone,) = group(file, first=7, of=1)
    alone.tell(1000)
    assert not alone.is_busier


def test_who_does_not_accept_is_waited_for_by_nobody(file: int) -> None:
    counts = ConnectionCounts(file)
    one, two = (counts.for_worker(worker_id, range(2)) for worker_id in range(2))
    one.join()
    one.tell(2)
    two.tell(0)
    assert not one.is_busier  # the other one has not begun
    two.join()
    assert one.is_busier  # and has none
    one.tell(5)
    two.leave()
    two.tell(1)  # of a connection that is still there
    assert not one.is_busier
    two.join()
    assert one.is_busier
    counts.leave(1)  # it was killed, and its supervisor says so
    assert not one.is_busier


def test_others_that_accept_are_seen_to(file: int) -> None:
    one, two = group(file)
    before = one.accepted_by_others
    one.accepted()
    assert one.accepted_by_others == before
    two.accepted()
    assert one.accepted_by_others == before + 1
    two.leave()
    (again, *_) = group(file, first=1, of=1)  # another process under that id
    again.accepted()
    assert one.accepted_by_others == before + 2


def test_groups_one_after_the_other_take_nobodys_slot(file: int) -> None:
    old = group(file, first=_SLOTS - 2, of=MOST_WORKERS)
    new = group(file, first=_SLOTS - 2 + MOST_WORKERS, of=MOST_WORKERS)
    for counts in old:
        counts.tell(100)
    assert not any(counts.is_busier for counts in (*old, *new))
    new[0].tell(9)
    assert new[0].is_busier
    assert not any(counts.is_busier for counts in (*old, *new[1:]))
    assert 4 * MOST_WORKERS <= _SLOTS


def test_another_process_sees_what_this_one_says(file: int) -> None:
    one, two = group(file)
    one.tell(4)
    two.tell(4)
    code = (
        "import sys; from gateway.workers.connection_counts import ConnectionCounts;"
        " counts = ConnectionCounts(int(sys.argv[1])).for_worker(1, range(2));"
        " counts.join(); counts.accepted(); counts.tell(41)"
    )
    before = one.accepted_by_others
    subprocess.run([sys.executable, "-c", code, str(file)], pass_fds=[file], check=True, timeout=60)
    assert one.accepted_by_others == before + 1
    assert not one.is_busier
    assert two._numbers[two._own] == 42
    assert os.fstat(file).st_size == 16 * _SLOTS
