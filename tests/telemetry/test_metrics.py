"""What a scrape reads: names by Prometheus' rules, labels out of closed sets, numbers that add up."""

from __future__ import annotations

import asyncio
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.errors import Code
from gateway.core.exchange import Exchange, ObserverMemo
from gateway.telemetry.metrics import CONTENT_TYPE, Metrics, Reading


def exchange(**facts: object) -> Exchange:
    x = Exchange("r-1", 0.0, "GET", "192.0.2.1")
    x.status = 200
    for name, value in facts.items():
        setattr(x, name, value)
    return x


def scraped(metrics: Metrics) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    for family in scraped(metrics).values():
        for found in family.samples:
            if found.name == name and found.labels == labels:
                return float(found.value)
    return 0.0


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("1.2.3", "19.3")
    made.add_readings(
        lambda: [
            Reading("gitlab_gateway_requests_in_flight", "Requests being served.", 3),
            Reading("gitlab_gateway_slow_heads", "Slow.", 2, total=True),
            Reading("gitlab_gateway_store_up", "Up.", 1, labels={"store": "cache"}),
            Reading("gitlab_gateway_store_up", "Up.", 0, labels={"store": "keys"}),
        ]
    )
    return made


FULL = {
    "operation": "GET /api/v4/projects/:id",
    "cache_status": "hit",
    "cache_reason": "fresh",
    "principal_kind": "key",
    "upstream_status": 200,
    "upstream_first_byte_s": 0.02,
    "code": "rate_limited",
    "limit_id": "caller",
    "limit_shadow": "tighter",
    "aborted": "upstream",
    "bytes_in": 5,
    "bytes_out": 7,
}


def test_names_follow_the_rules(metrics: Metrics) -> None:
    """As ``promtool check metrics`` has them."""
    metrics.observe(exchange(**FULL), 0.1)
    families = scraped(metrics)
    assert len(families) > 10
    for family in families.values():
        assert re.fullmatch(r"gitlab_gateway_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(gauge|counter|histogram|ms|milliseconds|kb)$", family.name)
        names = {found.name for found in family.samples}
        if family.type == "counter":
            assert names == {f"{family.name}_total"}
        elif family.type == "histogram":
            assert family.name.endswith("_seconds")
            assert names == {f"{family.name}_{part}" for part in ("bucket", "count", "sum")}
        else:
            assert family.type == "gauge"
            assert names == {family.name}
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        for found in family.samples:
            for label in found.labels:
                assert re.fullmatch(r"[a-z]+", label)
                assert label not in {"job", "instance", "quantile"}


def test_the_exposition_is_the_classic_text(metrics: Metrics) -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    assert metrics.render().endswith(b"\n")
    assert b"_created" not in metrics.render(), "a second series for each counter that nobody reads"


def test_a_request_is_counted_everywhere_once(metrics: Metrics) -> None:
    metrics.observe(exchange(**FULL), 0.1)
    metrics.observe(exchange(**FULL), 0.3)
    prefix = "gitlab_gateway_"
    for name, labels, value in (
        ("http_requests_total", {"operation": "GET /api/v4/projects/:id", "method": "GET", "status": "200"}, 2),
        ("upstream_responses_total", {"status": "200"}, 2),
        ("refusals_total", {"code": "rate_limited"}, 2),
        ("cache_requests_total", {"status": "hit", "reason": "fresh"}, 2),
        ("principals_total", {"kind": "key"}, 2),
        ("limit_decisions_total", {"limit": "caller", "outcome": "refused"}, 2),
        ("limit_decisions_total", {"limit": "tighter", "outcome": "shadow"}, 2),
        ("aborted_responses_total", {"by": "upstream"}, 2),
        ("http_request_body_bytes_total", {}, 10),
        ("http_response_bytes_total", {}, 14),
        ("http_request_duration_seconds_count", {"cache": "hit"}, 2),
        ("http_request_duration_seconds_sum", {"cache": "hit"}, pytest.approx(0.4)),
        ("http_request_duration_seconds_bucket", {"cache": "hit", "le": "0.1"}, 1),
        ("http_request_duration_seconds_bucket", {"cache": "hit", "le": "0.05"}, 0),
        ("http_request_duration_seconds_bucket", {"cache": "hit", "le": "+Inf"}, 2),
        ("upstream_first_byte_seconds_count", {}, 2),
        ("build_info", {"version": "1.2.3", "catalogue": "19.3"}, 1),
    ):
        assert sample(metrics, prefix + name, **labels) == value, name


def test_what_did_not_happen_is_not_counted(metrics: Metrics) -> None:
    metrics.observe(exchange(limit_id="caller", limit_remaining=3.0), 0.1)
    for name in ("cache_requests", "principals", "limit_decisions", "aborted_responses", "upstream_responses"):
        family = scraped(metrics).get(f"gitlab_gateway_{name}")
        assert family is None or not family.samples, name
    assert sample(metrics, "gitlab_gateway_upstream_first_byte_seconds_count") == 0


def test_a_first_refusal_is_an_increase(metrics: Metrics) -> None:
    """For alerts: every code has its series before."""
    series = scraped(metrics)["gitlab_gateway_refusals"].samples
    assert {(one.labels["code"], one.value) for one in series} == {(code.value, 0.0) for code in Code}
    metrics.observe(exchange(code="internal_error"), 0.1)
    assert sample(metrics, "gitlab_gateway_refusals_total", code="internal_error") == 1
    assert len(scraped(metrics)["gitlab_gateway_refusals"].samples) == len(series)


def test_a_client_cannot_invent_series(metrics: Metrics) -> None:
    """Whatever it calls its method: what is counted is a method of GitLab's, or ``other``."""
    for number in range(2000):
        metrics.observe(exchange(method=f"M{number}", status=405, code="method_not_allowed"), 0.001)
    requests = scraped(metrics)["gitlab_gateway_http_requests"].samples
    assert [(found.labels["method"], found.value) for found in requests] == [("other", 2000.0)]


def test_what_never_became_a_request_is_counted_too(metrics: Metrics) -> None:
    metrics.observe(exchange(method="", status=400, code="bad_request"), 0.0)
    labels = {"operation": "other", "method": "other", "status": "400"}
    assert sample(metrics, "gitlab_gateway_http_requests_total", **labels) == 1


def test_readings_are_read_at_each_scrape() -> None:
    numbers = iter([1.0, 2.0])
    metrics = Metrics("1")
    metrics.add_readings(lambda: [Reading("gitlab_gateway_requests_in_flight", "Requests being served.", next(numbers))])
    assert sample(metrics, "gitlab_gateway_requests_in_flight") == 1.0
    assert sample(metrics, "gitlab_gateway_requests_in_flight") == 2.0


def test_two_gateways_in_one_process_count_apart(metrics: Metrics) -> None:
    metrics.observe(exchange(**FULL), 0.1)
    assert sample(Metrics("1"), "gitlab_gateway_refusals_total", code="rate_limited") == 0


@pytest.mark.parametrize("code", ["", "rate_limited"])
def test_kin_are_counted_as_each_would_be_alone(metrics: Metrics, code: str) -> None:
    alone, facts = Metrics("1.2.3", "19.3"), {**FULL, "code": code, "aborted": "", "limit_shadow": "", "upstream_status": 0}
    observer_memo = ObserverMemo()
    for number in range(3):
        metrics.observe(exchange(**{**facts, "bytes_out": number}, observer_memo=observer_memo), 0.1 * number)
        alone.observe(exchange(**{**facts, "bytes_out": number}), 0.1 * number)
    lines = alone.render().decode().splitlines()
    assert lines == [
        line for line in metrics.render().decode().splitlines() if not re.search("in_flight|slow_heads|store_up", line)
    ]


def test_kin_of_one_gateway_are_counted_by_another_for_itself(metrics: Metrics) -> None:
    observer_memo, other = ObserverMemo(), Metrics("1")
    for counts in (metrics, other, metrics):
        counts.observe(exchange(observer_memo=observer_memo), 0.1)
    labels = {"operation": "other", "method": "GET", "status": "200"}
    assert [sample(one, "gitlab_gateway_http_requests_total", **labels) for one in (metrics, other)] == [2, 1]


async def test_a_scrape_of_many_series_lets_requests_through() -> None:
    """In a thread of its own it hands over by itself, again and again: left to Python, each system call would wait 5 ms."""
    metrics = Metrics("1")
    for number in range(4000):
        metrics.observe(exchange(operation=f"GET /{number}"), 0.001)
    turns = 0
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        async with asyncio.TaskGroup() as group:
            scrape = group.create_task(asyncio.to_thread(metrics.render))
            while not scrape.done():
                await asyncio.sleep(0)
                turns += 1
    finally:
        sys.setswitchinterval(before)
    assert scrape.result().count(b"\n") > 4000
    assert turns > 20


def test_it_reads_the_same_in_whichever_thread() -> None:
    metrics = Metrics("1")
    for number in range(3000):
        metrics.observe(exchange(operation=f"GET /{number % 700}", status=200 + number % 5, bytes_in=number), 0.001)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(metrics.render).result() == metrics.render()


def test_it_reads_as_the_library_writes_it(metrics: Metrics) -> None:
    for number in range(50):
        metrics.observe(exchange(**FULL | {"operation": f"GET /{number % 7}", "status": 200 + number % 3}), 0.1)
    assert metrics.render() == generate_latest(metrics.registry)
    metrics.observe(exchange(**FULL), 0.1)
    assert metrics.render() == generate_latest(metrics.registry)
    assert metrics.render() == metrics.render()


def test_scrapes_at_the_same_time_do_not_add_up(metrics: Metrics) -> None:
    for number in range(2000):
        metrics.observe(exchange(operation=f"GET /{number}"), 0.1)
    with ThreadPoolExecutor(3) as others:
        renderings = {others.submit(metrics.render) for _ in range(6)}
        assert len({one.result() for one in renderings}) == 1
