"""Addresses in JSON: named members alone, in place, whole origins alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.json_urls import NAMED, JsonUrlRewriter, is_json

INSIDE = "https://gitlab.internal"
REWRITER = JsonUrlRewriter((b"https://gitlab.internal", b"https://gitlab.internal:8443/gitlab"), b"https://public/git")


def rewritten(value: object) -> object:
    return json.loads(REWRITER.turned(json.dumps(value).encode()))


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_members_lead_back(name: str) -> None:
    assert rewritten([{name: f"{INSIDE}/a/b.git"}]) == [{name: "https://public/git/a/b.git"}]


def test_links_lead_back_whatever_their_names() -> None:
    found = rewritten({"_links": {"self": f"{INSIDE}/api/v4/projects/1", "x": None, "other": "https://else/"}})
    assert found == {"_links": {"self": "https://public/git/api/v4/projects/1", "x": None, "other": "https://else/"}}


def test_a_prefix_and_a_port_are_part_of_a_name() -> None:
    assert rewritten({"web_url": "https://gitlab.internal:8443/gitlab/a"}) == {"web_url": "https://public/git/a"}


@pytest.mark.parametrize(
    "value",
    [
        {"description": f"{INSIDE}/a"},
        {"description": f'"web_url":"{INSIDE}/a"'},
        {"description": f'\\"web_url":"{INSIDE}/a"'},
        {'x"web_url': f"{INSIDE}/a"},
        {"web_url": f"{INSIDE}.evil.example/a"},
        {"web_url": f"{INSIDE}:9999/a"},
        {"web_url": f"see {INSIDE}/a"},
        {"web_url": [f"{INSIDE}/a"]},
        {"web_url": None},
        ["web_url", f"{INSIDE}/a"],
    ],
)
def test_everything_else_stays_octet_for_octet(value: object) -> None:
    body = json.dumps(value).encode()
    assert REWRITER.turned(body) == body


def test_numbers_and_order_stay() -> None:
    body = b'{"id":1e400,"big":12345678901234567890123,"web_url" :  "https://gitlab.internal","z":0.10}'
    assert REWRITER.turned(body) == body.replace(b"https://gitlab.internal", b"https://public/git")


_leaf = st.none() | st.booleans() | st.integers() | st.text() | st.just(f"{INSIDE}/x")
_names = st.sampled_from(["web_url", "_links", "self", "description", 'a"web_url', "\\"]) | st.text(max_size=5)
_json = st.recursive(
    _leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=4), max_leaves=12
)


def holds_object(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(holds_object, value)))


def expected(value: object, *, linked: bool = False) -> object:
    if isinstance(value, list):
        return [expected(item) for item in value]
    if not isinstance(value, dict):
        return value
    flat = not any(holds_object(item) for item in value.values())
    found = {}
    for name, item in value.items():
        hit = name in NAMED or (linked and flat)
        if hit and isinstance(item, str) and item.startswith(f"{INSIDE}/"):
            item = "https://public/git" + item.removeprefix(INSIDE)
        found[name] = expected(item, linked=name in {"_links", "links"})
    return found


@given(_json)
@example({"_links": {"self": [], "other": f"{INSIDE}/x"}})
@example({"_links": {"self": f"{INSIDE}/x", "}": None}})
@example({"_links": {'"\\': ["{"], "other": f"{INSIDE}/x"}})
def test_it_is_what_a_parser_would_do(value: object) -> None:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert json.loads(REWRITER.turned(body)) == expected(json.loads(body))


def test_what_is_json() -> None:
    assert is_json(b"Application/JSON; charset=utf-8")
    assert not is_json(b"application/vnd.git-lfs+json")
    assert not is_json(None)
