"""What one worker goes by: its share of what one process counts by itself."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.app.worker_slot import WorkerSlot
from gateway.config import Config, load


def slot(number: int, of: int) -> WorkerSlot:
    return WorkerSlot(number, of, b"the key of this run", (), (), 0, cast("Any", None), cast("Any", None))


def configured(max_in_flight: int, max_tunnels: int, connections: int) -> Config:
    text = (
        f"version: 1\nupstream: {{url: 'http://127.0.0.1:9', max_in_flight: {max_in_flight}, max_tunnels: {max_tunnels}}}\n"
        f"listen: {{limits: {{connections: {connections}, connections_per_peer: 7}}}}\n"
    )
    config = load(text, {}, str).config
    assert config is not None
    return config


@pytest.mark.parametrize("of", [2, 3, 64])
@pytest.mark.parametrize("whole", [64, 100, 199, 1000])
def test_the_shares_come_to_the_whole(of: int, whole: int) -> None:
    shares = [slot(number, of).share(configured(whole, whole, whole)) for number in range(of)]
    assert sum(one.upstream.max_in_flight for one in shares) == whole
    assert sum(one.upstream.max_tunnels for one in shares) == whole
    assert sum(one.listen.limits.connections for one in shares) == whole


def test_each_has_one_at_least_and_nothing_stays_nothing() -> None:
    last = slot(3, 4).share(configured(4, 1, 0))
    assert (last.upstream.max_in_flight, last.upstream.max_tunnels, last.listen.limits.connections) == (1, 1, 0)
    assert last.listen.limits.connections_per_peer == 7


def test_it_shows_no_secret() -> None:
    assert repr(slot(1, 2)) == "WorkerSlot(1 of 2)"
