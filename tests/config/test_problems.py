from __future__ import annotations

from gateway.config.problems import Problem, Severity, show_path


def test_paths_read_like_the_file() -> None:
    assert show_path(("rules", 2, "for", 0)) == "rules[2].for[0]"
    assert show_path(()) == ""


def test_problems_say_where() -> None:
    assert str(Problem("a.b", "is bad", "f.yaml", 3)) == "f.yaml:3: a.b: is bad"
    assert str(Problem("a.b", "is bad", "f.yaml")) == "f.yaml: a.b: is bad"
    assert str(Problem("", "is bad", "", 0, Severity.WARNING)) == "warning: is bad"
