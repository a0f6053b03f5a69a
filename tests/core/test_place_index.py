"""Nothing that may matter is left out, and the order stays."""

from __future__ import annotations

import sys
from types import FrameType

from hypothesis import given
from hypothesis import strategies as st

from gateway import routes
from gateway.core.access import Principal, PrincipalKind, Rules
from gateway.core.place_index import PlaceIndex
from gateway.core.rule_match import Clause, Projects, Rule
from gateway.core.target import parse_target

BOT = Principal("bot", PrincipalKind.KEY, "bot")
TARGET = parse_target(b"/api/v4/projects/platform%2Fapi/issues")
GET_ISSUES = routes.catalogue().match("GET", TARGET), TARGET

PLACES = st.sampled_from(["a", "b", "c/d", "e"])


@given(st.lists(st.none() | st.lists(PLACES, max_size=3)), st.lists(PLACES, max_size=3))
def test_what_is_about_a_place_or_about_any(things: list[list[str] | None], asked: list[str]) -> None:
    index = PlaceIndex(list(enumerate(things)))
    expected = [at for at, places in enumerate(things) if places is None or not set(places).isdisjoint(asked)]
    assert list(index.candidates(asked)) == expected
    assert index.all == tuple(range(len(things)))


def test_many_elsewhere_are_not_gone_through() -> None:
    index: PlaceIndex[int] = PlaceIndex([*((at, [f"p{at}"]) for at in range(5000)), (5000, None)])
    assert index.candidates(["p17"]) == (17, 5000)
    assert index.candidates(["q"]) == (5000,)


def test_rules_for_other_projects_cost_a_decision_nothing() -> None:
    """As many calls with five thousand as with ten; a decision that was not remembered."""
    operation, target = GET_ISSUES
    counts = []
    for many in (10, 5000):
        others = [Rule(f"r{n}", ("bot",), "c", (Clause(projects=Projects((f"elsewhere/p{n}",))),)) for n in range(many)]
        rules = Rules.compile([*others, Rule("last", ("bot",), "c", (Clause(projects=Projects(("platform/api",))),))])
        calls = 0

        def note(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            permit = rules.authorise(BOT, operation, target, "GET")
        finally:
            sys.setprofile(before)
        assert permit.rule == "last"
        counts.append(calls)
    assert counts[0] == counts[1]
