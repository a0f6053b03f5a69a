"""Figures of several processes, added up."""

from __future__ import annotations

import math

import msgspec
import pytest

from gateway.core.exchange import Exchange
from gateway.telemetry import figures
from gateway.telemetry.figures import Figures, Histogram, Number, Row, merge
from gateway.telemetry.metrics import Metrics, Reading


def number(name: str, value: float, *, total: bool = False, **labels: str) -> Number:
    return Number(f"gitlab_gateway_{name}", "Text.", value, total, labels)


def test_rows_of_a_kind_are_added_and_others_stand_beside_them() -> None:
    one = Figures((Row(("GET", 200), 2, 10, 100), Row(("GET", 404), 1, 0, 5)))
    other = Figures((Row(("GET", 200), 3, 1, 1),))
    whole = merge([one, other])
    assert whole.rows == (Row(("GET", 200), 5, 11, 101), Row(("GET", 404), 1, 0, 5))
    assert whole.requests == 6


def test_histograms_are_added() -> None:
    one = Figures(durations={"hit": Histogram((1, 0), 0.5)}, upstream=Histogram((1, 1), 2.0))
    other = Figures(durations={"hit": Histogram((2, 1), 1.5), "miss": Histogram((0, 1), 9.0)})
    whole = merge([one, other])
    assert whole.durations == {"hit": Histogram((3, 1), 2.0), "miss": Histogram((0, 1), 9.0)}
    assert whole.upstream == Histogram((1, 1), 2.0)


@pytest.mark.parametrize(
    ("name", "values", "labels", "wanted"),
    [
        pytest.param("requests_in_flight", (1, 2), {}, 3, id="amounts are added"),
        pytest.param("upstream_breaker", (0, 1), {"state": "open"}, 1, id="an alarm is on where it is on anywhere"),
        pytest.param("upstream_breaker", (1, 1), {"state": "open"}, 1, id="and no more than that"),
        pytest.param("store_up", (1, 0), {"store": "keys"}, 0, id="up is up everywhere"),
        pytest.param("credential_expires_seconds", (math.inf, 5), {"credential": "a"}, 5, id="the one that knows an end"),
        pytest.param("certificate_expires_seconds", (7, 5), {}, 5, id="the first that ends"),
        pytest.param("hooks_silence_seconds", (-1, 7), {}, 7, id="the one that knows a hook"),
    ],
)
def test_a_state_of_several(name: str, values: tuple[float, float], labels: dict[str, str], wanted: float) -> None:
    parts = [Figures(numbers=(number(name, value, **labels),)) for value in values]
    assert merge(parts).numbers == (number(name, wanted, **labels),)


def test_totals_are_added_by_their_labels() -> None:
    one = Figures(
        numbers=(number("hooks", 1, total=True, outcome="purged"), number("hooks", 2, total=True, outcome="refused"))
    )
    whole = merge([one, one])
    assert [(each.labels, each.value) for each in whole.numbers] == [
        ({"outcome": "purged"}, 2),
        ({"outcome": "refused"}, 4),
    ]


def test_of_one_that_is_gone_totals_stay() -> None:
    gone = Figures((Row(("GET",), 1, 0, 0),), numbers=(number("hooks", 1, total=True), number("store_up", 1))).totals()
    assert gone.requests == 1
    assert gone.numbers == (number("hooks", 1, total=True),)


def test_nobody_has_counted_nothing() -> None:
    assert merge([]) == Figures()


def seen(status: int, code: str = "") -> Metrics:
    metrics = Metrics("1", "19")
    x = Exchange("r", 0.0, "GET", "192.0.2.1")
    x.status, x.code, x.operation, x.cache_status, x.bytes_out, x.upstream_status = status, code, "GET /x", "hit", 7, 200
    metrics.observe(x, 0.002)
    return metrics


def readings() -> list[Reading]:
    return [
        Reading("gitlab_gateway_hooks", "Webhooks received, by outcome.", 2, total=True, labels={"outcome": "purged"}),
        Reading("gitlab_gateway_cache_near_up", "1 while heard.", True),
    ]


def test_what_is_shown_of_one_is_what_it_shows_itself() -> None:
    metrics = seen(429, "rate_limited")
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(metrics.figures(readings)), type=Figures)
    other = Metrics("1", "19")
    other.load_figures(sent)
    metrics.add_readings(readings)
    assert sorted(other.render().splitlines()) == sorted(metrics.render().splitlines())


def test_what_is_shown_of_two_is_their_sum() -> None:
    whole = Metrics("1", "19")
    whole.load_figures(merge([seen(200).figures(readings), seen(200).figures(readings), seen(404).figures(readings)]))
    text = whole.render().decode()
    assert 'gitlab_gateway_http_requests_total{method="GET",operation="GET /x",status="200"} 2.0' in text
    assert 'gitlab_gateway_http_requests_total{method="GET",operation="GET /x",status="404"} 1.0' in text
    assert 'gitlab_gateway_http_request_duration_seconds_count{cache="hit"} 3.0' in text
    assert "gitlab_gateway_upstream_first_byte_seconds_count 3.0" in text
    assert "gitlab_gateway_http_response_bytes_total 21.0" in text
    assert 'gitlab_gateway_hooks_total{outcome="purged"} 6.0' in text
    assert "gitlab_gateway_cache_near_up 1.0" in text


def test_the_tables_are_of_gauges_and_do_not_overlap() -> None:
    """That each name is exported at all: ``tests/test_docs.py``."""
    assert not figures._MERGED_BY_MAX & figures._MERGED_BY_MIN
    assert not [name for name in figures._MERGED_BY_MAX | figures._MERGED_BY_MIN if name.endswith("_total")]
