"""Templates and the tree that finds them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.route_tree import MAX_SEGMENTS, RouteTree, expand, split, template_shape


def tree(*templates: str) -> RouteTree[str]:
    """Each template stands for itself; ``METHOD /template``, GET where none is given."""
    made: RouteTree[str] = RouteTree()
    for template in templates:
        method, _, path = template.rpartition(" ")
        for expanded in expand(path):
            made.add(method or "GET", split(expanded), template)
    return made


def find(made: RouteTree[str], path: str, method: str = "GET") -> str | None:
    found = made.find(method, split(path))
    return found[0] if found else None


@pytest.mark.parametrize(
    ("template", "expanded"),
    [
        ("/a/:id/(-/)search", ["/a/:id/-/search", "/a/:id/search"]),
        ("/a/(ref/:ref/)run", ["/a/ref/:ref/run", "/a/run"]),
        ("/a/latest(/)(*rest)", ["/a/latest/*rest", "/a/latest/", "/a/latest"]),
        ("/a/*v/(*path/):file", ["/a/*v/*path/:file", "/a/*v/:file"]),
        ("/v2/FindPackagesById()", ["/v2/FindPackagesById()"]),
        ("/v2/Packages(Id='*name',Version='*v')", ["/v2/Packages(Id='*name',Version='*v')"]),
    ],
)
def test_optional_groups_are_taken_or_left(template: str, expanded: list[str]) -> None:
    assert expand(template) == expanded


def test_templates_of_one_shape_differ_in_names_alone() -> None:
    assert template_shape("/projects/:id/issues/:issue_iid/") == template_shape("/projects/:project/issues/:x")
    assert template_shape("/a/:b") != template_shape("/a/*b")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/p/all", "/p/all", id="text beats a name"),
        pytest.param("/p/7", "/p/:id", id="a name"),
        pytest.param("/p/all/x", "/p/:id/x", id="back from text to a name"),
        pytest.param("/p/7/f/a.tgz", "/p/:id/f/:name.tgz", id="mixed beats a name"),
        pytest.param("/p/7/f/a.zip", "/p/:id/f/:name", id="mixed does not fit"),
        pytest.param("/p/7/g/x.tgz/more", "/p/:id/*rest", id="back from mixed to a wildcard"),
        pytest.param("/p/7/w/a/b/end", "/p/:id/w/*mid/end", id="a wildcard in the middle"),
        pytest.param("/p/7/w/end/end", "/p/:id/w/*mid/end", id="a wildcard takes at least one"),
        pytest.param("/g/h.git/refs", "/*repo.git/refs", id="a wildcard that ends in text"),
        pytest.param("/a.git/b.git/refs", "/*repo.git/refs", id="such an ending inside"),
        pytest.param("/g/h/refs", None, id="without the ending"),
        pytest.param("/p", None, id="too short"),
        pytest.param("/q/7", None, id="unknown text"),
        pytest.param("/", "/", id="the root"),
    ],
)
def test_the_most_literal_template_wins(path: str, expected: str | None) -> None:
    made = tree(
        "/",
        "/p/all",
        "/p/:id",
        "/p/:id/x",
        "/p/:id/f/:name.tgz",
        "/p/:id/f/:name",
        "/p/:id/g/:name.tgz",
        "/p/:id/*rest",
        "/p/:id/w/*mid/end",
        "/*repo.git/refs",
    )
    assert find(made, path) == expected


def test_the_method_is_part_of_the_match() -> None:
    made = tree("GET /p/all", "DELETE /p/:id", "ANY /k/*path", "HEAD /p/head", "GET /p/head")
    assert find(made, "/p/all", "DELETE") == "DELETE /p/:id"
    assert find(made, "/p/all", "HEAD") == "GET /p/all"
    assert find(made, "/p/head", "HEAD") == "HEAD /p/head"
    assert find(made, "/p/7", "GET") is None
    assert find(made, "/k/a/b", "PATCH") == "ANY /k/*path"
    assert find(made, "/k/a/b", "HEAD") == "ANY /k/*path"


def test_templates_share_a_mixed_segment() -> None:
    made = tree("GET /f/:name.tgz", "PUT /f/:other.tgz", "GET /f/:name.tgz/prov")
    assert find(made, "/f/a.tgz", "PUT") == "PUT /f/:other.tgz"
    assert find(made, "/f/a.tgz/prov") == "GET /f/:name.tgz/prov"


@pytest.mark.parametrize(
    ("path", "fits"),
    [
        pytest.param("/v2/Packages(Id='a',Version='1')", True, id="one of each"),
        pytest.param("/v2/Packages(Id='a',Version='',Version='1')", True, id="the text between stands twice"),
        pytest.param("/v2/Packages(Id='a',Version='')", False, id="nothing for the second"),
        pytest.param("/v2/Packages(Id='',Version='1')", False, id="nothing for the first"),
        pytest.param("/v2/Packages(Id='',Version='',Version='1')", True, id="the text between stands for the first, too"),
        pytest.param("/v2/Packages(Id='a',Version='1'", False, id="no end"),
        pytest.param("/v2/Packages(Id='a\n',Version='\n')", True, id="line breaks"),
    ],
)
def test_a_segment_of_two_names(path: str, fits: bool) -> None:
    template = "/v2/Packages(Id='*name',Version='*v')"
    assert find(tree(template), path) == (template if fits else None)


def test_a_segment_of_two_names_is_read_once() -> None:
    """With the text between them looked for again from each place this would take minutes."""
    made = tree("/v2/Packages(Id='*name',Version='*v')")
    assert find(made, "/v2/Packages(Id='a" + "',Version='" * 100_000 + "a") is None


def test_the_first_of_two_equal_templates_stays() -> None:
    assert find(tree("/p/:id", "/p/:name"), "/p/7") == "/p/:id"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/runners.json", "/runners", id="text and a format"),
        pytest.param("/runners/all.json", "/runners/all", id="text and a format beat a name"),
        pytest.param("/runners/all.v2", "/runners/all", id="any ending: Grape routes before it looks at the format"),
        pytest.param("/runners/42.json", "/runners/:id", id="in a name the ending is part of it"),
        pytest.param("/runners/all.json/x", None, id="only the last segment has a format"),
        pytest.param("/.json", None, id="nothing before the dot"),
    ],
)
def test_a_format_ending(path: str, expected: str | None) -> None:
    assert find(tree("/runners", "/runners/all", "/runners/:id"), path) == expected


def test_spans_are_told_left_to_right() -> None:
    made = tree("/*a/-/x/*b")
    assert made.find("GET", split("/g/h/-/x/1/2/3")) == ("/*a/-/x/*b", ((0, 2), (4, 7)))


def test_overlong_paths_match_nothing() -> None:
    made = tree("/*rest")
    assert made.find("GET", ("a",) * MAX_SEGMENTS) is not None
    assert made.find("GET", ("a",) * (MAX_SEGMENTS + 1)) is None


def test_many_wildcards_stay_polynomial() -> None:
    """A path made to fail in every way ends at once: without the memory of dead ends this would take 60^8 steps."""
    made = tree("/*a/x/*b/x/*c/x/*d/x/*e/x/*f/x/*g/x/*h/end")
    assert made.find("GET", ("x",) * MAX_SEGMENTS) is None


WORDS = st.sampled_from(["a", "b", "c.git", "-"])
TOKENS = st.sampled_from(["a", "b", "-", ":one", "*many"])


def fits(tokens: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not tokens:
        return not path
    if tokens[0] == "*many":
        return any(fits(tokens[1:], path[taken:]) for taken in range(1, len(path) + 1))
    return bool(path) and (tokens[0] == ":one" or tokens[0] == path[0]) and fits(tokens[1:], path[1:])


@given(st.lists(st.lists(TOKENS, min_size=1, max_size=5).map(tuple), max_size=6), st.lists(WORDS, max_size=6).map(tuple))
def test_found_exactly_when_a_template_fits(templates: list[tuple[str, ...]], path: tuple[str, ...]) -> None:
    made: RouteTree[tuple[str, ...]] = RouteTree()
    for tokens in templates:
        made.add("GET", tokens, tokens)
    found = made.find("GET", path)
    # `c.git` could be read as `c` with a format, but no template holds a bare `c`.
    assert (found is not None) == any(fits(tokens, path) for tokens in templates)
    if found is not None:
        assert fits(found[0], path)
