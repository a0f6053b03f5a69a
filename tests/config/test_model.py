from __future__ import annotations

import pytest

from gateway.config.model import Cache, Config, Section, Stores, Timeouts, Upstream
from gateway.config.units import BaseUrl, parse_store_url
from gateway.config.vocabulary import CachePlace


def test_every_section_is_frozen_and_knows_its_keys() -> None:
    for section in (Config, *Section.__subclasses__()):
        assert section.__struct_config__.frozen
        assert section.__struct_config__.forbid_unknown_fields


def test_defaults_are_safe() -> None:
    config = Config(version=1, upstream=Upstream(url=BaseUrl("https", "gitlab.internal", 443)))
    assert config.listen.address.host == config.listen.admin.host == "127.0.0.1"
    assert config.listen.trusted_proxies == ()
    assert config.admin.keys == ()
    assert not any(identity.anonymous for identity in config.identities)
    assert (config.cache.ttl, config.cache.stale_if_error) == (0, 0)


@pytest.mark.parametrize(
    ("url", "store", "shared"),
    [
        ("memory:", CachePlace.SHARED, False),
        ("redis://redis:6379/0", CachePlace.SHARED, True),
        ("redis://redis:6379/0", CachePlace.MEMORY, False),
    ],
)
def test_where_the_cache_is(url: str, store: CachePlace, shared: bool) -> None:
    config = Config(
        version=1,
        upstream=Upstream(url=BaseUrl("https", "gitlab.internal", 443)),
        stores=Stores(shared=parse_store_url(url)),
        cache=Cache(store=store),
    )
    assert config.cache_is_shared is shared


def test_sections_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Timeouts().connect = 1  # type: ignore[misc]  # that it can't be set is the point
