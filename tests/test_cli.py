"""Commands that need no running gateway; ``tests/e2e`` starts the others as processes."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway import __version__
from gateway.cli import FAILED, OK, REFUSED, _read_again, main
from gateway.config.source import ConfigSource

ROOT = Path(__file__).parent.parent


def write(directory: Path, text: str) -> str:
    file = directory / "gateway.yaml"
    file.write_text(text, "utf-8")
    return str(file)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("version", "--version"):
        assert main([argument]) == OK
        assert capsys.readouterr().out.startswith(f"gitlab-gateway {__version__} ")


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == OK
    assert json.loads(capsys.readouterr().out)["properties"]["version"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["serf"],
        ["serve", "--listen", "8080"],
        ["serve", "--upstream"],
        ["serve"],
        ["check"],
        ["keys"],
        ["keys", "new"],
        ["keys", "new", "bot"],
        ["keys", "new", "bot", "--expires", "90"],
        ["keys", "new", "bot", "--expires", "0s"],
        ["explain", "GET", "/"],
        ["routes", "--surface", "moon"],
        ["check", "--config", "/nowhere.yaml"],
        ["check", "--config", "/"],
        ["check", "--config", "a\0b"],
        ["serve", "--upstream", "gitlab.internal"],
        ["serve", "--upstream", "http://127.0.0.1:9", "--workers", "two"],
        ["serve", "--upstream", "http://127.0.0.1:9", "--workers", "0"],
        ["serve", "--upstream", "http://127.0.0.1:9", "--workers", "2"],  # their stores are in memory
        ["serve", "--conf", "x"],
        ["limits", "top", "--admin", "foo"],
        ["limits", "set", "caller", "bot", "--pause", "--admin", "127.0.0.1:99999"],
        ["limits", "reset", "caller", "bot", "--admin", "::1:9901"],
        ["credentials", "list", "--admin", "foo"],
        ["credentials", "rotate", "sa", "--admin", "127.0.0.1:"],
        ["credentials", "list", "--config", "/nowhere.yaml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_words(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == REFUSED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err
    assert "Traceback" not in shown.err


def test_an_output_that_can_not_spell_everything_gets_the_rest_escaped(tmp_path: Path) -> None:
    file = write(tmp_path, "version: 1\nupstream: {url: https://g}\naudit: {sink: 'file:/é→🦊'}\n")
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        shown = subprocess.run(
            [sys.executable, "-m", "gateway", "check", "--config", file, "--show", form],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            cwd=ROOT,
        )
        assert shown.returncode == OK, shown.stderr
        assert read(shown.stdout.decode("ascii"))["audit"]["sink"] == "file:/é→🦊"


def test_help_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == OK
    assert "--upstream" in capsys.readouterr().out


def test_check_prints_every_problem_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "version: 1\nupstream: {url: https://g}\nlisten: {adress: 1}\ncache: {ttl: 5}\n")
    assert main(["check", "--config", file]) == REFUSED
    shown = capsys.readouterr().err
    assert f"{file}:3: listen.adress: is not a key" in shown
    assert f"{file}:4: cache.ttl: is not a duration" in shown
    assert "refused: 2 errors" in shown


def test_check_of_a_file_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    assert main(["check", "--config", str(tmp_path / "x")]) == REFUSED
    assert "is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_check_shows_what_would_be_in_force(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_TOKEN", "glpat-R3aderOne")
    text = "version: 1\nupstream: {url: https://g}\ncredentials: [{id: sa, token: '${env:A_TOKEN}'}]\n"
    assert main(["check", "--config", write(tmp_path, text), "--show", form]) == OK
    shown = capsys.readouterr()
    assert "(hidden)" in shown.out
    assert "glpat" not in shown.out + shown.err
    assert "warning: credentials[0]: is used by no rule" in shown.err


def test_what_was_given_is_read_again_with_the_same_options(tmp_path: Path) -> None:
    file = write(tmp_path, "version: 1\nupstream: {url: https://g}\nlisten: {address: '127.0.0.1:1'}\n")
    source = ConfigSource("", file, ((("listen", "address"), "127.0.0.1:2"),))
    again, loaded = _read_again(source)
    assert loaded.config is not None
    assert (str(loaded.config.listen.address), again.text) == ("127.0.0.1:2", Path(file).read_text())
    write(tmp_path, "version: 1\nupstream: {url: https://g}\nrulez: []\n")
    assert [(problem.file, problem.line) for problem in _read_again(source)[1].errors] == [(file, 3)]


def test_what_gives_nothing_a_second_time_is_not_waited_for(tmp_path: Path) -> None:
    """As a shell's ``<(…)``: who reads it again would wait for good."""
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="not a regular file"):
        _read_again(ConfigSource("version: 1", str(tmp_path / "config.yaml")))


@pytest.mark.parametrize("file", ["", "-", "/nowhere/gateway.yaml", "/dev/null/gateway.yaml"])
def test_what_can_not_be_read_again_is_said(file: str) -> None:
    with pytest.raises(ValueError, match=r"did not come from a file|Not? (such file|a directory)"):
        _read_again(ConfigSource("version: 1", file))


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_standard_input_that_is_no_text_is_told(
    errors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    octets = io.BytesIO(b"version: 1\nupstream: {url: https://g}  # \xff\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(octets, "utf-8", errors))  # as a C locale has it
    assert main(["check", "--config", "-"]) == REFUSED
    assert capsys.readouterr().err == "--config -: is not UTF-8 text\n"


def test_check_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    octets = io.BytesIO("version: 1\nupstream: {url: https://g}  # \N{EURO SIGN}\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(octets, "ascii"))
    assert main(["check", "--config", "-"]) == OK


def test_check_speaks_of_rules_and_routes_without_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "version: 1\nupstream: {url: https://g}\nidentities: [{id: p, gitlab_token: true}]\n"
        "rules: [{id: r, for: [p], deny: [{permissions: [read_nothing]}]}]\n"
        "cache: {routes: [{match: GET /nowhere, ttl: 1s}]}\n"
    )
    assert main(["check", "--config", write(tmp_path, text)]) == OK
    shown = capsys.readouterr().err
    assert "read_nothing" in shown
    assert "GET /nowhere" in shown


def test_files_named_by_a_reference_stand_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("glpat-R3aderOne\n")
    text = "version: 1\nupstream: {url: https://g}\ncredentials: [{id: sa, token: '${file:token}'}]\n"
    assert main(["check", "--config", write(tmp_path, text)]) == OK


def test_explain_wants_a_known_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "version: 1\nupstream: {url: https://g}\n")
    assert main(["explain", "--config", file, "--as", "ghost", "GET", "/"]) == REFUSED
    assert "there are people" in capsys.readouterr().err


def test_explain_answers_without_sending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, f"version: 1\nupstream: {{url: https://g.invalid}}\nstate_dir: {tmp_path / 'state'}\n")
    for target in ("/api/v4/projects/a%2Fb", "/api/v4/../x", "nonsense", "/\u00e9"):
        assert main(["explain", "--config", file, "--as", "people", "GET", target]) == OK
        assert capsys.readouterr().out


def test_routes_are_listed_by_surface_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "--surface", "git"]) == OK
    assert {line.split()[3] for line in capsys.readouterr().out.splitlines()} == {"git"}
    assert main(["routes", "--grep", "GET /api/v4/version "]) == OK
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "routes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == OK


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "words"),
    [
        ("version", ">&-", FAILED, "failed: standard output is closed"),
        ("routes", ">&-", FAILED, "failed: standard output is closed"),
        ("keys admin", ">&-", REFUSED, "standard output is closed: nobody would see the key"),
        ("check --config gateway.yaml", ">&-", OK, "gateway.yaml is in order"),
        ("check --config - --show json", ">&- <gateway.yaml", FAILED, "failed: standard output is closed"),
        ("check --config -", "<&-", REFUSED, "--config -: standard input is closed"),
        ("version", ">/dev/full", FAILED, "failed: No space left on device"),
    ],
)
def test_a_stream_that_is_closed_or_full_is_said(
    tmp_path: Path, arguments: str, closed: str, code: int, words: str
) -> None:
    write(tmp_path, "version: 1\nupstream: {url: https://g}\n")
    command = f"{shlex.quote(sys.executable)} -m gateway {arguments} {closed}"
    ended = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.splitlines()[0].startswith(words)) == (code, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_is_said_is_not_printed_among_what_is_read(tmp_path: Path) -> None:
    """Where standard error is closed, Python would print it to standard output."""
    command = f"{shlex.quote(sys.executable)} -m gateway keys admin ops 2>&-"
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
    (key,) = ended.stdout.splitlines()
    assert (ended.returncode, " " in key, ended.stderr) == (OK, False, "")


def test_a_disk_that_refuses_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text("a file where a directory belongs")
    text = (
        "version: 1\nupstream: {url: https://g}\nidentities: [{id: bot, key: issued}]\n"
        f"state_dir: {tmp_path / 'state'}\n"
    )
    assert main(["keys", "list", "--config", write(tmp_path, text)]) == FAILED
    assert capsys.readouterr().err.splitlines()[-1].startswith("failed: ")
