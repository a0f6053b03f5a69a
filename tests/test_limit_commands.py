"""``gitlab-gateway limits``, against a gateway that serves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import app, limit_commands
from gateway.app.serving import Serving
from gateway.cli import main
from gateway.config import load
from gateway.core.limits import Limit, Scope, Take
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.redis_link import RedisLink

KEY = "an-admin-key-of-some-length"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
WALL = "the-admin-key-of-a-dashboard"


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serving]:
    monkeypatch.setenv(limit_commands.KEY, KEY)
    text = (
        "version: 1\nupstream: {url: 'http://127.0.0.1:1'}\nidentities: [{id: anyone, anonymous: true}]\n"
        "listen: {address: '127.0.0.1:0', admin: '127.0.0.1:0'}\n"
        f"admin: {{keys: [{{id: ops, sha256: {HASH}}}, "
        f"{{id: wall, sha256: {hashlib.sha256(WALL.encode()).hexdigest()}, may: [read]}}]}}\n"
        "limits: [{id: caller, by: caller, rate: 1/min, burst: 2}]\n"
        f"state_dir: {tmp_path}\naudit: {{sink: 'file:{tmp_path}/audit'}}\n"
    )
    (tmp_path / "gateway.yaml").write_text(text)
    loaded = load(text, {}, lambda path: Path(path).read_text())
    assert loaded.config is not None
    async with app.serving(loaded.config) as running:
        yield running


async def request(served: Serving) -> int:
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(b"GET /api/v4/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    status = int((await reader.readline()).split()[1])
    await reader.read()
    writer.close()
    return status


async def command(served: Serving, *arguments: str) -> int:
    return await asyncio.to_thread(main, ["limits", *arguments, "--admin", served.admin_place])


async def test_a_bucket_is_watched_paused_lowered_and_reset(
    served: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command(served, "top") == 0
    assert capsys.readouterr() == ("", "nobody has asked lately\n")
    assert [await request(served) for _ in range(3)] == [502, 502, 429]
    assert await command(served, "top") == 0
    assert "anonymous:127.0.0.1" in (shown := capsys.readouterr().out)
    assert "asked 3        refused 1        caller 0" in shown
    assert await command(served, "set", "caller", "anonymous:127.0.0.1", "--pause", "--for", "5m") == 0
    assert [await request(served) for _ in range(4)] == [502] * 4
    assert await command(served, "top", "--json") == 0
    changed = json.loads(capsys.readouterr().out.partition("\n")[2])["changed"]
    assert [(one["limit"], one["pause"], one["seconds"]) for one in changed] == [("caller", True, 300.0)]
    assert await command(served, "reset", "caller", "anonymous:127.0.0.1") == 0
    assert [await request(served) for _ in range(3)] == [502, 502, 429]
    assert await command(served, "set", "caller", "anonymous:127.0.0.1", "--factor", "10") == 0
    assert await command(served, "top") == 0
    assert "caller of anonymous:127.0.0.1: set to 10 times for a limited time" in capsys.readouterr().out
    for _ in range(100):
        if (tmp_path / "audit").read_text().count("POST /-/limits") == 3:
            break
        await asyncio.sleep(0.02)
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines() if "/-/limits" in line]
    assert [line["principal"] for line in lines] == [f"admin:{HASH[:12]}"] * 3
    assert "subject=anonymous:127.0.0.1" in lines[0]["target"]


async def explained(served: Serving, tmp_path: Path, *arguments: str) -> int:
    words = ["explain", "--config", f"{tmp_path}/gateway.yaml", "--as", "anyone", "--admin", served.admin_place, *arguments]
    return await asyncio.to_thread(main, [*words, "GET", "/api/v4/version"])


async def test_explain_shows_the_buckets_of_the_gateway_that_runs(
    served: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [await request(served) for _ in range(3)] == [502, 502, 429]
    assert await explained(served, tmp_path, "--caller", "anonymous:127.0.0.1") == 0
    assert re.search(
        r"bucket +caller of anonymous:127.0.0.1: 0\S* of 2 left; would refuse, for \d", capsys.readouterr().out
    )
    await command(served, "set", "caller", "anonymous:127.0.0.1", "--pause", "--for", "5m")
    assert await explained(served, tmp_path, "--caller", "anonymous:127.0.0.1") == 0
    assert " of 2 left; paused by an operator until 20" in capsys.readouterr().out
    assert await explained(served, tmp_path, "--caller", "anonymous:127.0.0.2") == 0
    assert "caller of anonymous:127.0.0.2: 2 of 2 left\n" in capsys.readouterr().out
    monkeypatch.setenv(limit_commands.KEY, "another")
    assert await explained(served, tmp_path, "--caller", "anonymous:127.0.0.1") == 0
    assert "levels      not known: the admin port" in capsys.readouterr().out
    monkeypatch.setenv(limit_commands.KEY, "no key")
    assert await explained(served, tmp_path) == 0
    assert f"memory, and {limit_commands.KEY} holds spaces" in capsys.readouterr().out
    monkeypatch.delenv(limit_commands.KEY)
    assert await explained(served, tmp_path) == 0
    assert "levels      not known: they are in the running gateway's memory: to see them" in capsys.readouterr().out


async def test_explain_says_when_nobody_can_be_asked(
    served: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", f"{tmp_path}/gateway.yaml", "--as", "anyone", "--caller", "anonymous:127.0.0.1"]
    for admin, said in (("127.0.0.1:2", "no gateway answers at its admin port 127.0.0.1:2"), (served.place, "not known: ")):
        assert await asyncio.to_thread(main, ["explain", *words, "--admin", admin, "GET", "/api/v4/version"]) == 0
        assert said in capsys.readouterr().out


async def test_explain_reads_what_gateways_share(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PEPPER", "KEY", "AUDIT"):
        monkeypatch.setenv(name, hashlib.sha256(name.encode()).hexdigest())
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.delenv(limit_commands.KEY, raising=False)
    (tmp_path / "gateway.yaml").write_text(
        "version: 1\nupstream: {url: 'https://gitlab.test'}\nidentities: [{id: people, gitlab_token: true}]\n"
        "stores: {shared: '${env:REDIS_URL}'}\n"
        "secrets: {pepper: '${env:PEPPER}', encryption_key: '${env:KEY}', audit_key: '${env:AUDIT}'}\n"
        "limits: [{id: caller, by: caller, rate: 1/hour, burst: 20}, {id: places, by: caller, concurrent: 4}]\n"
    )
    words = [
        "explain",
        "--config",
        f"{tmp_path}/gateway.yaml",
        "--as",
        "people",
        "--caller",
        "user:7",
        "GET",
        "/api/v4/user",
    ]
    buckets = RedisBuckets(RedisLink.from_url(redis_url, timeout_s=60.0, name="test"))
    takes = [
        Take("{gw}:b:caller:user:7", Limit("caller", Scope.CALLER, 1 / 3600, 20.0), 15.0),
        Take("{gw}:b:places:user:7", Limit("places", Scope.CALLER, 4.0, 4.0, concurrent=True)),
    ]
    await buckets.take(takes, b"lease")
    assert await asyncio.to_thread(main, words) == 0
    shown = capsys.readouterr().out
    assert re.search(r"bucket +caller of user:7: 5\S* of 20 left, full in 5\d{4} s", shown)
    assert "bucket      places of user:7: 1 of 4 in progress" in shown
    await buckets.close()
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert await asyncio.to_thread(main, words) == 0
    assert "levels      not known: Redis does not answer (ConnectionRefusedError)" in capsys.readouterr().out


async def test_the_configuration_says_where_the_admin_port_is(
    served: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What this user can't read of it, such as secrets, does not matter; and `--admin` takes precedence."""
    file = tmp_path / "elsewhere.yaml"
    words = ["limits", "top", "--json", "--config", str(file)]
    rest = "secrets: {pepper: '${env:GW_NOT_HERE}'}\n"
    file.write_text(f"version: 1\nlisten: {{admin: '{served.admin_place}'}}\n{rest}")
    assert await asyncio.to_thread(main, words) == 0
    assert json.loads(capsys.readouterr().out)["callers"] == []
    file.write_text(f"version: 1\nlisten: {{admin: '127.0.0.1:1'}}\n{rest}")
    assert await asyncio.to_thread(main, words) == 1
    assert "127.0.0.1:1: Connection refused" in capsys.readouterr().err
    assert await asyncio.to_thread(main, [*words, "--admin", served.admin_place]) == 0
    file.write_text("version: 1\nlisten: {admin: here}\n")
    assert await asyncio.to_thread(main, words) == 2
    assert capsys.readouterr().err.endswith(f"refused: 1 error in {file}\n")


async def test_what_can_t_be_done_is_said(served: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command(served, "set", "nothing", "x", "--pause") == 2
    assert "limit: is not one of those configured with a rate or `concurrent` (" in capsys.readouterr().err


async def test_without_the_key_nothing(
    served: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(limit_commands.KEY, "another")
    assert await command(served, "top") == 2
    assert f"401 Unauthorized: the key in {limit_commands.KEY} is not one of `admin.keys`" in capsys.readouterr().err
    monkeypatch.setenv(limit_commands.KEY, "")
    assert await command(served, "top") == 2
    assert f"401 Unauthorized: {limit_commands.KEY} is empty" in capsys.readouterr().err
    monkeypatch.setenv(limit_commands.KEY, f"{KEY}\n{KEY}")
    assert await command(served, "top") == 2
    assert KEY not in (said := capsys.readouterr().err)
    assert "holds spaces, line ends" in said


async def test_a_key_that_only_reads_changes_nothing_and_says_why(
    served: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(limit_commands.KEY, WALL)
    assert await command(served, "top") == 0
    capsys.readouterr()
    for arguments in (["set", "caller", "x", "--pause"], ["reset", "caller", "x"]):
        assert await command(served, *arguments) == 2
        assert capsys.readouterr() == (
            "",
            "refused: 403 Forbidden: the admin key `wall` lacks the permission `limits` (`admin.keys[].may`)\n",
        )
    assert await explained(served, tmp_path, "--caller", "anonymous:127.0.0.1") == 0
    assert re.search(r"levels +not known: the admin port \S+ refuses: .* lacks .* `explain`", capsys.readouterr().out)


async def test_what_is_no_admin_port(served: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    assert await asyncio.to_thread(main, ["limits", "top", "--admin", served.place]) == 2
    assert await asyncio.to_thread(main, ["limits", "top", "--admin", "127.0.0.1:1"]) == 1


@pytest.mark.parametrize(
    "arguments", [["limits"], ["limits", "set", "a", "b"], ["limits", "set", "a", "b", "--pause", "--for", "x"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert main(arguments) == 2
