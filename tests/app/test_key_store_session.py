"""The key store as the commands use it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.app.key_store_session import KeyStoreSession, KeyStoreUse, open_key_store
from gateway.app.keyring import Keyring
from gateway.config import Config
from gateway.core.audit_chain import chain_key, verify
from gateway.ports import KeyRefused, StoreUnavailable
from gateway.state_dir import StateRefused
from tests.fakes.world import SECRETS, configured

TEXT = """\
version: 1
upstream: {url: "http://gitlab.test"}
identities: [{id: reader, key: issued}]
credentials: [{id: sa, token: "${env:SA}"}]
rules: [{id: reads, for: [reader], use: sa, allow: [{access: read}]}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(TEXT, tmp_path / "state")


async def issue(keys: KeyStoreSession) -> str:
    key, _ = await keys.key_admin.issue(keys.actor, "reader")
    return key.reveal()


async def test_a_key_is_issued_listed_and_revoked(config: Config) -> None:
    async with open_key_store(config) as keys:
        key = await issue(keys)
        assert key.startswith("ggw_")
    async with open_key_store(config) as keys:  # another process, later
        (record,) = await keys.key_admin.list()
        assert record.identity == "reader"
        assert key not in repr(record)
        await keys.key_admin.revoke(keys.actor, record.id)
        with pytest.raises(KeyRefused):
            await keys.key_admin.revoke(keys.actor, "no-such-id")


@pytest.mark.parametrize("use", [KeyStoreUse.READ, KeyStoreUse.REVOKE, KeyStoreUse.ROTATE])
async def test_what_is_missing_is_made_for_a_first_key_alone(tmp_path: Path, config: Config, use: KeyStoreUse) -> None:
    with pytest.raises(StateRefused, match="state is missing"):
        async with open_key_store(config, use):
            pass
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir(mode=0o700)
    with pytest.raises(StoreUnavailable, match=r"keys\.db is missing"):
        async with open_key_store(audited(config, f"file:{tmp_path}/audit"), use):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["state"]


async def test_keys_without_their_pepper_are_listed_and_ended_and_none_is_made(tmp_path: Path, config: Config) -> None:
    async with open_key_store(config) as keys:
        await issue(keys)
    (tmp_path / "state" / "pepper").unlink()
    for use in (KeyStoreUse.ISSUE, KeyStoreUse.ROTATE):
        with pytest.raises(StateRefused, match=r"pepper is missing, and keys in the store \(1 live\)"):
            async with open_key_store(config, use):
                pass
    async with open_key_store(config, KeyStoreUse.READ) as keys:
        (record,) = await keys.key_admin.list()
    async with open_key_store(config, KeyStoreUse.REVOKE) as keys:
        await keys.key_admin.revoke(keys.actor, record.id)
    assert not (tmp_path / "state" / "pepper").exists()
    async with open_key_store(config) as keys:
        await issue(keys)


async def test_two_keys_may_overlap_and_a_third_may_not(config: Config) -> None:
    async with open_key_store(config) as keys:
        assert await issue(keys) != await issue(keys)
        with pytest.raises(KeyRefused):
            await issue(keys)


async def test_no_file_holds_the_key(config: Config) -> None:
    async with open_key_store(config) as keys:
        key = await issue(keys)
        state = Path(config.state_dir)
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        for file in state.iterdir():
            assert key.encode() not in file.read_bytes()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def audited(config: Config, sink: str, *, chain: bool = False) -> Config:
    return replace(config, audit=replace(config.audit, sink=sink, chain=chain))


async def test_a_line_goes_to_the_file_of_the_audit_and_into_its_chain(tmp_path: Path, config: Config) -> None:
    file = tmp_path / "audit"
    config = audited(config, f"file:{file}", chain=True)
    for _ in range(2):
        async with open_key_store(config) as keys:
            await issue(keys)
    async with open_key_store(config, KeyStoreUse.READ) as keys:
        assert len(await keys.key_admin.list()) == 2
    lines = file.read_bytes().splitlines()
    assert [json.loads(line).get("operation") for line in lines] == [None, "key issued", None] * 2
    assert json.loads(lines[1])["principal"].startswith("command:")
    assert not list(verify(lines, chain_key(Keyring(config).audit)))


async def test_a_line_for_standard_output_goes_to_standard_error(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    async with open_key_store(audited(config, "stdout")) as keys:
        await issue(keys)
    shown = capfd.readouterr()
    assert (shown.out, '"operation":"key issued"' in shown.err) == ("", True)


async def test_what_cannot_be_written_down_is_not_done(tmp_path: Path, config: Config) -> None:
    with pytest.raises(OSError, match="directory"):
        async with open_key_store(audited(config, f"file:{tmp_path}")):
            pass


async def test_a_state_dir_that_others_may_write_to_is_refused(tmp_path: Path, config: Config) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(StateRefused):
        async with open_key_store(config):
            pass


async def test_keys_in_redis(tmp_path: Path, redis_url: str) -> None:
    text = f'{TEXT}{SECRETS}stores: {{shared: "{redis_url}"}}\n'
    config = configured(text, tmp_path)
    async with open_key_store(config) as keys:
        await issue(keys)
    async with open_key_store(config) as keys:
        assert [record.identity for record in await keys.key_admin.list()] == ["reader"]
