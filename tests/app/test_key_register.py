"""The key store as the commands use it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.app.key_register import open_key_store
from gateway.config import Config
from gateway.ports import KeyRefused
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


async def test_a_key_is_issued_listed_and_revoked(config: Config) -> None:
    async with open_key_store(config) as keys:
        key = await keys.issue("reader")
        assert key.startswith("ggw_")
    async with open_key_store(config) as keys:  # another process, later
        (record,) = await keys.list()
        assert record.identity == "reader"
        assert key not in repr(record)
        assert await keys.revoke(record.id)
        assert not await keys.revoke("no-such-id")


async def test_two_keys_may_overlap_and_a_third_may_not(config: Config) -> None:
    async with open_key_store(config) as keys:
        assert await keys.issue("reader") != await keys.issue("reader")
        with pytest.raises(KeyRefused):
            await keys.issue("reader")


async def test_no_file_holds_the_key(config: Config) -> None:
    async with open_key_store(config) as keys:
        key = await keys.issue("reader")
        state = Path(config.state_dir)
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        for file in state.iterdir():
            assert key.encode() not in file.read_bytes()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


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
        await keys.issue("reader")
    async with open_key_store(config) as keys:
        assert [record.identity for record in await keys.list()] == ["reader"]
