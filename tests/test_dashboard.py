"""The Grafana dashboard asks for what the gateway tells."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from .test_docs import OPERATIONS, rows_of, words

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parent.parent / "deploy/dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in DRAWN for target in panel["targets"]]
METRICS = {words(name)[0]: (kind, set(words(labels))) for name, kind, labels, _ in rows_of(OPERATIONS, "metric", "type")}
PROMETHEUS = {"instance", "le"}
"""Labels that no gateway writes itself."""


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title}-{target['refId']}" for title, target in TARGETS])
def test_queries_ask_for_metrics_and_labels_that_exist(title: str, target: dict[str, Any]) -> None:
    query = target["expr"]
    ((name, selected),) = re.findall(r"(gitlab_gateway_\w+)\{([^}]*)\}", query)
    kind, labels = METRICS[name.removesuffix("_bucket")]
    named = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", selected))
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r",\s*", group)}
    shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert named | grouped | shown <= labels | PROMETHEUS
    assert shown <= grouped
    assert 'instance=~"$instance"' in selected, "else the choice of gateways is not heeded"
    assert bool(re.search(r"\b(?:rate|increase)\(", query)) is (kind != "gauge")
    assert ("le" in grouped) is (kind == "histogram") is name.endswith("_bucket")


def test_no_two_panels_share_a_place_or_a_number() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    places = [set(_squares(panel["gridPos"])) for panel in PANELS]
    assert not any(one & other for one, other in itertools.combinations(places, 2))
    assert all(x < 24 for place in places for x, _ in place)


def _squares(place: dict[str, int]) -> list[tuple[int, int]]:
    return [(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]


def test_it_may_be_put_beside_any_prometheus() -> None:
    """A file that was exported from somewhere names a data source that is nowhere else."""
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "instance"}
    sources = [panel["datasource"] for panel in DRAWN] + [target["datasource"] for _, target in TARGETS]
    assert {source["uid"] for source in [*sources, variables["instance"]["datasource"]]} == {"${datasource}"}
    (asked,) = re.findall(r"label_values\((\w+), instance\)", variables["instance"]["query"]["query"])
    assert asked in METRICS
