from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("0s", 0.0), ("250ms", 0.25), ("2s", 2.0), ("1.5h", 5400.0), ("10m", 600.0), ("14d", 1209600.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "2 s", "-1s", "1h30m", "1w", "٣s", "1e3s", "nans", "2S", "2s\n"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("30", "30s"),
        ("30 s", "30s"),
        ("30sec", "30s"),
        ("5min", "5m"),
        ("2 hours", "2h"),
        ("1day", "1d"),
        ("50 ms", "50ms"),
    ],
)
def test_spelt_durations_get_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean `{hint}`"):
        units.parse_duration(text)


def test_what_may_be_no_unit_at_all_gets_no_hint() -> None:
    with pytest.raises(ValueError, match=r"for example 30s$"):
        units.parse_duration("1month")


@given(st.integers(0, 10**9))
def test_durations_are_shown_as_they_are_read(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert units.parse_duration(units.show_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "octets"), [("0", 0), ("512", 512), ("512B", 512), ("16KiB", 16384), ("2MiB", 2 << 20), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, octets: int) -> None:
    assert units.parse_size(text) == octets


@pytest.mark.parametrize(
    ("text", "hint"), [("16KB", "16KiB"), ("16k", "16KiB"), ("2M", "2MiB"), ("1 GB", "1GiB"), ("2Mi", "2MiB")]
)
def test_decimal_sizes_get_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean `{hint}`"):
        units.parse_size(text)


@pytest.mark.parametrize("text", ["", "-1", "1.5MiB", "much"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_size(text)


@given(st.integers(0, 1 << 40))
def test_sizes_are_shown_as_they_are_read(octets: int) -> None:
    assert units.parse_size(units.show_size(octets)) == octets


@pytest.mark.parametrize(
    ("text", "per_second"),
    [("600/min", 10.0), ("10/s", 10.0), ("36000/hour", 10.0), ("864000/day", 10.0), ("0.5/sec", 0.5), ("60/minute", 1.0)],
)
def test_rates(text: str, per_second: float) -> None:
    assert units.parse_rate(text).per_second == pytest.approx(per_second)


@pytest.mark.parametrize("text", ["", "600", "600/fortnight", "-1/s", "600 / min", "0/s", "1/0s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a rate|is a rate of 0"):
        units.parse_rate(text)


@given(st.integers(1, 10**8), st.sampled_from(["s", "min", "hour", "day"]))
def test_rates_are_shown_as_they_are_read(count: int, period: str) -> None:
    assert units.show_rate(units.parse_rate(f"{count}/{period}")) == f"{count}/{period}"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("localhost:0", "localhost", 0),
        ("[::1]:8080", "::1", 8080),
        ("[0:0:0:0:0:0:0:1]:1", "::1", 1),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
        ("Gateway.Internal:80", "gateway.internal", 80),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert units.parse_host_port(text) == units.HostPort(host, port)
    assert units.parse_host_port(str(units.parse_host_port(text))) == units.HostPort(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "80",
        "host",
        "host:",
        "host:99999",
        "host:-1",
        "::1:80",
        "[::1:80",
        "[::x]:80",
        "1.2.3:80",
        "a b:80",
        "é:80",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address|has a bad port"):
        units.parse_host_port(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Git.Example.com", "git.example.com"),
        ("git.example.com:8443", "git.example.com:8443"),
        ("10.0.0.1", "10.0.0.1"),
        ("[::1]", "[::1]"),
        ("[::1]:8443", "[::1]:8443"),
    ],
)
def test_hosts(text: str, host: str) -> None:
    assert units.parse_host(text) == host


@pytest.mark.parametrize("text", ["", "https://a", "a/b", "me@a", "*.a", "a:0", "a b", "::1"])
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_host(text)


@pytest.mark.parametrize(
    ("text", "shown", "authority"),
    [
        ("https://gitlab.internal", "https://gitlab.internal", "gitlab.internal"),
        ("HTTPS://GitLab.internal:443/", "https://gitlab.internal", "gitlab.internal"),
        ("http://10.0.0.1:3000/gitlab/", "http://10.0.0.1:3000/gitlab", "10.0.0.1:3000"),
        ("http://[::1]:80", "http://[::1]", "[::1]"),
        ("http://my_gitlab", "http://my_gitlab", "my_gitlab"),
    ],
)
def test_urls(text: str, shown: str, authority: str) -> None:
    url = units.parse_base_url(text)
    assert (str(url), url.authority) == (shown, authority)
    assert units.parse_base_url(str(url)) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gitlab",
        "ftp://a",
        "https://",
        "https://u:p@a",
        "https://a?x",
        "https://a#x",
        "https://a/../b",
        "https://a//b",
        "https://a/%2e",
        "https://a/api",
        "https://a/gitlab/api/v4/",
        "https://a b",
        "https://[::1",
        "https://a:0",
        "https://a\n",
    ],
)
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_base_url(text)


@pytest.mark.parametrize(
    ("text", "scheme", "shown", "shared", "password"),
    [
        ("memory:", "memory", "memory:", False, False),
        ("redis://redis:6379/0", "redis", "redis://redis:6379/0", True, False),
        ("redis://[::1]", "redis", "redis://[::1]", True, False),
        ("rediss://u:p@redis/1", "rediss", "rediss://redis/1", True, True),
        (
            "rediss://u:p@redis/1?ssl_ca_certs=/etc/ca.pem",
            "rediss",
            "rediss://redis/1?ssl_ca_certs=/etc/ca.pem",
            True,
            True,
        ),
        (
            "rediss://r:1?ssl_certfile=/a&ssl_keyfile=/b&ssl_check_hostname=false",
            "rediss",
            "rediss://r:1?ssl_certfile=/a&ssl_keyfile=/b&ssl_check_hostname=false",
            True,
            False,
        ),
        (
            "redis+sentinel://s1,s2:5000,[::1]:6000/main",
            "redis+sentinel",
            "redis+sentinel://s1,s2:5000,[::1]:6000/main",
            True,
            False,
        ),
        ("redis+sentinel://u:p,@s1/main/3", "redis+sentinel", "redis+sentinel://s1/main/3", True, True),
        ("redis+sentinel://s1/main?sentinel_password=p", "redis+sentinel", "redis+sentinel://s1/main", True, True),
        (
            "rediss+sentinel://s1/main?sentinel_username=u&ssl_check_hostname=false&sentinel_password=p%2Fq",
            "rediss+sentinel",
            "rediss+sentinel://s1/main?ssl_check_hostname=false",
            True,
            True,
        ),
        ("redis+cluster://n1,n2:7000", "redis+cluster", "redis+cluster://n1,n2:7000", True, False),
        (
            "rediss+cluster://:p@n1/0?ssl_ca_certs=/ca.pem",
            "rediss+cluster",
            "rediss+cluster://n1/0?ssl_ca_certs=/ca.pem",
            True,
            True,
        ),
        ("sqlite:///var/lib/keys.db", "sqlite", "sqlite:///var/lib/keys.db", False, False),
    ],
)
def test_stores(text: str, scheme: str, shown: str, shared: bool, password: bool) -> None:
    store = units.parse_store_url(text)
    assert (store.scheme, store.shown, store.shared, store.password) == (scheme, shown, shared, password)
    assert store.path == ("/var/lib/keys.db" if scheme == "sqlite" else "")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "redis",
            "redis://",
            "redis://r/x",
            "redis://r:0",
            "redis://r?db=1",
            "sqlite://x.db",
            "sqlite:///",
            "mongo://m",
        ),
        *(
            "redis://r?ssl_ca_certs=/ca.pem",
            "rediss://r?",
            "rediss://r?ssl_ca_certs=ca.pem",
            "rediss://r?ssl_cert_reqs=none",
        ),
        *(
            "rediss://r?password=x",
            "rediss://r?ssl_ca_certs=/ca&password=x",
            "rediss://r?ssl_ca_certs=/a%20b",
            "rediss://r#x",
        ),
        *(
            "redis+sentinel://s1",
            "redis+sentinel://s1/",
            "redis+sentinel://s1/main/zero",
            "redis+sentinel://s1,,s2/main",
            "redis+sentinel://s1,s2:0/main",
            "redis+sentinel:///main",
            "redis+sentinel://s1/ma in",
            "redis+sentinel://s1/main?ssl_ca_certs=/ca.pem",
            "redis+sentinel://s1/main?sentinel_password=",
            "redis+sentinel://s1/main#sentinel_password=x",
            "redis+cluster://n1/1",
            "redis+cluster://n1?sentinel_password=x",
            "redis+queue://n1",
            "redis+://n1",
            "unix+sentinel://s1/main",
        ),
    ],
)
def test_what_is_no_store(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_store_url(text)


def test_networks_may_be_single_addresses() -> None:
    assert str(units.parse_network("10.0.0.1")) == "10.0.0.1/32"


@pytest.mark.parametrize(
    ("text", "spelt"),
    [("42", "42"), ("platform/api", "platform/api"), ("platform%2Fapi", "platform/api"), ("a/*/b-**", "a/*/b-**")],
)
def test_projects(text: str, spelt: str) -> None:
    assert units.parse_project(text) == spelt


@pytest.mark.parametrize("text", ["", "/a", "a/", "a//b", "0", "042", "a b", "a%252Fb", "a?b"])
def test_what_is_no_project(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_project(text)


@given(st.text(max_size=40))
def test_no_word_of_an_operator_breaks_a_parser(text: str) -> None:
    parsers = [
        units.parse_duration, units.parse_size, units.parse_rate, units.parse_host_port, units.parse_host,
        units.parse_network, units.parse_base_url, units.parse_store_url, units.parse_identifier, units.parse_field_name,
        units.parse_sha256, units.parse_route, units.parse_method, units.parse_sink, units.parse_path, units.parse_project,
    ]  # fmt: skip
    for parse in parsers:
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(("text", "octets"), [("20MiB/s", 20 << 20), ("64KiB/sec", 65536), ("1000/second", 1000)])
def test_bandwidths(text: str, octets: int) -> None:
    assert units.parse_byte_rate(text) == octets
    assert units.parse_byte_rate(units.show_byte_rate(octets)) == octets


@pytest.mark.parametrize("text", ["", "20MiB", "20MiB/min", "/s", "20MB/s", "20MiB/s\n", "-1KiB/s"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a bandwidth|is not a size"):
        units.parse_byte_rate(text)


@pytest.mark.parametrize(
    "form", ["redis://{}@r/0", "rediss://{}@r", "redis+sentinel://{}@s1,s2/main", "redis+cluster://{}@n1"]
)
@pytest.mark.parametrize("word", [":a[b", ":a]b", ":a\tb", ":a\nb", ":\u2100", ":\udcff", "[:a"])
def test_what_no_url_can_hold_is_refused_before_the_start(form: str, word: str) -> None:
    with pytest.raises(ValueError, match="percent-encode") as refused:
        units.parse_store_url(form.format(word))
    assert word not in str(refused.value)


def test_a_sentinels_password_is_text() -> None:
    with pytest.raises(ValueError, match="percent-encode"):
        units.parse_store_url("redis+sentinel://s1/main?sentinel_password=\udcff")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("REDIS://:P@r/0", "redis://:P@r/0"),
        ("Redis+Sentinel://s1/Main", "redis+sentinel://s1/Main"),
        ("SQLite:///keys.db", "sqlite:///keys.db"),
    ],
)
def test_a_stores_scheme_is_as_who_connects_writes_it(text: str, url: str) -> None:
    store = units.parse_store_url(text)
    assert store.url.reveal() == url
    assert store.shown == url.replace(":P@", "")
