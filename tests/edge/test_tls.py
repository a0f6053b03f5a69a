"""The listener's certificate, exchanged while it serves."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from gateway.edge.tls import ListenerTls
from tests.fakes.certificates import Authority


def test_a_pair_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    tls = ListenerTls(str(one.cert), str(one.key))
    assert tls.context.minimum_version is ssl.TLSVersion.TLSv1_2
    one.key.write_bytes(other.key.read_bytes())
    with pytest.raises(ssl.SSLError, match=f"{one.key} is not the key of the certificate {one.cert}"):
        tls.read()
    one.cert.write_bytes(other.cert.read_bytes())
    put = tls.read()
    put()


def test_what_cannot_serve_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, locked = authority.issue("one"), authority.issue("locked", passphrase=b"secret")
    with pytest.raises(OSError, match="No such file"):
        ListenerTls(str(tmp_path / "missing"), str(one.key))
    with pytest.raises(ssl.SSLError, match=f"{locked.key} is encrypted"):
        ListenerTls(str(locked.cert), str(locked.key))
