"""The texts of a configuration and what they mean: durations, sizes, rates, addresses, URLs.

Each ``parse_*`` takes the text that the operator wrote and returns its value, or raises ValueError with a message that says
what would have been right. Where ``str`` would not do, a ``show_*`` writes the value back the way an operator would.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ..core.secret import Secret

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]{1,18})(B|KiB|MiB|GiB)?")
_BYTES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DECIMAL_SIZE = re.compile(r"([0-9]+)\s*([kKmMgG])i?[bB]?")
_SPELT_DURATION = re.compile(
    r"([0-9]+)\s*(?:(ms)|(s)(?:ecs?|econds?)?|(m)(?:ins?|inutes?)?|(h)(?:rs?|ours?)?|(d)(?:ays?)?)?"
)
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)/(s|sec|second|m|min|minute|h|hour|d|day)")
_BYTE_RATE = re.compile(r"(.+)/(?:s|sec|second)")
_PERIODS = {
    "s": 1.0, "sec": 1.0, "second": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0,
    "h": 3600.0, "hour": 3600.0,
    "d": 86400.0, "day": 86400.0,
}  # fmt: skip
_PERIOD_NAMES = {1.0: "s", 60.0: "min", 3600.0: "hour", 86400.0: "day"}
# RFC 1123 labels; underscores are tolerated, because container networks name hosts `my_gitlab`.
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(.*)", re.DOTALL)
_URL_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")
_FIELD_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROUTE = re.compile(r"(?:[A-Z]{1,20} )?/[!-~]{0,500}")
_HOOK_PATH = re.compile(r"/[A-Za-z0-9._~-][A-Za-z0-9._~/-]{0,199}")
_PROJECT = re.compile(r"[1-9][0-9]{0,17}|(?=.*[A-Za-z_*])[A-Za-z0-9_.*-]+(?:/[A-Za-z0-9_.*-]+)*")
_WEB_URL = re.compile(r"https?://(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[!-~]*)?")
_METHOD = re.compile(r"[A-Z]{1,20}")


class ValueType(msgspec.Struct, frozen=True):
    """How one kind of value is read, shown and described; attached to a field's annotation."""

    name: str
    parse: Callable[[str], Any]
    show: Callable[[Any], Any]
    stand_in: Any
    """Replaces an unreadable required value, so that the rest of the file is still checked."""
    pattern: str = ""
    """For editors (JSON Schema, ECMA 262 syntax); ``parse`` has the last word."""
    number: bool = False
    """Whether a bare number is valid, too."""


class HostPort(msgspec.Struct, frozen=True):
    """An address to listen at. With port 0 the system chooses one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class BaseUrl(msgspec.Struct, frozen=True):
    """An ``http`` or ``https`` address with an optional path prefix, and nothing else."""

    scheme: str
    host: str
    """Lower case; an IPv6 address without brackets."""
    port: int
    path: str = ""
    """The relative-URL prefix: empty, or ``/gitlab`` without a trailing slash."""

    @property
    def authority(self) -> str:
        """Host and port as in a Host field, without the port if it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority, without the path."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.path


class StoreUrl(msgspec.Struct, frozen=True):
    """The address of a store. The whole URL is secret, because it may contain a password."""

    scheme: str
    """``memory``, ``sqlite``, ``redis`` or ``rediss``; the last two also with ``+sentinel`` or ``+cluster``."""
    url: Secret
    shown: str
    """The URL without users and passwords, for people to read."""
    password: bool = False

    @property
    def shared(self) -> bool:
        """Whether several gateways can use the store at the same time."""
        return self.scheme.startswith("redis")

    @property
    def encrypted(self) -> bool:
        """Whether connections to the store use TLS."""
        return self.scheme.startswith("rediss")

    @property
    def path(self) -> str:
        """The file of a ``sqlite:`` URL; otherwise empty."""
        return self.shown.removeprefix("sqlite://") if self.scheme == "sqlite" else ""


class Rate(msgspec.Struct, frozen=True):
    """``count`` per ``period_s``, as written."""

    count: float
    period_s: float

    @property
    def per_second(self) -> float:
        """Tokens per second."""
        return self.count / self.period_s


_DEFAULT_PORTS = {"http": 80, "https": 443}


# Numbers with units


def parse_duration(text: str) -> float:
    """``250ms``, ``2s``, ``10m``, ``1.5h``, ``14d``, in seconds; a bare ``0`` needs no unit."""
    if text == "0":
        return 0.0
    found = _DURATION.fullmatch(text)
    if found is None:
        near = _SPELT_DURATION.fullmatch(text)
        hint = f"; did you mean `{near[1]}{''.join(filter(None, near.groups()[1:])) or 's'}`?" if near else ""
        raise ValueError(f"is not a duration: write a number and ms, s, m, h or d, for example 30s{hint}")
    return float(found[1]) * _SECONDS[found[2]]


def show_duration(seconds: float) -> str:
    """Write in the largest unit that gives a whole number, else in milliseconds."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds / _SECONDS[unit])}{unit}"
    return f"{round(seconds * 1000, 3):.15g}ms" if seconds else "0s"


def parse_size(text: str) -> int:
    """``512``, ``512B``, ``16KiB``, ``2MiB``, ``1GiB``, in octets."""
    found = _SIZE.fullmatch(text)
    if found is None:
        near = _DECIMAL_SIZE.fullmatch(text)
        hint = f"; did you mean `{near[1]}{near[2].upper()}iB`?" if near else ""
        raise ValueError(f"is not a size: write a number and B, KiB, MiB or GiB, for example 16KiB{hint}")
    return int(found[1]) * _BYTES[found[2]]


def show_size(octets: int) -> str:
    """Write in the largest unit that gives a whole number."""
    for unit in ("GiB", "MiB", "KiB"):
        if octets and octets % _BYTES[unit] == 0:
            return f"{octets // _BYTES[unit]}{unit}"
    return f"{octets}B"


def parse_rate(text: str) -> Rate:
    """``600/min``, ``10/s``, ``20000/hour``, ``5000/day``."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError("is not a rate: write a number, a slash and s, min, hour or day, for example 600/min")
    rate = Rate(float(found[1]), _PERIODS[found[2]])
    if rate.count <= 0:
        raise ValueError("is a rate of 0: to refuse callers outright use a rule, not a limit")
    return rate


def parse_byte_rate(text: str) -> int:
    """``20MiB/s``, in octets per second."""
    found = _BYTE_RATE.fullmatch(text)
    if found is None:
        raise ValueError("is not a bandwidth: write a size and /s, for example 20MiB/s")
    return parse_size(found[1])


def show_byte_rate(octets: int) -> str:
    """``20MiB/s``."""
    return f"{show_size(octets)}/s"


def show_rate(rate: Rate) -> str:
    """``600/min``."""
    return f"{rate.count:.15g}/{_PERIOD_NAMES[rate.period_s]}"


# Addresses


def _parse_host(text: str, what: str) -> str:
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError(f"is not {what}: the bracket of the IPv6 address is not closed")
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise ValueError(f"is not {what}: {text} is not an IPv6 address") from None
    if not text.isascii():
        raise ValueError(f"is not {what}: a host name is written in ASCII (`xn--…`), as clients send it")
    if not _HOST_NAME.fullmatch(text):
        raise ValueError(f"is not {what}: the host name is malformed")
    if re.fullmatch(r"[0-9.]+", text):
        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            raise ValueError(f"is not {what}: {text} is not an IPv4 address") from None
    return text.lower()


def _parse_port(text: str, lowest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not lowest <= int(text) <= 65535:
        raise ValueError(f"has a bad port: it is a number from {lowest} to 65535")
    return int(text)


def parse_host_port(text: str) -> HostPort:
    """``127.0.0.1:8080``, ``[::1]:8080``, ``localhost:0``."""
    what = "an address to listen on: write HOST:PORT, for example 127.0.0.1:8080 or [::1]:8080"
    host, colon, port = text.rpartition(":")
    if not colon:
        hint = f"; did you mean `127.0.0.1:{text}`?" if text.isascii() and text.isdecimal() else ""
        raise ValueError(f"is not {what}{hint}")
    if not host:
        raise ValueError(f"is not {what}; for every address of this machine write 0.0.0.0{text}")
    if ":" in host and not host.startswith("["):
        raise ValueError(f"is not {what}; put an IPv6 address in brackets")
    return HostPort(_parse_host(host, what), _parse_port(port, 0))


def parse_host(text: str) -> str:
    """A Host that the gateway answers to: a name or address, with a port only if clients send one."""
    what = "a host: write git.example.com or git.example.com:8443, without scheme or path"
    if "/" in text or "@" in text:
        raise ValueError(f"is not {what}")
    if "*" in text:
        raise ValueError(f"is not {what}; wildcards are not supported, list each name")
    name, colon, port = text.rpartition(":")
    if colon and not (text.startswith("[") and text.endswith("]")):
        host = _parse_host(name, what)
        return f"[{host}]:{_parse_port(port, 1)}" if ":" in host else f"{host}:{_parse_port(port, 1)}"
    host = _parse_host(text, what)
    return f"[{host}]" if ":" in host else host


def parse_network(text: str) -> Network:
    """``10.20.0.0/16``, ``2001:db8::/32``, or a single address."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        right = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is not a network: write CIDR, for example 10.20.0.0/16 or 2001:db8::/32") from None
    raise ValueError(f"has bits set beyond its prefix; did you mean `{right}`?")


# URLs


def parse_base_url(text: str) -> BaseUrl:
    """``https://gitlab.internal``, with the relative-URL prefix if GitLab has one."""
    what = "a URL: write scheme, host and, for a relative-URL install, the prefix, for example https://gitlab.internal"
    found = _URL.fullmatch(text)
    if found is None:
        near = f"; did you mean `https://{text}`?" if text and _HOST_NAME.match(text) else ""
        raise ValueError(f"is not {what}{near}")
    scheme, authority, path, rest = found[1].lower(), found[2], found[3], found[4]
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("has a scheme other than http and https")
    if "@" in authority:
        raise ValueError("holds a user or password: callers and `credentials` authenticate, the URL does not")
    if rest:
        raise ValueError("has a query or fragment: only scheme, host and prefix belong here")
    if not _URL_PATH.fullmatch(path) or any(segment in {".", ".."} for segment in path.split("/")):
        raise ValueError("has a path that is not a plain prefix such as /gitlab")
    if path.rstrip("/").endswith(("/api/v4", "/api")):
        raise ValueError("ends in /api: give GitLab's own address; callers bring the /api/v4")
    name, colon, port = authority.rpartition(":")
    if colon and not (authority.startswith("[") and authority.endswith("]")):
        return BaseUrl(scheme, _parse_host(name, what), _parse_port(port, 1), path.rstrip("/"))
    return BaseUrl(scheme, _parse_host(authority, what), _DEFAULT_PORTS[scheme], path.rstrip("/"))


_TLS_OPTION = r"(?:ssl_(?:ca_certs|certfile|keyfile)=/[A-Za-z0-9._~/@+-]+|ssl_check_hostname=(?:true|false))"
_TLS_OPTION_NAMES = "ssl_ca_certs=/FILE, ssl_certfile=/FILE, ssl_keyfile=/FILE, ssl_check_hostname=false"
_SENTINEL_OPTION = r"sentinel_(?:username|password)=[^&#\s]+"
_STORES = (
    "memory:, redis://HOST:PORT/DB, redis+sentinel://HOST:PORT/NAME, redis+cluster://HOST:PORT, one of these with rediss, "
    "or sqlite:///PATH"
)
_REDIS_FORMS = {
    "": ("a Redis address", "after host and port only a database number may follow, as in /0", r"(?:/[0-9]{0,4})?"),
    "sentinel": (
        "an address of Sentinels",
        "write HOST:PORT,HOST:PORT/NAME and, if need be, /DB, where NAME is what they call the primary",
        r"/[A-Za-z0-9._-]{1,64}(?:/[0-9]{0,4})?",
    ),
    "cluster": ("an address of a Redis Cluster", "write HOST:PORT,HOST:PORT; its one database is 0", r"(?:/0?)?"),
}


def parse_store_url(text: str) -> StoreUrl:
    """``memory:``, ``redis://redis:6379/0``, ``rediss://…``, ``redis+sentinel://…``, ``sqlite:///var/lib/…/keys.db``."""
    if text in {"memory:", "memory"}:
        return StoreUrl("memory", Secret("memory:"), "memory:")
    found = _URL.fullmatch(text)
    if found is None:
        raise ValueError(f"is not a store: write {_STORES}")
    scheme, authority, path, rest = found[1].lower(), found[2], found[3], found[4]
    text = scheme + text[len(scheme) :]
    if scheme == "sqlite":
        if authority or len(path) < 2 or rest:
            raise ValueError("is not a SQLite file: write sqlite:/// and an absolute path, three slashes in all")
        return StoreUrl(scheme, Secret(text), text)
    transport, _, form = scheme.partition("+")
    if transport not in {"redis", "rediss"} or form not in _REDIS_FORMS or scheme.endswith("+"):
        raise ValueError(f"has an unknown scheme: write {_STORES}")
    what, how, paths = _REDIS_FORMS[form]
    if not re.fullmatch(paths, path):
        raise ValueError(f"is not {what}: {how}")
    shown_rest, hidden = _shown_options(rest, transport, form, what)
    userinfo, _, places = authority.rpartition("@")
    _readable(userinfo, rest)
    for place in places.split(",") if form else [places]:
        name, colon, port = place.rpartition(":")
        if colon and not (place.startswith("[") and place.endswith("]")):
            _parse_host(name, what)
            _parse_port(port, 1)
        else:
            _parse_host(place, what)
    return StoreUrl(scheme, Secret(text), f"{scheme}://{places}{path}{shown_rest}", password=bool(userinfo) or hidden)


def _readable(userinfo: str, options: str) -> None:
    """Raise ValueError for what the URL parser would refuse in users and passwords, or silently drop."""
    try:
        (userinfo + options).encode()
        urlsplit(f"redis://{userinfo}@redis")
        if any(mark in userinfo for mark in "\t\r\n"):
            raise ValueError
    except ValueError:
        raise ValueError("holds a user or password that cannot stand in a URL as it is: percent-encode it") from None


def _shown_options(rest: str, transport: str, form: str, what: str) -> tuple[str, bool]:
    """The options that may be shown, and whether there are secret ones. Raises ValueError for an unknown option."""
    if not rest:
        return "", False
    known = [_TLS_OPTION] if transport == "rediss" else []
    if form == "sentinel":
        known.append(_SENTINEL_OPTION)
    options = rest[1:].split("&")
    if rest[0] != "?" or not all(any(re.fullmatch(one, option) for one in known) for option in options):
        if not known:
            raise ValueError(f"is not {what}: {_REDIS_FORMS[form][1]}")
        names = [_TLS_OPTION_NAMES] if transport == "rediss" else []
        names += ["sentinel_username=NAME, sentinel_password=PASSWORD"] if form == "sentinel" else []
        raise ValueError(f"is not {what}: after the database may follow ?{', '.join(names)}, joined by &")
    shown = [option for option in options if not option.startswith("sentinel_")]
    return ("?" + "&".join(shown) if shown else ""), len(shown) < len(options)


# Words


def parse_identifier(text: str) -> str:
    """An id, as audit lines, metrics and `explain` show it. It has no colon, so that none can pose as ``user:42``."""
    if not _IDENTIFIER.fullmatch(text):
        raise ValueError(
            "is not an id: up to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit"
        )
    return text


def parse_field_name(text: str) -> str:
    """The name of a header field."""
    if not _FIELD_NAME.fullmatch(text):
        raise ValueError("is not a header name: letters, digits and dashes")
    return text


def parse_sha256(text: str) -> str:
    """64 hex digits, as `gitlab-gateway keys admin` prints them."""
    if not _SHA256.fullmatch(text):
        raise ValueError("is not a SHA-256 digest: make a key with `gitlab-gateway keys admin` and paste what it prints")
    return text


def parse_route(text: str) -> str:
    """A route of the catalogue, as `gitlab-gateway routes` lists them: ``GET /api/v4/projects/:id``."""
    if not _ROUTE.fullmatch(text):
        raise ValueError("is not a route: write METHOD /path as `gitlab-gateway routes` lists them")
    return text


def parse_method(text: str) -> str:
    """An HTTP method, in capitals."""
    if not _METHOD.fullmatch(text):
        raise ValueError("is not an HTTP method: write it in capitals, for example GET")
    return text


def parse_sink(text: str) -> str:
    """Where audit lines go: ``stdout``, ``stderr`` or ``file:/absolute/path``."""
    if text in {"stdout", "stderr"} or (text.startswith("file:/") and len(text) > 6 and "\0" not in text):
        return text
    raise ValueError("is not a sink: write stdout, stderr or file:/absolute/path")


def parse_path(text: str) -> str:
    """An absolute path, since nobody chooses a service's working directory."""
    if not text.startswith("/") or "\0" in text:
        raise ValueError("is not an absolute path")
    return text


def parse_hook_path(text: str) -> str:
    """A path on the data port that no client of GitLab uses."""
    if _HOOK_PATH.fullmatch(text) is None or text.startswith("/api/"):
        raise ValueError("is not a path for hooks: write one like `/-/gateway/hooks`, outside `/api/`")
    return text


def parse_project(text: str) -> str:
    """A project or group, by number or full path; ``*`` stands for a part of a segment, ``**`` for several segments."""
    path = text.replace("%2F", "/").replace("%2f", "/")
    if not _PROJECT.fullmatch(path):
        raise ValueError("is not a project or group: write its number or its full path, for example platform/api")
    return path


def parse_web_url(text: str) -> str:
    """A URL, unchanged: an issuer's name is compared letter by letter, including a final slash."""
    if _WEB_URL.fullmatch(text) is None or any(mark in text for mark in "?#@"):
        raise ValueError("is not a plain URL: write `https://host` or `https://host/path`")
    return text


def parse_claim(text: str) -> str:
    """A pattern for the whole value of a claim."""
    if not text or len(text) > 1024:
        raise ValueError("is empty" if not text else "is longer than 1024 characters")
    return text
