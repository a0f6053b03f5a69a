"""The types of fields: closed sets of words, and texts with a meaning. Each alias carries its parser."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from . import units
from .units import BaseUrl, HostPort, Network, Rate, StoreUrl, ValueType

Duration = Annotated[
    float,
    ValueType("duration", units.parse_duration, units.show_duration, 1.0, r"^(0|[0-9]+(\.[0-9]+)?(ms|s|m|h|d))$"),
]
Size = Annotated[
    int, ValueType("size", units.parse_size, units.show_size, 1 << 20, r"^[0-9]+(B|KiB|MiB|GiB)?$", number=True)
]
RateWords = Annotated[
    Rate,
    ValueType(
        "rate", units.parse_rate, units.show_rate, Rate(1.0, 1.0), r"^[0-9.]+/(s|sec|second|m|min|minute|h|hour|d|day)$"
    ),
]
Bandwidth = Annotated[
    int,
    ValueType(
        "bandwidth", units.parse_byte_rate, units.show_byte_rate, 1 << 20, r"^[0-9]+(B|KiB|MiB|GiB)?/(s|sec|second)$"
    ),
]
Address = Annotated[HostPort, ValueType("host:port", units.parse_host_port, str, HostPort("127.0.0.1", 0))]
Url = Annotated[
    BaseUrl, ValueType("URL", units.parse_base_url, str, BaseUrl("http", "localhost", 80), r"^(https?://|\$\{)")
]
Store = Annotated[
    StoreUrl, ValueType("store URL", units.parse_store_url, lambda store: store.shown, units.parse_store_url("memory:"))
]
Cidr = Annotated[Network, ValueType("CIDR", units.parse_network, str, units.parse_network("::1/128"))]
HookPath = Annotated[str, ValueType("path", units.parse_hook_path, str, "/", r"^/[!-~]+$")]
Host = Annotated[str, ValueType("host", units.parse_host, str, "")]
Id = Annotated[str, ValueType("id", units.parse_identifier, str, "", r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", number=True)]
OptionalId = Annotated[str, ValueType("id", units.parse_identifier, str, "", number=True)]
FieldName = Annotated[str, ValueType("header name", units.parse_field_name, str, "", r"^[A-Za-z0-9-]{1,64}$")]
Sha256 = Annotated[str, ValueType("SHA-256", units.parse_sha256, lambda _: HIDDEN, "", r"^[0-9a-f]{64}$")]
Route = Annotated[str, ValueType("route", units.parse_route, str, "")]
Method = Annotated[str, ValueType("method", units.parse_method, str, "", r"^[A-Z]{1,20}$")]
Sink = Annotated[str, ValueType("sink", units.parse_sink, str, "stdout", r"^(stdout|stderr|file:/.+)$")]
Path = Annotated[str, ValueType("path", units.parse_path, str, "/", r"^(/|\$\{)")]
WebUrl = Annotated[str, ValueType("URL", units.parse_web_url, str, "https://localhost", r"^https?://")]
Claim = Annotated[str, ValueType("claim pattern", units.parse_claim, str, "", number=True)]
Project = Annotated[str, ValueType("project", units.parse_project, str, "", number=True)]

HIDDEN = "(hidden)"


class KeySource(enum.StrEnum):
    """Where an identity's keys come from."""

    ISSUED = "issued"


class OidcPreset(enum.StrEnum):
    """The least that tokens of a well-known kind must say."""

    GITLAB_CI = "gitlab_ci"


class Algorithm(enum.StrEnum):
    """How a workload's token may be signed: with public-key algorithms only, never a shared secret, never ``none``."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    EDDSA = "EdDSA"
    ED25519 = "Ed25519"


class Mode(enum.StrEnum):
    """Whether decisions are applied or only recorded."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class CacheMode(enum.StrEnum):
    """Who shares cached answers."""

    PRIVATE = "private"
    SHARED = "shared"
    OFF = "off"


class CachePlace(enum.StrEnum):
    """Where cached answers are stored."""

    SHARED = "shared"
    MEMORY = "memory"


class OnBuckets(enum.StrEnum):
    """What happens to limits while their store is unavailable."""

    LOCAL = "local"
    OPEN = "open"
    CLOSED = "closed"


class OnCache(enum.StrEnum):
    """What happens to the cache while its store is unavailable."""

    BYPASS = "bypass"


class OnKeys(enum.StrEnum):
    """What happens to gateway keys while their store is unavailable."""

    LAST_KNOWN_GOOD = "last_known_good"
    CLOSED = "closed"


class Durability(enum.StrEnum):
    """When an audit line is safe from a crash."""

    BATCHED = "batched"
    BEFORE_WRITE = "before_write"


class OnAudit(enum.StrEnum):
    """What happens while the audit's sink fails."""

    SPOOL_THEN_BLOCK = "spool_then_block"
    SPOOL_THEN_BLOCK_ALL = "spool_then_block_all"
    DROP = "drop"


class Level(enum.StrEnum):
    """The least severe messages that the operator's log shows."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Keywords(msgspec.Struct, frozen=True):
    """Words that stand for a whole list; attached to a list field's annotation."""

    words: dict[str, tuple[str, ...]]
