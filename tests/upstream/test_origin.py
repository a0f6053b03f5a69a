"""Where GitLab is: URLs, and what TLS insists on."""

from __future__ import annotations

import ssl

import pytest

from gateway.upstream.origin import Origin, parse_origin, tls_context


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
