from __future__ import annotations

import pytest

from gateway.config.references import ReferenceResolver, check_secret, is_reference

from .world import ENV, read_file

WORLD = ReferenceResolver(ENV, read_file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("$HOME", "$HOME"),
        ("a${b", "a${b"),
        ("${env:TOKEN}", "glpat-R3aderOne"),
        ("${file:/run/secrets/token}", "glpat-Fr0mFile"),
    ],
)
def test_whole_values_resolve(text: str, value: str) -> None:
    assert WORLD.resolve(text) == value


def test_a_resolved_value_is_not_resolved_again() -> None:
    assert ReferenceResolver({"A": "${env:B}", "B": "x"}, read_file).resolve("${env:A}") == "${env:B}"


@pytest.mark.parametrize(
    "text",
    ["${env:}", "${env:1A}", "${env:NOPE}", "${env:EMPTY}", "x${env:TOKEN}", "${env:TOKEN} ", "${TOKEN}", "${file:}"],
)
def test_what_does_not_resolve(text: str) -> None:
    with pytest.raises(ValueError, match=r"reference|environment variable|names no file"):
        WORLD.resolve(text)


def test_only_the_last_line_end_of_a_file_goes() -> None:
    resolver = ReferenceResolver({}, {"/a": "x\r\n", "/b": "x\n\n", "/c": "x"}.__getitem__)
    assert [resolver.read(path) for path in ("/a", "/b", "/c")] == ["x", "x\n", "x"]


def test_a_file_beyond_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        ReferenceResolver({}, lambda _: "x" * (1 << 20 | 1)).read("/big")


def test_is_reference() -> None:
    assert is_reference("${env:A}")
    assert not is_reference("${env:A}b")


@pytest.mark.parametrize(
    "value",
    [
        "changeme",
        "CHANGE-ME",
        "glpat-xxxxxxxxxxxxxxxxxxxx",
        "glpat-",
        "<your token>",
        "your-token-here",
        "secret",
        "glpat-...",
    ],
)
def test_placeholders_are_no_secrets(value: str) -> None:
    with pytest.raises(ValueError, match="placeholder"):
        check_secret(value)


@pytest.mark.parametrize("value", ["a b", "a\r\nX: y", "tökén", "a\0"])
def test_secrets_fit_a_header(value: str) -> None:
    with pytest.raises(ValueError, match="characters that no token has"):
        check_secret(value)


@pytest.mark.parametrize("value", ["glpat-R3aderOne", "glpat-AbC.01.x9y8z7", "5f0c9a7e1b3d8246", "my-tokenizer-9"])
def test_secrets(value: str) -> None:
    check_secret(value)
