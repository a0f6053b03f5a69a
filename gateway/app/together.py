"""Several workers as one: figures added up, readiness of all, and what one of them may know that another does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from .. import __version__
from ..edge.admin import AdminRefused, Readiness
from ..telemetry.figures import Figures, together
from ..telemetry.metrics import Metrics, Reading
from ..workers.line import Staff
from ..workers.switchboard import FIGURES
from .siblings import Siblings

READINESS = "readiness"

_encode = msgspec.msgpack.Encoder().encode
_figures = msgspec.msgpack.Decoder(Figures).decode
_readiness = msgspec.msgpack.Decoder(Readiness).decode
_SCRAPE_S = 5.0
"""A worker that is slower is shown as it was at the scrape before; Prometheus waits ten by default."""
_PROBE_S = 0.5
"""One that hangs must not make a probe fail, which waits a second or so."""
_WORST = ("ok", "degraded", "down")


class Together:
    """What the admin port says of all workers, asked of one.

    Args:
        siblings: Asked at each scrape and probe.
        metrics: Of this worker.
        read: The numbers that its parts keep themselves.
        ready: Of this worker.
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
            # Thousands of rows take a while: off the event loop.
            return await asyncio.to_thread(lambda: _encode(metrics.figures(read)))

        async def readiness(_: bytes) -> bytes:
            return _encode(ready())

        siblings.tell(FIGURES, figures)
        siblings.tell(READINESS, readiness)

    async def metrics(self) -> bytes:
        """The exposition of all. Raises AdminRefused where nobody can tell it."""
        told = await self._siblings.ask(FIGURES, patience_s=_SCRAPE_S)
        if not told.staff.up:
            # Of nobody's figures, totals are 0, and the next ones would be taken for an increase by all there ever was.
            raise AdminRefused(503, "the supervisor does not answer")
        return await asyncio.to_thread(self._render, told.answers, told.staff)

    def _render(self, answers: Mapping[int, bytes], staff: Staff) -> bytes:
        each = {seat: _figures(octets) for seat, octets in answers.items()}
        whole = Metrics(__version__, self._catalogue)
        whole.show(together([each[seat] for seat in sorted(each)]))
        whole.export(lambda: worker_readings(each, staff))
        return whole.render()

    async def readiness(self) -> Readiness:
        """The gateway is ready when every worker has been, and as long as one of them is."""
        told = await self._siblings.ask(READINESS, patience_s=_PROBE_S)
        each = {seat: _readiness(octets) for seat, octets in told.answers.items()}
        if self._siblings.seat in told.staff.seats or not told.staff.seats:  # else its place is another's
            each[self._siblings.seat] = self._ready()  # however slow the line
        return all_ready(each, told.staff)


def worker_readings(each: Mapping[int, Figures], staff: Staff) -> Iterator[Reading]:
    """What is told of single workers; texts: docs/operations.md."""
    for number, up in enumerate(staff.up):
        labels = {"worker": str(number)}
        yield Reading("gitlab_gateway_worker_up", "1 while a worker serves.", float(up), labels=labels)
        yield Reading(
            "gitlab_gateway_worker_restarts",
            "How often a worker ended unasked and was started again.",
            staff.restarts[number],
            total=True,
            labels=labels,
        )
        if staff.seats[number] in each:
            yield Reading(
                "gitlab_gateway_worker_requests",
                "Requests answered by a worker since it started: how evenly they share.",
                each[staff.seats[number]].requests,
                total=True,
                labels=labels,
            )
    if not staff.up:
        return  # the supervisor does not answer, and a count that falls would be read as a restart
    reloads = staff.reloads
    for result, count in (("applied", reloads.applied), ("unchanged", reloads.unchanged), ("failed", reloads.failed)):
        yield Reading(
            "gitlab_gateway_config_reloads",
            "How often the configuration was to be read again, by what became of it.",
            count,
            total=True,
            labels={"result": result},
        )
    yield Reading(
        "gitlab_gateway_config_reload_failing",
        "1 while the configuration as it is now was refused, and the one before serves.",
        float(reloads.failing),
    )


def all_ready(each: Mapping[int, Readiness], staff: Staff) -> Readiness:
    """Of each part the worst that any worker says, and how many say so where not all do."""
    checks: dict[str, str] = {}
    for part in dict.fromkeys(part for one in each.values() for part in one.checks):
        said = [one.checks[part] for one in each.values() if part in one.checks]
        worst = max(said, key=lambda words: _WORST.index(words.partition(":")[0]))
        count = said.count(worst)
        checks[part] = worst if count == len(said) else f"{worst} ({count} of {len(said)} workers)"
    up, of = sum(staff.up), len(staff.up)
    silent = [seat for seat in staff.seats if seat not in each]
    if not staff.up:
        checks["workers"] = "down: the supervisor does not answer"
    elif not staff.begun:
        checks["workers"] = f"down: {up} of {of} have started"
    elif up < of:
        checks["workers"] = f"degraded: {up} of {of} serve, the others are started again"
    elif silent:
        checks["workers"] = f"degraded: {len(silent)} of {of} do not answer"
    else:
        checks["workers"] = "ok"
    if staff.reloads.failing:
        checks["configuration"] = "degraded: the last reload failed, the one before serves"
    return Readiness(staff.begun and any(one.ready for one in each.values()), checks)
