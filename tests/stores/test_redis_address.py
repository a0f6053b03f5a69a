"""Redis URLs: what they say, and what their errors don't."""

from __future__ import annotations

import ssl

import pytest

from gateway.config.units import parse_store_url
from gateway.stores.redis_address import parse_address


def test_tcp() -> None:
    at = parse_address("redis://alice:p%40ss%2F@redis.internal:6380/3")
    assert (at.host, at.port, at.db, at.username, at.password, at.tls) == (
        "redis.internal", 6380, 3, "alice", "p@ss/", None
    )  # fmt: skip


def test_defaults() -> None:
    at = parse_address("redis://")
    assert (at.host, at.port, at.path, at.db, at.username, at.password) == ("localhost", 6379, "", 0, "", "")


def test_unix() -> None:
    at = parse_address("unix://:pass@/run/redis.sock?db=2")
    assert (at.path, at.db, at.password, at.tls) == ("/run/redis.sock", 2, "pass", None)


def test_tls_verifies_unless_told_otherwise() -> None:
    tls = parse_address("rediss://redis.internal").tls
    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    lax = parse_address("rediss://redis.internal?ssl_cert_reqs=none").tls
    assert lax is not None
    assert lax.verify_mode is ssl.CERT_NONE
    nameless = parse_address("rediss://redis.internal?ssl_check_hostname=false").tls
    assert nameless is not None
    assert (nameless.verify_mode, nameless.check_hostname) == (ssl.CERT_REQUIRED, False)


@pytest.mark.parametrize(
    "url",
    [
        "http://:hunter2@redis",
        "redis+queue://:hunter2@redis",
        "redis://:hunter2@redis:port/0",
        "redis://:hunter2@redis:6379/zero",
        "redis://:hunter2@redis?db=zero",
        "redis://:hunter2@redis?socket_timeout=5",
        "redis://:hunter2@[redis",
        "rediss://:hunter2@redis?ssl_ca_certs=/nonexistent/ca.pem",
        "rediss://:hunter2@redis?ssl_ca_certs=/dev/null",
        "rediss://:hunter2@redis?ssl_certfile=/dev/null",
    ],
)
def test_errors_keep_the_password(url: str) -> None:
    with pytest.raises((ValueError, OSError), match="Redis URL") as refused:
        parse_address(url)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_repr_keeps_the_password() -> None:
    assert "hunter2" not in repr(parse_address("redis://:hunter2@redis"))


def test_sentinels() -> None:
    at = parse_address("redis+sentinel://alice:p%40ss@s1,s2:5000,[::1]/gitlab.main/2")
    assert (at.db, at.username, at.password, at.primary, at.tls) == (2, "alice", "p@ss", "gitlab.main", None)
    assert [(guide.host, guide.port, guide.db) for guide in at.guides] == [
        ("s1", 26379, 0),
        ("s2", 5000, 0),
        ("::1", 26379, 0),
    ]
    assert {(guide.username, guide.password) for guide in at.guides} == {("", "")}


def test_sentinels_have_a_password_of_their_own_and_one_way_to_be_reached() -> None:
    options = "sentinel_username=gw&ssl_check_hostname=false&sentinel_password=a+b%2Bc%2F"
    at = parse_address(f"rediss+sentinel://:pass@s1/main?{options}")
    (guide,) = at.guides
    assert (at.username, at.password, guide.username, guide.password) == ("", "pass", "gw", "a+b+c/")
    assert at.tls is not None
    assert guide.tls is at.tls
    assert not at.tls.check_hostname


def test_nodes_of_a_cluster() -> None:
    at = parse_address("redis+cluster://alice:pass@n1,n2:7000")
    assert (at.db, at.primary) == (0, "")
    assert [(guide.host, guide.port, guide.username, guide.password) for guide in at.guides] == [
        ("n1", 6379, "alice", "pass"),
        ("n2", 7000, "alice", "pass"),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:hunter2@s1",
        "redis+sentinel://:hunter2@s1/",
        "redis+sentinel://:hunter2@s1/main/zero",
        "redis+sentinel://:hunter2@/main",
        "redis+sentinel://:hunter2@s1,,s2/main",
        "redis+sentinel://:hunter2@s1:port/main",
        "redis+sentinel://s1/main?sentinel_secret=hunter2",
        "redis+cluster://:hunter2@n1/1",
        "redis+cluster://n1?sentinel_password=hunter2",
    ],
)
def test_what_asks_nobody_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="Redis URL") as refused:
        parse_address(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "userinfo", ["", "u:p@", ":p%40%2F@", "u:p,q@", "u:p@q@", ":a+b@", ":%zz@", ":é@", ":a b@", "u@", "@"]
)
@pytest.mark.parametrize("hosts", ["s1", "s1:5000,s2", "[::1],[::1]:6000", "S_1.x.,127.0.0.1:1"])
@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://{}/main",
        "rediss+sentinel://{}/ma.in/3?sentinel_password=a?b&ssl_check_hostname=false&sentinel_username=%C3%A9",
        "redis+cluster://{}",
        "rediss+cluster://{}/0?ssl_check_hostname=true",
    ],
)
def test_what_the_configuration_takes_is_an_address(userinfo: str, hosts: str, url: str) -> None:
    store = parse_store_url(url.format(userinfo + hosts))
    at = parse_address(store.url.reveal())
    assert len(at.guides) == hosts.count(",") + 1
    assert store.encrypted == (at.tls is not None)


def test_a_plus_sign_in_the_name_of_a_file_is_one() -> None:
    with pytest.raises(OSError, match=r"names /gone/a\+b.pem"):
        parse_address("rediss://redis/0?ssl_ca_certs=/gone/a+b.pem")
