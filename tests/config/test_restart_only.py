"""What a reload may change, and what it may not."""

from __future__ import annotations

import pytest

from gateway.config import Config
from gateway.config.restart_only import restart_only, same_files
from gateway.config.source import ConfigSource

TEXT = """\
version: 1
upstream: {url: "https://gitlab.test", ca_file: /ca}
listen: {workers: 2, tls: {cert_file: /cert, key_file: /key}}
state_dir: /state
stores: {shared: "redis://127.0.0.1:1/0"}
secrets: {pepper: "${file:/pepper}", encryption_key: "${file:/encryption}", audit_key: "${file:/audit}"}
credentials: [{id: sa, token: "${file:/one}"}]
"""
PEM = "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n"
FILES = {name: name * 8 for name in ("/pepper", "/encryption", "/audit", "/former")} | dict.fromkeys(
    ("/ca", "/cert", "/key"), PEM
)
FILES |= {"/one": "glpat-One11111111111", "/two": "glpat-Two22222222222"}


def loaded(text: str, files: dict[str, str] = FILES) -> tuple[Config, ConfigSource]:
    source = ConfigSource(text)
    found = source.load({}, files.__getitem__)
    assert found.config is not None, [str(problem) for problem in found.problems]
    return found.config, source


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("workers: 2", "workers: 3, address: 127.0.0.1:8081", ["listen.address"]),
        ("workers: 2", "admin: 127.0.0.1:9902", ["listen.admin"]),
        (", tls: {cert_file: /cert, key_file: /key}", "", ["listen.tls (present or not)"]),
        ("/state", "/other", ["state_dir"]),
        ("127.0.0.1:1/0", "127.0.0.1:1/1", ["stores.keys", "stores.credentials", "stores.shared"]),
        ("{file:/pepper}", "{file:/audit}", ["secrets.pepper"]),
        ("{file:/audit}", "{file:/pepper}", ["secrets.audit_key"]),
        ("{file:/encryption}", "{file:/pepper}", ["secrets.encryption_key"]),
        ("version: 1", "version: 1\ncache: {mode: 'off'}", ["cache.mode"]),
        ("version: 1", "version: 1\ncache: {mode: 'off', store: memory}", ["cache.mode", "cache.store"]),
        (
            'token: "${file:/one}"',
            'token: "${file:/one}", rotate: {before: 7d}',
            ["credentials.sa.rotate (present or not)"],
        ),
        ('token: "${file:/one}"', 'token: "${file:/two}"', []),
        ("{id: sa,", "{id: other, rotate: {before: 7d},", []),
        ("workers: 2", "workers: 3, limits: {idle: 1s}", []),
        ("https://gitlab.test", "https://gitlab2.test", []),
        ("/cert", "/ca", []),
        ("audit_key:", 'decryption_keys: ["${file:/former}"], audit_key:', []),
        ("version: 1", "version: 1\nlimits: [{id: all, by: caller, rate: 1/s}]", []),
    ],
)
def test_what_only_a_restart_can_change(old: str, new: str, names: list[str]) -> None:
    assert old in TEXT
    assert restart_only(loaded(TEXT)[0], loaded(TEXT.replace(old, new))[0]) == names


def test_files_that_workers_read_by_themselves_do_not_count() -> None:
    config, before = loaded(TEXT)
    assert same_files(config, before, loaded(TEXT, FILES | dict.fromkeys(("/ca", "/cert", "/key"), PEM + "new"))[1])
    assert not same_files(config, before, loaded(TEXT, FILES | {"/pepper": "5f0c9a7e1b3d8246ace013579bdf2468"})[1])
