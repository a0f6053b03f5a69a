"""The facts of one request."""

from __future__ import annotations

import pytest

from gateway.core.exchange import Exchange, note_cut


def test_every_fact_has_a_value_from_the_start() -> None:
    """Telemetry reads all of them, however early the request ended."""
    x = Exchange("r-1", 12.5, "GET", "192.0.2.1")
    facts = {name: getattr(x, name) for name in Exchange.__slots__}
    given = {"request_id": "r-1", "started_at": 12.5, "method": "GET", "peer": "192.0.2.1"}
    assert {name: facts.pop(name) for name in given} == given
    assert facts.pop("operation") == "other"
    assert facts.pop("limit_remaining") == -1.0, "no limit yet, which is not a limit used up"
    assert not any(facts.values())


def test_nothing_else_can_be_noted() -> None:
    """A misspelt fact is a fault, not a fact."""
    with pytest.raises(AttributeError):
        Exchange("r-1", 0.0, "GET", "").opration = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("drained", "started", "noted", "told"),
    [
        (False, False, (499, "client", ""), False),
        (False, True, (499, "client", ""), False),
        (True, True, (200, "gateway", "draining"), False),
        (True, False, (200, "", "draining"), True),
    ],
)
def test_who_cut_it_short(drained: bool, started: bool, noted: tuple[int, str, str], told: bool) -> None:
    x = Exchange("r-1", 0.0, "POST", "")
    x.status = 200
    assert note_cut(x, drained=drained, started=started) is told
    assert (x.status, x.aborted, x.code) == noted
