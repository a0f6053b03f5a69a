"""What a request costs, before its answer and after it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import routes
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.cost import MAX_WEIGHT, PUBLISHED_PER_MINUTE, Settlement, Usage, Weights

UNKNOWN = Operation("other", Access.READ, Surface.REST, known=False)


def operation(name: str) -> Operation:
    return Operation(name, Access.READ, Surface.REST)


@pytest.mark.parametrize(
    ("name", "method", "weight"),
    [
        pytest.param("GET /api/v4/user", "GET", 1.0, id="a-read"),
        pytest.param("PUT /api/v4/projects/:id", "PUT", 5.0, id="a-write"),
        pytest.param("GET /api/v4/projects/:id", "GET", 5.0, id="2000-against-400"),
        pytest.param("GET /api/v4/projects/:id", "HEAD", 5.0, id="head"),
        pytest.param("GET /api/v4/projects/:id/jobs", "GET", 3.0, id="rounded"),
        pytest.param("GET /api/v4/projects/:id/repository/archive", "GET", MAX_WEIGHT, id="capped"),
    ],
)
def test_weights(name: str, method: str, weight: float) -> None:
    assert Weights({}).of(operation(name), method) == weight


def test_an_unknown_route_weighs_by_its_method() -> None:
    assert Weights({}).of(UNKNOWN, "GET") == 1.0
    assert Weights({}).of(UNKNOWN, "POST") == 5.0


def test_the_operator_s_word_goes_first() -> None:
    assert Weights({"GET /api/v4/projects/:id": 0.5}).of(operation("GET /api/v4/projects/:id"), "GET") == 0.5


@pytest.mark.parametrize("name", sorted(PUBLISHED_PER_MINUTE))
def test_every_operation_of_the_table_is_in_the_catalogue(name: str) -> None:
    method, template = name.split(" ", 1)
    segments = tuple("7" if part.startswith(":") else part for part in template.strip("/").split("/"))
    found = routes.catalogue().find(method, segments)
    assert found is not None
    assert Weights({}).of(found, method) == min(MAX_WEIGHT, round(2000 / PUBLISHED_PER_MINUTE[name]))


SETTLEMENT = Settlement(cached=0.0, not_modified=0.25, per_second=4.0, per_mebibyte=2.0)


@pytest.mark.parametrize(
    ("usage", "change"),
    [
        pytest.param(Usage(asked=False), -8.0, id="the-cache-answered"),
        pytest.param(Usage(asked=False, runtime_s=9.0), -8.0, id="then-nobody-worked"),
        pytest.param(Usage(asked=True, not_modified=True), -6.0, id="not-modified"),
        pytest.param(Usage(asked=True, runtime_s=1.5), 6.0, id="time"),
        pytest.param(Usage(asked=True, runtime_s=-1.0), 0.0, id="no-time-below-nothing"),
        pytest.param(Usage(asked=True, runtime_s=math.nan), 0.0, id="no-number"),
        pytest.param(Usage(asked=True, runtime_s=math.inf), 0.0, id="no-end"),
        pytest.param(Usage(asked=True, sent_bytes=3 << 20), 6.0, id="octets"),
        pytest.param(Usage(asked=True), 0.0, id="as-taken"),
    ],
)
def test_what_the_answer_changes(usage: Usage, change: float) -> None:
    assert SETTLEMENT.change(8.0, usage) == change


@settings(deadline=None)
@given(st.floats(0, 1e3), st.booleans(), st.booleans(), st.floats(), st.integers(0, 1 << 40))
def test_never_more_is_given_back_than_was_taken(
    cost: float, asked: bool, not_modified: bool, runtime_s: float, sent: int
) -> None:
    assert SETTLEMENT.change(cost, Usage(asked, not_modified, runtime_s, sent)) >= -cost
