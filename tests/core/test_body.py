"""The parts that every body scanner shares."""

from __future__ import annotations

import pytest

from gateway.core.body import (
    MAX_FOUND_BYTES,
    BodyVerdict,
    Finding,
    Findings,
    Undecidable,
    UndecidableBody,
    UnreadableBody,
    keeps_ascii,
    media_type,
    names_credential,
)


@pytest.mark.parametrize(
    ("value", "media"),
    [
        (b"application/json", "application/json"),
        (b" Application/JSON ; charset=x", "application/json"),
        (b"text/plain, application/json", "text/plain"),
        (b"", ""),
    ],
)
def test_media_type_is_read_as_rack_reads_it(value: bytes, media: str) -> None:
    assert media_type(value) == media


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"application/json", True),
        (b"application/json; charset=UTF-8", True),
        (b'application/json; charset = "utf8"', True),
        (b"application/x-www-form-urlencoded; charset=ISO-8859-1", True),
        (b"application/x-www-form-urlencoded; charset=iso-8859-1; charset=utf-16", False),
        (b"application/json; charset=utf-16", False),
        (b"application/json; charset=utf-8; CHARSET=utf-7", False),
        (b"application/json; charset=", False),
    ],
)
def test_charset(value: bytes, kept: bool) -> None:
    assert keeps_ascii(value) is kept


def test_hopeless_bodies_stay_so() -> None:
    scanner = UnreadableBody(Undecidable.BOUNDARY)
    scanner.feed(b"x")
    assert scanner.finish() == BodyVerdict((), Undecidable.BOUNDARY)
    with pytest.raises(AssertionError):
        scanner.cut(b"x", Finding("sudo", "x", 0, 1, plain=True))


def test_findings_hide_their_values() -> None:
    assert "secret" not in repr(BodyVerdict((Finding("private_token", "secret", 0, 1, plain=True),)))
    assert UndecidableBody(Undecidable.MALFORMED).reason is Undecidable.MALFORMED


def test_what_can_not_be_read_at_all_may_name_something_where_parts_may_be_found() -> None:
    parts, nothing = UnreadableBody(Undecidable.BOUNDARY), UnreadableBody(Undecidable.CONTENT_TYPE)
    assert parts.blind
    assert nothing.blind
    for name in (
        b"_method",
        b"private_token",
        b"_m\\ethod",
        b"jo\\b_to\\ken",
        b"%5fmethod",
        b"private%5Ft%6Fken",
        b"job_%74oken",
    ):
        assert parts.may_name(b'name="' + name + b'"')
        assert not nothing.may_name(name)
    for named in (b'name="sudo"', b"name=sudo\r\n", b"name=sudo(x", b'name="su\\do"', b"sudo=root", b"a=b&sudo=root"):
        assert parts.may_name(named)
    assert parts.may_name(b"%73udo=root")
    assert parts.may_name(b"Content-ID: sudo\r\n")
    assert parts.may_name(b"Content-ID: sudo\n")
    for another in (b'"sudoers"', b"=sudo2", b"&sudo_user", b'"sudo-rs"'):
        assert not parts.may_name(another)
    assert not parts.may_name(b'name="title"\r\n\r\nsudo apt-get install x; a pseudo-user')


@pytest.mark.parametrize(
    "octets",
    [
        b'; name="sudo"\r\n',
        b"; name=sudo\r\n",
        b'; name="[sudo]"\r\n',
        b'; name="]sudo"\r\n',
        b'; name="s\\udo[]"\r\n',
        b"; name= sudo; filename=x\r\n",
        b"; name=\tsudo\r\n",
        b"; name=\x0bsudo\r\n",
        b"; name=\0 sudo\x0c\r\n",
        b"; name=\r\n\tsudo\r\n",
        b"Content-ID: sudo \r\n",
        b"Content-ID: sudo]\t\r\n",
        b"Content-ID: sudo\r\n",
        b"Content-ID:\r\n sudo\r\n",
        b"Content-ID: [sudo]\r\n",
        b"Content-Type: [sudo\r\n",
        b"sudo=root",
        b"a=b&sudo=root",
        b"a=b&[sudo]=root",
        b"a=b&  sudo=root",
        b"[sudo]=root",
        b" " * 256 + b"sudo=root",
        b"[" * 300 + b"sudo]=root",
        b"ID: sudo" + b"]" * 256,
        b"ID: sudo]" + b"\t" * 256,
        b"Content-Type: text/plain; charset=ISO-2022-JP\r\n",
        b'Content-Type: text/plain;charset = "iso2022-jp"',
        b"\0=ISO-2022-JP",
        b' \t"ISO-2022-JP"',
    ],
)
def test_whom_to_act_as_is_named(octets: bytes) -> None:
    """However Rack or Workhorse finds it."""
    assert names_credential(octets)


@pytest.mark.parametrize(
    "octets",
    [
        b"apt && sudo apt",
        b"we sudo",
        b"user: sudo x\r\n",
        b'"sudoers"',
        b"PREFIX = sudo make",
        b"[sudo] password",
        b"in ISO-2022-JP",
    ],
)
def test_what_speaks_of_it_names_nobody(octets: bytes) -> None:
    assert not names_credential(b"x" + octets)


@pytest.mark.parametrize("value", [None, "x" * 10_000])
def test_findings_are_bounded(value: str | None) -> None:
    found = Findings()
    for number in range(60):
        found.add(Finding("project", value, number, number, plain=True))
    assert len(found.all()) == 60

    def all_of_them() -> None:
        for number in range(60, 10_000):
            found.add(Finding("project", value, number, number, plain=True))

    with pytest.raises(UndecidableBody) as doubt:
        all_of_them()
    assert doubt.value.reason is Undecidable.TOO_MANY
    kept = found.all()
    assert [finding.start for finding in kept] == list(range(len(kept)))
    assert len(kept) <= 4097
    assert sum(len(finding.value or "") for finding in kept) <= MAX_FOUND_BYTES + 10_000
