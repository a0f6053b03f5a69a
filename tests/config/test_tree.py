from __future__ import annotations

import pytest

from gateway.config.tree import COMMAND_LINE, Mapping, Scalar, Sequence, Tree, parse_tree


def tree_of(text: str) -> Tree:
    tree = parse_tree(text, "F", {})
    assert tree.problems == []
    return tree


def scalar(tree: Tree, key: str) -> tuple[str, str]:
    node = tree.root.entries[key]
    assert isinstance(node, Scalar)
    return node.text, node.tag


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: off", ("off", "bool")), ("a: 12:30", ("12:30", "int")), ("a: 0042", ("0042", "int")), ("a: 'x'", ("x", "str"))],
)
def test_scalars_keep_the_text_as_written(text: str, expected: tuple[str, str]) -> None:
    assert scalar(tree_of(text), "a") == expected


def test_anchors_are_shared_and_merges_do_not_override() -> None:
    tree = tree_of("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nboth:\n  <<: [*b, {z: 4}]\n")
    use = tree.root.entries["use"]
    assert isinstance(use, Mapping)
    assert {key: node.text for key, node in use.entries.items() if isinstance(node, Scalar)} == {"x": "1", "y": "3"}
    both = tree.root.entries["both"]
    assert isinstance(both, Mapping)
    assert set(both.entries) == {"x", "y", "z"}


def test_many_aliases_cost_nothing() -> None:
    lines = ["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    node = tree_of("\n".join(lines)).root.entries["a39"]
    assert isinstance(node, Sequence)
    assert len(node.items) == 9


def test_lines_of_paths() -> None:
    tree = tree_of("a:\n  b:\n    - c: 1\n    -\n      d: 2\n")
    assert [tree.line(path) for path in [("a",), ("a", "b"), ("a", "b", 1, "d"), ("a", "b", 0, "nope"), ("x",)]] == [
        1,
        2,
        5,
        3,
        0,
    ]


def test_overrides_make_their_own_sections() -> None:
    tree = parse_tree("a: {b: 1}", "F", {("a", "c"): "2", ("x", "y"): "3", ("a", "b", "d"): "4"})
    assert tree.problem(("x", "y"), "m").file == COMMAND_LINE
    below = tree.root.entries["a"]
    assert isinstance(below, Mapping)
    assert isinstance(below.entries["b"], Mapping)
    assert str(tree.problem(("a", "c"), "m")) == f"{COMMAND_LINE}: a.c: m"


def test_tabs_in_a_flow_mapping_that_is_no_json_stay() -> None:
    assert parse_tree("{a:\t'x\ty'}", "F", {}).problems == []


def test_surrogate_pairs_become_one_character() -> None:
    assert scalar(tree_of('{"a": "\\ud83e\\udd8a"}'), "a")[0] == "\U0001f98a"


def test_depth_is_survived() -> None:
    tree = parse_tree("[" * 100_000, "F", {})
    assert tree.root.entries == {}
    assert tree.problems
