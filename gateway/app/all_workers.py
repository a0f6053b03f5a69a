"""Several workers shown as one gateway: their figures added up, their readiness combined, and figures of each worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from .. import __version__
from ..edge.admin import AdminRefused, Readiness
from ..telemetry.figures import Figures, merge
from ..telemetry.metrics import Metrics, Reading
from ..workers.channel import GroupStatus
from ..workers.question_relay import FIGURES
from .siblings import Siblings

READINESS = "readiness"

_encode = msgspec.msgpack.Encoder().encode
_decode_figures = msgspec.msgpack.Decoder(Figures).decode
_decode_readiness = msgspec.msgpack.Decoder(Readiness).decode
_SCRAPE_S = 5.0
"""A slower worker is shown with its figures of an earlier scrape; Prometheus waits ten seconds by default."""
_PROBE_S = 0.5
"""A worker that hangs must not make a probe fail, which waits about a second."""
_WORST = ("ok", "degraded", "down")


class AllWorkers:
    """What the admin port reports about all workers, whichever of them is asked.

    Args:
        siblings: The workers, which are asked at each scrape and probe.
        metrics: The metrics of this worker.
        read: Returns the numbers that this worker's parts keep themselves.
        ready: Returns the readiness of this worker.
        catalogue: The catalogue's version, for ``build_info``.
    """

    def __init__(
        self,
        siblings: Siblings,
        metrics: Metrics,
        read: Callable[[], Iterable[Reading]],
        ready: Callable[[], Readiness],
        catalogue: str,
    ) -> None:
        self._siblings = siblings
        self._ready = ready
        self._catalogue = catalogue

        async def figures(_: bytes) -> bytes:
            # Off the event loop: thousands of rows take a while.
            return await asyncio.to_thread(lambda: _encode(metrics.figures(read)))

        async def readiness(_: bytes) -> bytes:
            return _encode(ready())

        siblings.handle(FIGURES, figures)
        siblings.handle(READINESS, readiness)

    async def metrics(self) -> bytes:
        """The metrics of all workers, as text. Raises AdminRefused where the supervisor does not answer."""
        gathered = await self._siblings.ask(FIGURES, patience_s=_SCRAPE_S)
        if not gathered.group_status.up:
            # Without any figures, totals would be 0, and the next scrape would look like an increase by all ever counted.
            raise AdminRefused(503, "the supervisor does not answer")
        return await asyncio.to_thread(self._render, gathered.answers, gathered.group_status)

    def _render(self, answers: Mapping[int, bytes], group_status: GroupStatus) -> bytes:
        each = {worker_id: _decode_figures(octets) for worker_id, octets in answers.items()}
        whole = Metrics(__version__, self._catalogue)
        whole.load_figures(merge([each[worker_id] for worker_id in sorted(each)]))
        whole.add_readings(lambda: worker_readings(each, group_status))
        return whole.render()

    async def readiness(self) -> Readiness:
        """The gateway is ready when every worker has been, and as long as one of them is."""
        gathered = await self._siblings.ask(READINESS, patience_s=_PROBE_S)
        each = {worker_id: _decode_readiness(octets) for worker_id, octets in gathered.answers.items()}
        if (
            self._siblings.worker_id in gathered.group_status.worker_ids or not gathered.group_status.worker_ids
        ):  # else another worker has its number
            each[self._siblings.worker_id] = self._ready()  # however slow the channel is
        return combine_readiness(each, gathered.group_status)


def worker_readings(each: Mapping[int, Figures], group_status: GroupStatus) -> Iterator[Reading]:
    """What is reported about single workers and reloads; described in docs/operations.md."""
    for number, up in enumerate(group_status.up):
        labels = {"worker": str(number)}
        yield Reading("gitlab_gateway_worker_up", "1 while a worker serves.", float(up), labels=labels)
        yield Reading(
            "gitlab_gateway_worker_restarts",
            "How often a worker ended unexpectedly and was restarted.",
            group_status.restarts[number],
            total=True,
            labels=labels,
        )
        if group_status.worker_ids[number] in each:
            yield Reading(
                "gitlab_gateway_worker_requests",
                "Requests answered by a worker since it started.",
                each[group_status.worker_ids[number]].requests,
                total=True,
                labels=labels,
            )
    if not group_status.up:
        return  # the supervisor does not answer, and a count that falls to 0 would be taken for a restart
    reloads = group_status.reloads
    for result, count in (("applied", reloads.applied), ("unchanged", reloads.unchanged), ("failed", reloads.failed)):
        yield Reading(
            "gitlab_gateway_config_reloads",
            "How often the configuration was to be reloaded, by outcome.",
            count,
            total=True,
            labels={"result": result},
        )
    yield Reading(
        "gitlab_gateway_config_reload_failing",
        "1 while the last reload has failed and the previous configuration stays in force.",
        float(reloads.failing),
    )


def combine_readiness(each: Mapping[int, Readiness], group_status: GroupStatus) -> Readiness:
    """For each part the worst that any worker reports, and how many report it where not all do."""
    checks: dict[str, str] = {}
    for part in dict.fromkeys(part for one in each.values() for part in one.checks):
        said = [one.checks[part] for one in each.values() if part in one.checks]
        worst = max(said, key=lambda words: _WORST.index(words.partition(":")[0]))
        count = said.count(worst)
        checks[part] = worst if count == len(said) else f"{worst} ({count} of {len(said)} workers)"
    up, of = sum(group_status.up), len(group_status.up)
    silent = [worker_id for worker_id in group_status.worker_ids if worker_id not in each]
    if not group_status.up:
        checks["workers"] = "down: the supervisor does not answer"
    elif not group_status.begun:
        checks["workers"] = f"down: {up} of {of} have started"
    elif up < of:
        checks["workers"] = f"degraded: {up} of {of} serve, the others are being restarted"
    elif silent:
        checks["workers"] = f"degraded: {len(silent)} of {of} do not answer"
    else:
        checks["workers"] = "ok"
    if group_status.reloads.failing:
        checks["configuration"] = "degraded: the last reload failed, the previous configuration stays in force"
    return Readiness(group_status.begun and any(one.ready for one in each.values()), checks)
