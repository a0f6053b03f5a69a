"""``gitlab-gateway audit verify``, on what a gateway wrote."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.app.assembly import assemble
from gateway.cli import main
from gateway.config import load
from gateway.core.exchange import Exchange


async def written(tmp_path: Path, runs: int = 2) -> list[str]:
    """The command's options, after as many runs of a gateway."""
    file, audit = tmp_path / "gateway.yaml", tmp_path / "audit"
    file.write_text(
        "version: 1\nupstream: {url: 'http://127.0.0.1:1'}\nidentities: [{id: anyone, anonymous: true}]\n"
        f"state_dir: {tmp_path}/state\naudit: {{sink: 'file:{audit}', chain: true}}\n"
    )
    config = load(file.read_text(), {}, str).config
    assert config is not None
    for number in range(runs):
        made = await assemble(config)
        made.audit.observe(Exchange(f"r-{number}", 0.0, "GET", "192.0.2.1"))
        await made.stack.aclose()
    return ["audit", "verify", str(audit), "--config", str(file)]


async def test_the_record_of_two_runs_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = await written(tmp_path)
    assert (tmp_path / "audit").read_text().count("\n") == 6
    assert main(command) == 0
    assert capsys.readouterr().err.endswith(": whole\n")


@pytest.mark.parametrize("at", range(6))
async def test_a_missing_line_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int) -> None:
    command = await written(tmp_path)
    lines = (tmp_path / "audit").read_text().splitlines(keepends=True)
    (tmp_path / "audit").write_text("".join(lines[:at] + lines[at + 1 :]))
    assert main(command) == 1
    assert capsys.readouterr().out


async def test_a_missing_run_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = await written(tmp_path, runs=3)
    lines = (tmp_path / "audit").read_text().splitlines(keepends=True)
    for left, partly in ((lines[3:], 0), (lines[6:], 0), (lines[:3] + lines[6:], 1)):
        (tmp_path / "audit").write_text("".join(left))
        assert main(command) == 1
        assert "names an earlier line that is missing" in capsys.readouterr().out
        assert main([*command, "--partial"]) == partly


async def test_a_killed_gateway_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = await written(tmp_path, runs=1)
    lines = (tmp_path / "audit").read_text().splitlines(keepends=True)
    (tmp_path / "audit").write_text("".join(lines[:-1]))
    assert main(command) == 1
    assert main([*command, "--open"]) == 0
    assert main([*command, "--open", "--head", "0:1:2"]) == 1
    capsys.readouterr()


async def test_a_file_that_is_not_there_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = await written(tmp_path, runs=1)
    command[2] = str(tmp_path / "nowhere")
    assert main(command) == 1
    assert "failed" in capsys.readouterr().err


async def test_a_missing_key_is_reported_and_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = await written(tmp_path, runs=1)
    (tmp_path / "state" / "audit_key").unlink()
    assert main(command) == 1
    assert capsys.readouterr().err.startswith(f"failed: {tmp_path}/state/audit_key is missing")
    assert not (tmp_path / "state" / "audit_key").exists()
    (tmp_path / "state").rename(tmp_path / "moved")
    assert main(command) == 1
    assert not (tmp_path / "state").exists()


async def test_rotated_files_are_read_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = await written(tmp_path)
    audit, older = tmp_path / "audit", tmp_path / "audit.1"
    lines = audit.read_text().splitlines(keepends=True)
    older.write_text("".join(lines[:2]))
    audit.write_text("".join(lines[2:]))
    both = [*command[:2], str(older), *command[2:]]
    assert main(both) == 0
    assert main(command) == 1
    assert main([*command, "--partial"]) == 0
    audit.write_text("".join([lines[2], "{}\n", *lines[3:]]))
    capsys.readouterr()
    assert main(both) == 1
    assert capsys.readouterr().out == f"{audit}: line 2: is not a line of a chain\n"


RULES = """\
version: 1
upstream: {url: 'http://127.0.0.1:1'}
identities: [{id: bot, key: issued}]
credentials: [{id: sa, token: '${env:SA}'}]
rules: [{id: reads, for: [bot], use: sa, allow: [{access: read}]}]
"""


@pytest.fixture
def replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("SA", "glpat-0123456789abcdefghij")
    (tmp_path / "new.yaml").write_text(RULES)
    (tmp_path / "audit").write_text(
        '{"schema":1,"event":"chain_opened"}\n'
        '{"schema":1,"time":"t","request_id":"r-1","method":"GET","target":"/api/v4/user","identity":"bot",'
        '"principal":"bot","principal_kind":"key","rule":"old","upstream_credential":"sa"}\n'
    )
    return ["replay", str(tmp_path / "audit"), "--config", str(tmp_path / "new.yaml")]


def test_nothing_different_is_no_failure(replayed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(replayed) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "0 decided differently, 1 the same\n1 lines that rules had no say in\n"


def test_what_differs_is_shown_and_is_one(replayed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "audit").open("a") as audit:
        audit.write("nonsense\n" + "x" * 3_000_000 + "\n")
        for number in (2, 3):
            audit.write(
                f'{{"schema":1,"time":"t","request_id":"r-{number}","method":"POST","target":"/api/v4/projects/1/issues",'
                '"identity":"bot","principal":"bot","principal_kind":"key","rule":"old","upstream_credential":"sa"}\n'
            )
    assert main(replayed) == 1
    out, err = capsys.readouterr()
    assert out == "bot POST /api/v4/projects/:id/issues 1: allowed by old as sa → forbidden (2 times, first r-2 at t)\n"
    assert err.startswith("2 decided differently, 1 the same\n")
    assert main([*replayed, "--json"]) == 1
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found["kind"]["now"] == {"verdict": "forbidden", "rule": "", "credential": ""}
    assert (found["times"], found["request_id"]) == (2, "r-2")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        assert main([*replayed, "--json"]) == 1
    assert capsys.readouterr().err == "failed: standard output is closed\n"


def test_what_differs_is_reported_by_an_output_without_arrows(replayed: list[str], tmp_path: Path) -> None:
    with (tmp_path / "audit").open("a") as audit:
        audit.write(
            '{"schema":1,"time":"t","request_id":"r","method":"POST","target":"/api/v4/projects/1/issues",'
            '"identity":"bot","principal":"bot","principal_kind":"key","rule":"old","upstream_credential":"sa"}\n'
        )
    root = Path(__file__).parent.parent
    shown = subprocess.run(
        [sys.executable, "-m", "gateway", *replayed],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert (shown.returncode, r"as sa \u2192 forbidden" in shown.stdout, "Traceback" in shown.stderr) == (1, True, False)


def test_a_file_that_is_no_audit_is_no_good_news(
    replayed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = tmp_path / "audit"
    audit.write_bytes(gzip.compress(audit.read_bytes()))  # as logrotate leaves it
    assert main(replayed) == 1
    assert "that are not audit lines" in capsys.readouterr().err
    audit.write_text('{"event":"worker 0 of 2 serves","level":"info","logger":"gateway.app"}\n')  # the operator's log
    assert main(replayed) == 1
    audit.write_bytes(b"")
    assert main(replayed) == 0  # nobody asked for anything


def test_a_shared_cache_has_nothing_to_decide(
    replayed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.yaml").write_text("version: 1\nupstream: {url: 'http://127.0.0.1:1'}\ncache: {mode: shared}\n")
    assert main(replayed) == 0
    assert "no rules" in capsys.readouterr().err
