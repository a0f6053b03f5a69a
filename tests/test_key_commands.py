"""``gitlab-gateway keys``, through the command line."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import secrets
import sqlite3
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.app.key_admin import KeyAdmin
from gateway.cli import FAILED, OK, REFUSED, main
from gateway.core.gateway_key import is_well_formed, new_key
from gateway.ports import StoreUnavailable


def write(directory: Path, text: str) -> str:
    file = directory / "gateway.yaml"
    file.write_text(text, "utf-8")
    return str(file)


class Commands:
    """One configuration, and what its commands print."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = "version: 1\nupstream: {url: https://g}\nidentities: [{id: bot, key: issued}, {id: app, key: issued}]\n"
        self.file = write(directory, f"{text}state_dir: {directory / 'state'}\n")
        self.capsys = capsys
        self.err = ""

    def __call__(self, *arguments: str, code: int = OK) -> str:
        """Standard output's last line."""
        assert main(["keys", *arguments, "--config", self.file]) == code
        shown = self.capsys.readouterr()
        self.err = shown.err
        return shown.out.splitlines()[-1] if shown.out else ""

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        assert main(["keys", "list", *arguments, "--json", "--config", self.file]) == OK
        return list(json.loads(self.capsys.readouterr().out))


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(tmp_path, capsys)


def test_that_redis_would_forget_a_new_key_is_said(keys: Commands, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PEPPER", "KEY", "AUDIT"):
        monkeypatch.setenv(name, name.lower() * 8)
    shared = f'stores: {{shared: "{redis_url}"}}\nsecrets: {{pepper: "${{env:PEPPER}}", encryption_key: "${{env:KEY}}", '
    with Path(keys.file).open("a") as file:
        file.write(shared + 'audit_key: "${env:AUDIT}"}\n')
    warning = "warning: Redis keeps no append-only file: new gateway keys and revocations would be lost at its next restart"
    assert is_well_formed(keys("new", "bot"))
    assert warning in keys.err
    assert is_well_formed(keys("rotate", "bot", "--overlap", "0s"))
    assert warning in keys.err
    keys("import", "app", hashlib.sha256(new_key(bytes(32)).reveal().encode()).hexdigest())
    assert warning in keys.err
    keys("list")
    assert "warning" not in keys.err


def test_keys_live_from_new_to_revoke(keys: Commands) -> None:
    first = keys("new", "bot", "--expires", "90d", "--cidr", "192.0.2.0/24", "--cidr", "2001:db8::/32", "--note", "portal")
    assert is_well_formed(first)
    newer = keys("rotate", "bot", "--overlap", "2h")
    assert is_well_formed(newer)
    rotated = keys.err
    older, new = keys.rows()
    assert (older["state"], new["state"], older["replaced_by"]) == ("live", "live", new["id"])
    assert new["cidr"] == older["cidr"] == ["192.0.2.0/24", "2001:db8::/32"]
    assert (new["note"], new["origin"]) == ("portal", "issued")
    assert 0 < _at(older["expires_at"]) - time.time() <= 7200
    assert 89 * 86_400 < _at(new["expires_at"]) - time.time() <= 90 * 86_400
    assert f"keys revoke {older['id']}" in rotated
    assert first not in json.dumps([older, new])
    keys("new", "bot", code=REFUSED)  # two live keys, no third
    keys("revoke", older["id"])
    keys("revoke", "key_nope", code=REFUSED)
    assert main(["keys", "list", "bot", "--config", keys.file]) == OK
    assert [line.split()[2] for line in keys.capsys.readouterr().out.splitlines()] == ["revoked", "live"]


def _at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_key_replaced_without_overlap_ends_at_once(keys: Commands) -> None:
    keys("new", "bot")
    keys("rotate", "bot", "--overlap", "0s")
    assert [row["state"] for row in keys.rows("bot")] == ["revoked", "live"]


def test_a_command_that_reads_makes_nothing(keys: Commands, tmp_path: Path) -> None:
    for arguments in (["list"], ["revoke", "key_0123456789ab"], ["rotate", "bot"]):
        keys(*arguments, code=FAILED)
        assert keys.err.startswith(f"failed: state_dir {tmp_path}/state is missing: ")
    assert not (tmp_path / "state").exists()
    keys("new", "bot")
    (tmp_path / "state" / "keys.db").rename(tmp_path / "aside")
    for arguments in (["list"], ["revoke", "key_0123456789ab"], ["rotate", "bot"]):
        keys(*arguments, code=FAILED)
        assert keys.err.startswith(f"failed: {tmp_path}/state/keys.db is missing: ")
    assert [path.name for path in (tmp_path / "state").glob("keys.db")] == []


def test_rotation_asks_which_where_there_are_two(keys: Commands) -> None:
    keys("new", "app")
    keys("rotate", "bot", code=REFUSED)
    assert "no live key to replace" in keys.err
    keys("new", "bot")
    keys("new", "bot")
    keys("rotate", "bot", code=REFUSED)
    assert "say which with --key" in keys.err
    (other,) = keys.rows("app")
    keys("rotate", "bot", "--key", other["id"], code=REFUSED)
    assert "is not a key of `bot`" in keys.err
    keys("rotate", "bot", "--key", keys.rows("bot")[0]["id"], "--overlap", "0s", "--expires", "5m")
    assert [row["state"] for row in keys.rows("bot")] == ["revoked", "live", "live"]


def test_a_key_made_elsewhere_is_let_in_by_its_hash(keys: Commands) -> None:
    key = new_key(secrets.token_bytes(32)).reveal()
    hashed = hashlib.sha256(key.encode()).hexdigest()
    assert keys("import", "bot", hashed, "--not-before", "1h", "--expires", "2h") == ""
    (row,) = keys.rows("bot")
    assert (row["state"], row["origin"]) == ("pending", "imported")
    assert row["id"] in keys.err or hashed not in keys.err
    keys("import", "app", hashed, code=REFUSED)
    keys("import", "app", "not-hex", code=REFUSED)


@pytest.mark.parametrize(
    "arguments",
    [
        ["new", "bot", "--cidr", "192.0.2.1/24"],
        ["new", "bot", "--expires", "1h", "--not-before", "2h"],
        ["new", "bot", "--not-before", "0s"],
        ["new", "bot", "--expires", "3000000d"],
        ["new", "bot", "--not-before", "3000000d"],
        ["import", "bot", "00" * 32, "--expires", "3000000d"],
        ["new", "bot", "--note", "two\nlines"],
        ["new", "ghost"],
        ["import", "ghost", "00" * 32],
        ["rotate", "bot", "--overlap", "60d"],
        ["rotate", "bot", "--overlap", "soon"],
    ],
    ids=" ".join,
)
def test_what_makes_no_key_is_refused_and_nothing_is_stored(keys: Commands, arguments: list[str]) -> None:
    keys("new", "app")
    keys(*arguments, code=REFUSED)
    assert keys.err
    assert [row["identity"] for row in keys.rows()] == ["app"]


def test_the_list_shows_what_bounds_a_key_and_its_note(keys: Commands) -> None:
    keys("new", "bot", "--not-before", "2h", "--expires", "3h", "--cidr", "192.0.2.0/24", "--note", "portal, production")
    (row,) = keys.rows()
    assert main(["keys", "list", "--config", keys.file]) == OK
    line = keys.capsys.readouterr().out
    assert line.endswith(
        f" begins {row['not_before']} expires {row['expires_at']} from 192.0.2.0/24 note portal, production\n"
    ), line


def test_a_stored_key_whose_end_can_not_be_formatted_is_listed_still(keys: Commands, tmp_path: Path) -> None:
    keys("new", "bot", "--expires", "90d")
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "keys.db")) as store, store:
        store.execute("UPDATE keys SET expires_at = 260000000000.0")
    assert keys.rows()[0]["expires_at"] == "9999-12-31T23:59:59Z"
    assert main(["keys", "list", "--config", keys.file]) == OK
    assert "expires 9999-12-31T23:59:59Z" in keys.capsys.readouterr().out
    keys("rotate", "bot", "--expires", "3000000d", code=REFUSED)
    keys("rotate", "bot")


class Full(io.StringIO):
    """An output that takes nothing."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def unseen(keys: Commands, *arguments: str, output: io.StringIO | None, code: int) -> str:
    """What is said where standard output can't be written to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        assert main(["keys", *arguments, "--config", keys.file]) == code
    return keys.capsys.readouterr().err.splitlines()[-1]


def test_a_key_that_could_not_be_shown_is_revoked(keys: Commands) -> None:
    said = unseen(keys, "new", "bot", output=Full(), code=FAILED)
    (row,) = keys.rows()
    assert row["state"] == "revoked"
    assert said == f"failed: the key {row['id']} could not be shown (No space left on device) and is revoked"
    keys("new", "bot")
    said = unseen(keys, "rotate", "bot", output=Full(), code=FAILED)
    assert [row["state"] for row in keys.rows()] == ["revoked", "live", "revoked"]
    older, newer = keys.rows()[1:]
    assert (older["replaced_by"], newer["id"] in said, f"{older['id']} ends all the same" in said) == (
        newer["id"],
        True,
        True,
    )
    keys("new", "bot")


def test_a_key_that_could_be_neither_shown_nor_revoked_is_named(keys: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailable("unplugged")

    monkeypatch.setattr(KeyAdmin, "revoke", away)
    said = unseen(keys, "new", "bot", output=Full(), code=FAILED)
    (row,) = keys.rows()
    assert (row["state"], said.endswith(f", nor revoked: gitlab-gateway keys revoke {row['id']}")) == ("live", True)


def test_no_key_is_made_where_nobody_would_see_it(keys: Commands) -> None:
    keys("new", "app")
    for arguments in (["new", "bot"], ["rotate", "bot"]):
        assert "nobody would see the key" in unseen(keys, *arguments, output=None, code=REFUSED)
    assert [row["identity"] for row in keys.rows()] == ["app"]


def test_keys_are_made_only_for_identities_that_have_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, f"version: 1\nupstream: {{url: https://g}}\nstate_dir: {tmp_path}\n")
    assert main(["keys", "new", "people", "--config", file]) == REFUSED
    assert "is not an identity with `key: issued`" in capsys.readouterr().err


def test_keys_are_made_without_gitlabs_tokens_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever issues keys need not hold what the gateway itself resolves: credentials stay unread."""
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "version: 1\nupstream: {url: http://127.0.0.1:9}\n"
        f"state_dir: {tmp_path}/state\n"
        "identities: [{id: bot, key: issued}]\n"
        'credentials: [{id: up, token: "${env:NOT_SET_ANYWHERE}"}]\n'
        "rules: [{id: all, for: [bot], use: up, allow: [{access: read}]}]\n"
    )
    assert main(["keys", "new", "bot", "--config", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ggw_")
    assert main(["check", "--config", str(file)]) == 2


@pytest.mark.parametrize("name", ["night", "no", "1e3", "7"])
def test_an_admin_key_and_its_digest_belong_together(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "admin", name]) == OK
    shown = capsys.readouterr()
    lines = shown.err.partition("\n")[2]
    (key,) = yaml.safe_load(lines)["admin"]["keys"]
    assert key == {"id": name, "sha256": hashlib.sha256(shown.out.strip().encode()).hexdigest()}
    file = write(tmp_path, f"version: 1\nupstream: {{url: https://g}}\n{lines}")
    assert main(["check", "--config", file]) == OK


def test_an_admin_key_is_for_what_it_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "admin", "wall", "--may", "read", "--may", "limits"]) == OK
    lines = capsys.readouterr().err.partition("\n")[2]
    (key,) = yaml.safe_load(lines)["admin"]["keys"]
    assert key["may"] == ["read", "limits"]
    assert main(["check", "--config", write(tmp_path, f"version: 1\nupstream: {{url: https://g}}\n{lines}")]) == OK
    assert main(["keys", "admin", "portal", "--may", "keys", "--identity", "no", "--identity", "bots"]) == OK
    lines = capsys.readouterr().err.partition("\n")[2]
    (key,) = yaml.safe_load(lines)["admin"]["keys"]
    assert (key["may"], key["identities"]) == (["keys"], ["no", "bots"])
    assert main(["keys", "admin", "wall", "--may", "all"]) == REFUSED
    assert "choose from" in capsys.readouterr().err


def test_an_id_that_no_configuration_takes_makes_no_admin_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "admin", "a b"]) == REFUSED
    shown = capsys.readouterr()
    assert (shown.out, "'a b' is not an id" in shown.err) == ("", True)


def test_what_no_shell_can_spell_is_no_key(keys: Commands) -> None:
    keys("new", "bot")
    for arguments in (["revoke", "\udce9"], ["rotate", "bot", "--key", "\udce9"]):
        keys(*arguments, code=REFUSED)
        assert "no key has the id" in keys.err
    keys("list", "\udce9")
    assert keys.err == "no keys\n"
