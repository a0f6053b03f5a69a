"""A configuration read again elsewhere is the same, whatever became of what it was read from."""

from __future__ import annotations

import msgspec

from gateway.config.source import ConfigSource

TEXT = 'version: 1\nupstream: {url: "http://127.0.0.1:9"}\nsecrets: {pepper: "${file:/run/pepper}"}\n'
PEPPER = "5f0c9a7e1b3d8246ace013579bdf2468"


def test_it_is_read_from_what_was_recorded() -> None:
    source = ConfigSource(TEXT, "gateway.yaml", ((("listen", "workers"), "1"), (("listen", "address"), "127.0.0.1:1")))
    first = source.load({"HOME": "/h"}, {"/run/pepper": PEPPER}.__getitem__).config
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(source), type=ConfigSource)
    assert first is not None
    assert sent.load({"HOME": "/h"}).config == first
    assert str(first.listen.address) == "127.0.0.1:1"


def test_what_was_not_read_then_is_not_there() -> None:
    loaded = ConfigSource(TEXT).load({})
    assert [problem.path for problem in loaded.errors] == ["secrets.pepper"]


def test_it_shows_no_secret() -> None:
    source = ConfigSource(TEXT, "gateway.yaml")
    source.load({}, {"/run/pepper": PEPPER}.__getitem__)
    assert source.files == {"/run/pepper": PEPPER}
    assert repr(source) == "ConfigSource(gateway.yaml)"
    assert PEPPER not in repr([source, ConfigSource(TEXT)])
