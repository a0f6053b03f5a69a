"""Downloads through the real process that share a bandwidth, and one that has nothing to do with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.load import figure, quiet, until
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Peer, ask
from tests.fakes.gitlab import Answer, FakeGitLab, Received, response

ARCHIVE = "/api/v4/projects/1/repository/archive"
PACKAGE = "/api/v4/projects/1/packages/generic/a/1/b"
SIZE = 1 << 20
RATE = 1 << 20
BURST = RATE / 4


@pytest.fixture(scope="module")
def capped(upstreams: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    gitlab = FakeGitLab()

    def download(_: Received) -> Answer:
        return response(200, bytes(SIZE), ("Content-Type", "application/octet-stream"))

    gitlab.stand(ARCHIVE.encode(), download)
    gitlab.stand(PACKAGE.encode(), download)
    upstreams.run(gitlab.__aenter__())
    process = GatewayProcess(
        {
            "upstream": {"url": gitlab.url},
            "identities": [{"id": "anyone", "anonymous": True}],
            "limits": [
                {
                    "id": "archives",
                    "by": "organisation",
                    "bandwidth": "1MiB/s",
                    "match": {"routes": ["GET /api/v4/projects/:id/repository/archive"]},
                }
            ],
        },
        tmp_path_factory.mktemp("capped"),
    )
    yield process
    assert process.stop() == 0
    upstreams.run(gitlab.__aexit__(None, None, None))


def timed(gateway: GatewayProcess, target: str) -> float:
    started = time.monotonic()
    reply = ask(gateway.port, target)
    assert (reply.status, len(reply.body)) == (200, SIZE)
    return time.monotonic() - started


def test_two_downloads_share_a_bandwidth_and_a_third_is_not_slowed(capped: GatewayProcess) -> None:
    with ThreadPoolExecutor(3) as threads:
        slow = [threads.submit(timed, capped, ARCHIVE) for _ in range(2)]
        until(lambda: figure(capped, "gitlab_gateway_bandwidth_waiting") > 0, "somebody is held back")
        free_s = threads.submit(timed, capped, PACKAGE).result()
        first_s, last_s = sorted(one.result() for one in slow)
    at_least_s = (2 * SIZE - BURST) / RATE
    assert at_least_s - 0.1 <= last_s < 10 * at_least_s
    assert first_s > 0.6 * last_s, "neither waits for the other to be done"
    assert free_s < first_s / 2
    assert figure(capped, 'gitlab_gateway_bandwidth_bytes_total{limit="archives"}') == 2 * SIZE
    assert figure(capped, 'gitlab_gateway_bandwidth_waited_seconds_total{limit="archives"}') > at_least_s / 2


def test_who_leaves_in_the_middle_leaves_nothing_behind(capped: GatewayProcess) -> None:
    with Peer(capped.port) as peer:
        peer.send(f"GET {ARCHIVE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert peer.read_head()[0] == 200
        until(lambda: figure(capped, "gitlab_gateway_bandwidth_waiting") > 0, "it is held back")
    quiet(capped)
    assert figure(capped, "gitlab_gateway_bandwidth_waiting") == 0
