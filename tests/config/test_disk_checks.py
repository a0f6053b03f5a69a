"""What ``check`` finds on the disk, besides what the text shows."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from gateway.cli import OK, REFUSED, main
from gateway.config.disk_checks import disk_problems
from gateway.config.source import ConfigSource
from tests.fakes.certificates import Authority

HEAD = "version: 1\nupstream: {url: https://gitlab.internal}\n"


SECRETS = {
    "pepper": "5f0c9a7e1b3d8246ace013579bdf2468",
    "encryption_key": "9d2e4f6a8b0c1d3e5f7a9b8c7d6e5f40",
    "audit_key": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
}


def found(text: str) -> list[str]:
    source = ConfigSource(HEAD + text, "F")
    config = source.load(SECRETS, lambda path: Path(path).read_text()).config
    assert config is not None
    return [str(problem) for problem in disk_problems(config, source)]


def test_an_audit_goes_to_a_file_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for sink in ("stdout", f"file:{tmp_path}/new", f"file:{tmp_path}/file"):
        assert found(f"audit: {{sink: '{sink}'}}") == []
    assert found(f"audit:\n  sink: file:{tmp_path}") == [f"F:4: audit.sink: names {tmp_path}, which is a directory"]
    (problem,) = found(f"audit: {{sink: 'file:{tmp_path}/file/audit'}}")
    assert problem == f"F:3: audit.sink: names a file in {tmp_path}/file, which is not a directory"
    (problem,) = found(f"audit: {{sink: 'file:{tmp_path}/none/audit'}}")
    assert problem.startswith(f"F:3: warning: audit.sink: names a file in {tmp_path}/none, which is not there")


def test_the_state_is_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        text = f"state_dir: {tmp_path}/{name}"
        assert found(text) == [f"F:3: state_dir: names {tmp_path}/{name}, which is not a directory"]
    assert found(f"state_dir: {tmp_path}") == found(f"state_dir: {tmp_path}/new") == []
    listed = ", ".join([f"{name}: '${{env:{name}}}'" for name in SECRETS])
    (problem,) = found(f"state_dir: {tmp_path}/file\nstores: {{shared: 'redis://127.0.0.1:1'}}\nsecrets: {{{listed}}}")
    assert problem.startswith("F:3: warning: state_dir: ")


def test_a_database_is_a_file(tmp_path: Path) -> None:
    for name in ("keys", "credentials"):
        text = f"stores: {{{name}: 'sqlite://{tmp_path}'}}"
        assert found(text) == [f"F:3: stores.{name}: names {tmp_path}, which is a directory"]
        assert found(f"stores: {{{name}: 'sqlite://{tmp_path}/x.db'}}") == []


def test_a_certificate_and_its_key_are_tried(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    locked = authority.issue("locked", passphrase=b"secret")
    tls = "listen:\n  tls:\n    cert_file: {}\n    key_file: {}\n"
    assert found(tls.format(one.cert, one.key)) == []
    (problem,) = found(tls.format(one.cert, other.key))
    assert problem == f"F:6: listen.tls.key_file: the key {other.key} is not the key of the certificate {one.cert}"
    (problem,) = found(tls.format(locked.cert, locked.key))
    assert problem.startswith(f"F:6: listen.tls.key_file: the key {locked.key} is encrypted")
    one.cert.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    (problem,) = found(tls.format(one.cert, one.key))
    assert str(one.cert) in problem


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (datetime.timedelta(days=8), None),
        (datetime.timedelta(days=3, minutes=5), "expires in 3.0 days"),
        (datetime.timedelta(minutes=-5), "has expired: clients refuse it"),
    ],
)
def test_a_certificate_that_ends_is_a_warning(tmp_path: Path, left: datetime.timedelta, said: str | None) -> None:
    one = Authority(tmp_path).issue("one", until=datetime.datetime.now(datetime.UTC) + left)
    problems = found(f"listen:\n  tls:\n    cert_file: {one.cert}\n    key_file: {one.key}\n")
    assert problems == ([f"F:5: warning: listen.tls.cert_file: names {one.cert}, which {said}"] if said else [])


def test_authorities_are_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one = authority.issue("one")
    oidc = "identities: [{{id: ci, oidc: {{issuer: 'https://i', audience: g, claims: {{sub: x}}, ca_file: {}}}}}]"
    assert found(oidc.format(one.cert)) == []
    one.cert.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    assert found(oidc.format(one.cert)) == [
        f"F:3: identities[0].oidc.ca_file: names {one.cert}, which holds no certificate that can be read"
    ]


def test_the_files_of_a_redis_address_are_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    locked = authority.issue("locked", passphrase=b"secret")
    secrets = ", ".join(f'{name}: "${{env:{name}}}"' for name in SECRETS)

    def shared(query: str) -> list[str]:
        return found(f"secrets: {{{secrets}}}\nstores:\n  shared: rediss://redis:6379/0?{query}\n")

    assert shared(f"ssl_ca_certs={authority.file}&ssl_certfile={one.cert}&ssl_keyfile={one.key}") == []
    (problem,) = shared(f"ssl_ca_certs={tmp_path}/none")
    why = f"ssl_ca_certs of the Redis URL names {tmp_path}/none, which holds no certificate that can be read"
    assert problem == f"F:5: stores.shared: {why}"
    for cert, key in ((one.cert, other.key), (locked.cert, locked.key), (tmp_path / "none", one.key)):
        (problem,) = shared(f"ssl_certfile={cert}&ssl_keyfile={key}")
        why = f"name the certificate {cert} and the key {key}: they can't be read, or don't match"
        assert problem.startswith(f"F:5: stores.shared: ssl_certfile and ssl_keyfile of the Redis URL {why}")


def test_check_refuses_what_serve_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(f"{HEAD}audit: {{sink: 'file:{tmp_path}'}}\n")
    assert main(["check", "--config", str(file)]) == REFUSED
    assert capsys.readouterr().err == (
        f"{file}:3: audit.sink: names {tmp_path}, which is a directory\nrefused: 1 error in {file}\n"
    )
    file.write_text(f"{HEAD}audit: {{sink: 'file:{tmp_path}/none/audit'}}\n")
    assert main(["check", "--config", str(file)]) == OK
    assert "which is not there" in capsys.readouterr().err
