"""Each finding has its file in ``bad/``; here stands what must not be found."""

from __future__ import annotations

import pytest

from gateway.config import load
from gateway.config.worker_checks import MOST_WORKERS, worker_findings

from .world import ENV, read_file

SHARED = (
    'stores: {shared: "rediss://redis:6379/0"%s}\n'
    'secrets: {pepper: "${env:GW_PEPPER}", encryption_key: "${env:GW_KEY}", audit_key: "${env:GW_AUDIT}"}\n'
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="one"),
        pytest.param(
            "listen: {workers: 1}\nlimits: [{id: slow, by: caller, bandwidth: 1MiB/s}]\n", id="one, and a bandwidth"
        ),
        pytest.param(f"listen: {{workers: {MOST_WORKERS}}}\n{SHARED % ''}", id="many on one Redis"),
        pytest.param(f"cache: {{store: memory}}\n{SHARED % ''}", id="one, with a cache of its own beside Redis"),
        pytest.param(f"listen: {{workers: 2}}\ncache: {{store: memory, mode: 'off'}}\n{SHARED % ''}", id="no cache at all"),
        pytest.param(
            "listen: {workers: 2}\n" + SHARED % ', keys: "sqlite:///var/lib/keys.db"', id="keys in a file that all read"
        ),
        pytest.param(
            "listen: {workers: 2}\n" + SHARED % ', credentials: "sqlite:///var/lib/c.db"',
            id="a file for what nobody rotates",
        ),
    ],
)
def test_nothing_is_found(text: str) -> None:
    loaded = load(f"version: 1\nupstream: {{url: 'https://g'}}\n{text}", ENV, read_file)
    assert loaded.problems == ()
    assert loaded.config is not None
    assert list(worker_findings(loaded.config)) == []
