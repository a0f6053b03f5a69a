"""The caller's name, for GitLab's logs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.attribution import Attribution, plain_name
from gateway.core.messages import Fields

FIELDS: Fields = ((b"Accept", b"*/*"), (b"User-Agent", b"curl/8"))


def test_a_field_of_its_own() -> None:
    assert Attribution(b"X-Gateway-Caller").applied(FIELDS, "backstage") == (*FIELDS, (b"X-Gateway-Caller", b"backstage"))


def test_behind_the_user_agent() -> None:
    attribution = Attribution(b"", user_agent=True)
    assert attribution.applied(FIELDS, "user:42") == (FIELDS[0], (b"User-Agent", b"curl/8 gitlab-gateway (user:42)"))
    assert attribution.applied(FIELDS[:1], "bot") == (FIELDS[0], (b"User-Agent", b"gitlab-gateway (bot)"))
    assert attribution.applied(((b"user-agent", b""),), "bot") == ((b"user-agent", b"gitlab-gateway (bot)"),)
    twice = ((b"User-Agent", b"a"), (b"USER-AGENT", b"b"))
    assert attribution.applied(twice, "bot") == ((b"User-Agent", b"a gitlab-gateway (bot)"),)


def test_both() -> None:
    fields = Attribution(b"X-Who", user_agent=True).applied(FIELDS, "bot")
    assert fields[1:] == ((b"User-Agent", b"curl/8 gitlab-gateway (bot)"), (b"X-Who", b"bot"))


@pytest.mark.parametrize(
    ("caller", "name"),
    [
        ("anonymous:2001:db8::1", b"anonymous:2001:db8::1"),
        ("eve\r\nPRIVATE-TOKEN: x", b"eve__PRIVATE-TOKEN:_x"),
        ("a) root (", b"a__root__"),
        ("\udcff\u00e9", b"__"),
        ("x" * 500, b"x" * 128),
    ],
)
def test_a_name_writes_nothing_but_itself(caller: str, name: bytes) -> None:
    assert plain_name(caller) == name


@given(st.text())
def test_any_name_is_plain(caller: str) -> None:
    assert re.fullmatch(rb"[A-Za-z0-9._:@/-]{0,128}", plain_name(caller))


def test_names_are_remembered_with_a_bound() -> None:
    attribution = Attribution(b"X-Who")
    for number in range(5000):
        assert attribution.applied((), f"user:{number}") == ((b"X-Who", b"user:%d" % number),)
    assert len(attribution._names) <= 4096
