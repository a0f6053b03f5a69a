"""Several workers as one: what a scrape reads, and what a probe is answered."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from gateway.app.all_workers import AllWorkers, combine_readiness, worker_readings
from gateway.app.siblings import Siblings
from gateway.core.exchange import Exchange
from gateway.edge.admin import AdminRefused, Readiness
from gateway.telemetry.figures import Figures, Row
from gateway.telemetry.metrics import Metrics, Reading
from gateway.workers.channel import (
    AllAnswers,
    AskAll,
    GroupStatus,
    Reloads,
    WorkerQuestion,
    WorkerReply,
    decode_at_supervisor,
    decode_at_worker,
    open_channel,
)
from gateway.workers.question_relay import ENDED

BOTH = GroupStatus((True, True), (0, 0), True, (0, 1))
OK = Readiness(True, {"traffic": "ok", "upstream": "ok"})


def counted(requests: int) -> Figures:
    return Figures((Row(("GET",), requests, 0, 0),))


def test_what_is_reported_of_single_workers() -> None:
    group_status = GroupStatus((True, False, True), (0, 3, 0), True, (3, 4, 5))
    # The first, whose place another one has, is nobody's number any more.
    readings = worker_readings({0: counted(8), 3: counted(5), 5: counted(7), ENDED: counted(9)}, group_status)
    found = {
        (one.name.removeprefix("gitlab_gateway_"), one.labels["worker"]): one.value
        for one in readings
        if "worker" in one.labels
    }
    assert found == {
        ("worker_up", "0"): 1.0,
        ("worker_restarts", "0"): 0,
        ("worker_requests", "0"): 5,
        ("worker_up", "1"): 0.0,
        ("worker_restarts", "1"): 3,
        ("worker_up", "2"): 1.0,
        ("worker_restarts", "2"): 0,
        ("worker_requests", "2"): 7,
    }


def test_what_became_of_reloads() -> None:
    readings = worker_readings({}, GroupStatus((True,), (0,), True, (0,), Reloads(1, 2, 3, True)))
    found = {(one.name.removeprefix("gitlab_gateway_"), *one.labels.values()): one.value for one in readings}
    assert {key: value for key, value in found.items() if key[0].startswith("config")} == {
        ("config_reloads", "applied"): 1,
        ("config_reloads", "unchanged"): 2,
        ("config_reloads", "failed"): 3,
        ("config_reload_failing",): 1.0,
    }
    assert not list(worker_readings({}, GroupStatus((), (), False)))  # a count must not fall because nobody answers


OPEN = Readiness(True, {"traffic": "ok", "upstream": "degraded: breaker open"})
GOING = Readiness(False, {"traffic": "down: draining", "upstream": "ok"})


@pytest.mark.parametrize(
    ("each", "group_status", "ready", "checks"),
    [
        pytest.param({0: OK, 1: OK}, BOTH, True, {"traffic": "ok", "upstream": "ok", "workers": "ok"}, id="all well"),
        pytest.param(
            {0: OK, 1: OPEN},
            BOTH,
            True,
            {"traffic": "ok", "upstream": "degraded: breaker open (1 of 2 workers)", "workers": "ok"},
            id="the worst of a part",
        ),
        pytest.param(
            {0: GOING, 1: GOING},
            BOTH,
            False,
            {"traffic": "down: draining", "upstream": "ok", "workers": "ok"},
            id="all are leaving",
        ),
        pytest.param(
            {0: OK, 1: GOING},
            BOTH,
            True,
            {"traffic": "down: draining (1 of 2 workers)", "upstream": "ok", "workers": "ok"},
            id="one is leaving",
        ),
        pytest.param(
            {0: OK},
            GroupStatus((True, False), (0, 0), False, (0, 1)),
            False,
            {"traffic": "ok", "upstream": "ok", "workers": "down: 1 of 2 have started"},
            id="not all have started",
        ),
        pytest.param(
            {0: OK},
            GroupStatus((True, False), (0, 1), True, (0, 1)),
            True,
            {"traffic": "ok", "upstream": "ok", "workers": "degraded: 1 of 2 serve, the others are being restarted"},
            id="one has died",
        ),
        pytest.param(
            {0: OK},
            BOTH,
            True,
            {"traffic": "ok", "upstream": "ok", "workers": "degraded: 1 of 2 do not answer"},
            id="one hangs",
        ),
        pytest.param(
            {0: OK, 1: OK},
            GroupStatus((True, True), (0, 0), True, (0, 1), Reloads(failed=1, failing=True)),
            True,
            {
                **OK.checks,
                "workers": "ok",
                "configuration": "degraded: the last reload failed, the previous configuration stays in force",
            },
            id="a bad configuration",
        ),
        pytest.param(
            {0: OK, 1: Readiness(True, {"traffic": "ok", "credential sa": "degraded: unchecked"})},
            BOTH,
            True,
            {"traffic": "ok", "upstream": "ok", "credential sa": "degraded: unchecked", "workers": "ok"},
            id="a part that one alone has",
        ),
        pytest.param({}, BOTH, False, {"workers": "degraded: 2 of 2 do not answer"}, id="all hang"),
        pytest.param(
            {}, GroupStatus((), (), False), False, {"workers": "down: the supervisor does not answer"}, id="no supervisor"
        ),
    ],
)
def test_readiness(each: dict[int, Readiness], group_status: GroupStatus, ready: bool, checks: dict[str, str]) -> None:
    assert combine_readiness(each, group_status) == Readiness(ready, checks)


async def test_a_scrape_asks_all_and_shows_their_sum() -> None:
    ours, theirs = socket.socketpair()
    channel, supervisor = await open_channel(ours, decode_at_worker), await open_channel(theirs, decode_at_supervisor)
    siblings = Siblings(channel, 1)
    metrics = Metrics("1", "19")
    x = Exchange("r", 0.0, "GET", "192.0.2.1")
    x.status, x.operation = 200, "GET /x"
    metrics.observe(x, 0.1)
    workers = AllWorkers(
        siblings, metrics, lambda: [Reading("gitlab_gateway_connects", "Text.", 2, total=True)], lambda: OK, "19.3"
    )

    async def both_answer() -> None:
        """The same of two workers."""
        asked = await supervisor.receive()
        assert isinstance(asked, AskAll)
        siblings.answer(WorkerQuestion(1, asked.what, asked.about))
        reply = await supervisor.receive()
        assert isinstance(reply, WorkerReply)
        siblings.receive(AllAnswers(asked.id, {0: reply.octets, 1: reply.octets}, BOTH))

    async def one_answers() -> None:
        asked = await supervisor.receive()
        assert isinstance(asked, AskAll)
        ready = msgspec.msgpack.encode(OK)
        siblings.receive(AllAnswers(asked.id, {8: ready}, GroupStatus((True,), (0,), True, (8,))))

    answering = asyncio.ensure_future(both_answer())
    text = (await workers.metrics()).decode()
    await answering
    assert 'gitlab_gateway_http_requests_total{method="GET",operation="GET /x",status="200"} 2.0' in text
    assert "gitlab_gateway_connects_total 4.0" in text
    assert 'catalogue="19.3"' in text
    assert 'gitlab_gateway_worker_up{worker="1"} 1.0' in text
    for total in ('worker_restarts_total{worker="1"}', 'config_reloads_total{result="applied"}'):
        assert f"gitlab_gateway_{total} 0.0" in text
    assert 'gitlab_gateway_worker_requests_total{worker="1"} 1.0' in text
    answering = asyncio.ensure_future(both_answer())
    assert (await workers.readiness()).checks == {**OK.checks, "workers": "ok"}
    await answering
    # One that was replaced says nothing of itself: its place is another's.
    siblings.worker_id = 7
    workers = AllWorkers(siblings, metrics, list, lambda: GOING, "19.3")
    answering = asyncio.ensure_future(one_answers())
    assert await workers.readiness() == Readiness(True, {**OK.checks, "workers": "ok"})
    await answering
    channel.close()
    supervisor.close()


async def test_figures_of_nobody_are_none() -> None:
    """They would be totals that have fallen to nothing."""
    ours, theirs = socket.socketpair()
    channel, supervisor = await open_channel(ours, decode_at_worker), await open_channel(theirs, decode_at_supervisor)
    siblings = Siblings(channel, 0)
    workers = AllWorkers(siblings, Metrics("1", "19"), list, lambda: OK, "19.3")

    async def nobody_answers() -> None:
        asked = await supervisor.receive()
        assert isinstance(asked, AskAll)
        siblings.receive(
            AllAnswers(asked.id, {}, GroupStatus((), (), False))
        )  # as `Siblings.ask` says it of a silent supervisor

    answering = asyncio.ensure_future(nobody_answers())
    with pytest.raises(AdminRefused, match="the supervisor does not answer") as refused:
        await workers.metrics()
    assert refused.value.status == 503
    await answering
    channel.close()
    supervisor.close()


@pytest.mark.parametrize(
    ("group_status", "checks"),
    [
        pytest.param(BOTH, {"traffic": "down: draining (1 of 2 workers)", "upstream": "ok", "workers": "ok"}, id="slow"),
        pytest.param(
            GroupStatus((), (), False),
            {
                "traffic": "down: draining (1 of 2 workers)",
                "upstream": "ok",
                "workers": "down: the supervisor does not answer",
            },
            id="no supervisor",
        ),
    ],
)
async def test_a_worker_knows_of_itself_without_the_line(group_status: GroupStatus, checks: dict[str, str]) -> None:
    ours, theirs = socket.socketpair()
    channel, supervisor = await open_channel(ours, decode_at_worker), await open_channel(theirs, decode_at_supervisor)
    siblings = Siblings(channel, 1)
    workers = AllWorkers(siblings, Metrics("1", "19"), list, lambda: GOING, "19.3")
    asking = asyncio.ensure_future(workers.readiness())
    asked = await supervisor.receive()
    assert isinstance(asked, AskAll)
    assert asked.patience_s < 1.0, "as a probe has"
    siblings.receive(AllAnswers(asked.id, {0: msgspec.msgpack.encode(OK)}, group_status))
    assert (await asking).checks == checks
    channel.close()
    supervisor.close()
