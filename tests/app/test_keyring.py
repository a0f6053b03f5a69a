"""The gateway's own keys: where they come from, and which of them gateways share."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app.keyring import Keyring
from gateway.state_dir import StateRefused
from tests.fakes.world import SECRETS, configured

OWN = """\
version: 1
upstream: {url: "http://127.0.0.1:9"}
identities: [{id: people, gitlab_token: true}]
"""


def test_what_is_not_configured_is_made_once(tmp_path: Path) -> None:
    config = configured(OWN, tmp_path)
    first, second = Keyring(config), Keyring(config)
    keys = (first.pepper, first.audit, first.encryption)
    assert (second.pepper, second.audit, second.encryption) == keys
    assert len(set(keys)) == 3, "each purpose has one of its own"


def test_what_is_configured_is_made_nowhere(tmp_path: Path) -> None:
    keys = Keyring(configured(OWN + SECRETS, tmp_path))
    assert len({keys.pepper, keys.audit, keys.encryption}) == 3
    assert not [*tmp_path.glob("*_key"), *tmp_path.glob("pepper")]


def test_none_is_made_for_who_only_reads(tmp_path: Path) -> None:
    with pytest.raises(StateRefused):
        _ = Keyring(configured(OWN, tmp_path), make=False).audit
    assert not (tmp_path / "audit_key").exists()


def test_partitions_of_one_process_are_nobody_elses(tmp_path: Path) -> None:
    config = configured(OWN, tmp_path)
    assert Keyring(config).partition != Keyring(config).partition
    assert Keyring(config, b"of all workers").partition == Keyring(config, b"of all workers").partition


def test_gateways_that_share_a_cache_share_partitions(tmp_path: Path) -> None:
    config = configured(f'{OWN}{SECRETS}stores: {{shared: "redis://127.0.0.1:9/0"}}\n', tmp_path)
    assert Keyring(config).partition == Keyring(config).partition
