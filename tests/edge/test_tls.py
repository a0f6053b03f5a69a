"""The listener's certificate, exchanged while it serves."""

from __future__ import annotations

import contextlib
import datetime
import math
import ssl
from pathlib import Path

import pytest

from gateway.edge.tls import ListenerTls, certificate_end
from tests.fakes.certificates import Authority


def shown(
    tls: ListenerTls,
    authority: Authority,
    server_name: str | None = "localhost",
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> str:
    """The name on the certificate that a client is shown."""
    trusting = ssl.create_default_context(cafile=str(authority.file))
    trusting.check_hostname = server_name is not None
    trusting.minimum_version = trusting.maximum_version = version
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = tls.context.wrap_bio(up, down, server_side=True)
    client = trusting.wrap_bio(down, up, server_hostname=server_name)
    for side in (client, server, client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    certificate = client.getpeercert()
    assert certificate is not None
    return dict(pair[0] for pair in certificate["subject"])["commonName"]  # type: ignore[misc, index]


def test_a_pair_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    tls = ListenerTls(str(one.cert), str(one.key))
    assert tls.context.newest.minimum_version is ssl.TLSVersion.TLSv1_2
    one.key.write_bytes(other.key.read_bytes())
    with pytest.raises(ssl.SSLError, match=f"{one.key} is not the key of the certificate {one.cert}"):
        tls.read()
    one.cert.write_bytes(other.cert.read_bytes())
    put = tls.read()
    assert shown(tls, authority) == "one", "until it is put in place"
    put()
    assert shown(tls, authority) == "other"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("server_name", ["localhost", None])
@pytest.mark.parametrize("to_rsa", [True, False])
def test_a_key_of_another_kind_leaves_nothing_of_the_pair_before(
    tmp_path: Path, version: ssl.TLSVersion, server_name: str | None, to_rsa: bool
) -> None:
    authority = Authority(tmp_path)
    old, new = authority.issue("old", with_rsa=not to_rsa), authority.issue("new", with_rsa=to_rsa)
    tls = ListenerTls(str(old.cert), str(old.key))
    assert shown(tls, authority, server_name, version) == "old"
    old.cert.write_bytes(new.cert.read_bytes())
    old.key.write_bytes(new.key.read_bytes())
    tls.read()()
    assert shown(tls, authority, server_name, version) == "new"


@pytest.mark.parametrize("name", [b"l\xffcalhost", b"local\nost", b"\xe2\x80\xaeabcdef"])
def test_whatever_name_a_client_asks_for_is_nothing_to_tell(
    tmp_path: Path, name: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even on standard error, whose reader may be slow: all others would wait for him."""
    pair = Authority(tmp_path).issue("one")
    tls = ListenerTls(str(pair.cert), str(pair.key))
    answer, asked = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(answer, asked, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    up.write(asked.read().replace(b"localhost", name))
    with pytest.raises(ssl.SSLWantReadError):
        tls.context.wrap_bio(up, down, server_side=True).do_handshake()
    assert down.pending > 100, "its part of the handshake"
    assert capfd.readouterr().err == ""


def test_what_was_read_is_what_is_put_in_place(tmp_path: Path) -> None:
    """Files that are half replaced between the two leave the pair that fitted."""
    authority = Authority(tmp_path)
    one, other, third = (authority.issue(name) for name in ("one", "other", "third"))
    tls = ListenerTls(str(one.cert), str(one.key))
    one.cert.write_bytes(other.cert.read_bytes())
    one.key.write_bytes(other.key.read_bytes())
    put = tls.read()
    one.cert.write_bytes(third.cert.read_bytes())
    put()
    assert shown(tls, authority) == "other"


def test_a_key_of_another_kind_than_the_certificates_is_told_as_what_it_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other", with_rsa=True)
    for cert, key in ((one.cert, other.key), (other.cert, one.key)):
        with pytest.raises(ssl.SSLError, match=f"{key} is not the key of the certificate {cert}"):
            ListenerTls(str(cert), str(key))


def test_a_file_that_is_half_written_is_told_as_what_it_is(tmp_path: Path) -> None:
    one = Authority(tmp_path).issue("one")
    one.cert.write_bytes(one.cert.read_bytes()[:300])
    with pytest.raises(ssl.SSLError, match="can't be read: one of them is not whole PEM"):
        ListenerTls(str(one.cert), str(one.key))


def test_what_cannot_serve_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, locked = authority.issue("one"), authority.issue("locked", passphrase=b"secret")
    for pair in ((str(tmp_path / "missing"), str(one.key)), (str(one.cert), str(tmp_path / "missing"))):
        with pytest.raises(OSError, match="No such file") as refused:
            ListenerTls(*pair)
        assert refused.value.filename == str(tmp_path / "missing")
    with pytest.raises(ssl.SSLError, match=f"{locked.key} is encrypted"):
        ListenerTls(str(locked.cert), str(locked.key))


def test_when_the_certificate_that_is_shown_ends_is_known(tmp_path: Path) -> None:
    """Not that of its authority, which stands behind it in the file."""
    authority = Authority(tmp_path)
    ends = [datetime.datetime(year, 2, 3, 4, 5, 6, tzinfo=datetime.UTC) for year in (2030, 2031)]
    one, other = (authority.issue(f"until {end.year}", until=end) for end in ends)
    one.cert.write_bytes(one.cert.read_bytes() + authority.file.read_bytes())
    tls = ListenerTls(str(one.cert), str(one.key))
    assert tls.expires_at == ends[0].timestamp()
    for there, new in ((one.key, other.key), (one.cert, other.cert)):
        there.write_bytes(new.read_bytes())
    put = tls.read()
    assert tls.expires_at == ends[0].timestamp(), "until it is put in place"
    put()
    assert tls.expires_at == ends[1].timestamp()


def test_an_end_that_cannot_be_told_is_none(tmp_path: Path) -> None:
    odd = tmp_path / "odd.pem"
    octets = ssl.PEM_cert_to_DER_cert(Authority(tmp_path).file.read_text())
    odd.write_text(
        ssl.DER_cert_to_PEM_cert(octets.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1))
    )  # version 8
    (tmp_path / "x.pem").write_bytes(b"no certificate")
    for file in (odd, tmp_path / "x.pem", tmp_path / "none.pem"):
        assert certificate_end(str(file)) == math.inf
