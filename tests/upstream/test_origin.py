"""Where GitLab is: URLs, and what TLS insists on."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from gateway.upstream.errors import UpstreamFailure
from gateway.upstream.origin import Dialer, Origin, parse_origin, tls_context
from tests.fakes.certificates import Authority


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        ("http://gitlab.internal", Origin(host="gitlab.internal", port=80), b"gitlab.internal"),
        ("http://gitlab.internal:8080/gitlab", Origin(host="gitlab.internal", port=8080), b"gitlab.internal:8080"),
        ("https://GitLab.internal/", Origin(host="gitlab.internal", port=443, tls=True), b"gitlab.internal"),
        ("https://[2001:db8::1]:8443", Origin(host="2001:db8::1", port=8443, tls=True), b"[2001:db8::1]:8443"),
        ("unix:/run/gitlab.socket", Origin(socket_path="/run/gitlab.socket"), b"localhost"),
        ("unix:///run/gitlab.socket", Origin(socket_path="/run/gitlab.socket"), b"localhost"),
        ("http+unix:///run/gitlab.socket", Origin(socket_path="/run/gitlab.socket"), b"localhost"),
        ("http+unix://%2Frun%2fgitlab.socket", Origin(socket_path="/run/gitlab.socket"), b"localhost"),
        ("http://bücher.test", Origin(host="bücher.test", port=80), b"xn--bcher-kva.test"),
    ],
)
def test_urls(url: str, origin: Origin, authority: bytes) -> None:
    assert parse_origin(url) == origin
    assert origin.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gitlab.internal",
        "ftp://gitlab.internal",
        "http://",
        "http://user:secret@gitlab.internal",
        "http://gitlab.internal?secret",
        "http://gitlab.internal#secret",
        "http://gitlab.internal:secret",
        "http://gitlab.internal:99999",
        "http://gitlab.internal:0",
        "http://[secret",
        "unix:relative",
    ],
)
def test_what_is_no_origin_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_origin(url)
    assert "secret" not in str(error.value)


def test_tls_verifies_and_is_not_old(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", f"{tmp_path}/keys")
    context = tls_context(None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.keylog_filename is None


def test_an_authority_file_must_hold_authorities(tmp_path: object) -> None:
    with pytest.raises(OSError):
        tls_context(f"{tmp_path}/none.pem")


async def test_why_tls_fails_is_told_and_not_with_every_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = Authority(tmp_path).issue("gitlab")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    stranger = Authority(tmp_path, "stranger")
    port = server.sockets[0].getsockname()[1]
    dialer = Dialer(asyncio.get_running_loop(), Origin("127.0.0.1", port, tls=True), 5.0)
    for _ in range(2):
        with pytest.raises(UpstreamFailure):
            await dialer.connect(asyncio.Protocol, tls_context(str(stranger.file)))
    server.close()
    (logged,) = (record.getMessage() for record in caplog.records if record.name == "gateway.upstream")
    assert logged == f"TLS with 127.0.0.1:{port} failed: unable to get local issuer certificate"
