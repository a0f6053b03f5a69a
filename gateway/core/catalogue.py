"""GitLab's route catalogue: what a request *is*, by method and path segments, never by decoded path."""

from __future__ import annotations

import enum

import msgspec


class Access(enum.StrEnum):
    """What an operation does to GitLab."""

    READ = "read"
    WRITE = "write"


class Surface(enum.StrEnum):
    """Which of GitLab's HTTP surfaces a route belongs to: decides error shapes and which credentials pass untouched."""

    REST = "rest"
    GRAPHQL = "graphql"
    GIT = "git"
    LFS = "lfs"
    PACKAGES = "packages"
    REGISTRY = "registry"
    RUNNER = "runner"
    SCIM = "scim"
    OAUTH = "oauth"
    WEBSOCKET = "websocket"
    KAS = "kas"
    MLFLOW = "mlflow"
    OBSERVABILITY = "observability"
    UNLEASH = "unleash"
    MCP = "mcp"
    WEB_TOKEN = "web-token"  # noqa: S105 — feeds and archives that take a token parameter; not a secret
    LEGACY = "legacy"
    GEO = "geo"
    HEALTH = "health"
    INTERNAL = "internal"
    WEB = "web"
    """The browser's pages: everything outside the catalogue that is not under ``/api/``."""


class Reference(msgspec.Struct, frozen=True, gc=False):
    """A path segment that names a project, group or other thing."""

    index: int
    """Position in ``Target.segments``."""
    kind: str
    """``project`` · ``group`` · ``namespace`` · ``user`` · ``name``."""
    param: str


class Operation(msgspec.Struct, frozen=True, gc=False):
    """One row of the catalogue, or the stand-in for a route it does not know."""

    name: str
    """``METHOD /template``, e.g. ``GET /api/v4/projects/:id``; ``other`` for an unknown route. Also the metric label."""
    access: Access
    surface: Surface
    permissions: tuple[str, ...] = ()
    """GitLab's fine-grained permission names (19.2); empty where a row carries none."""
    references: tuple[Reference, ...] = ()
    known: bool = True
    blocked: bool = False
    """Never reachable through a gateway: ``/api/v4/internal`` and its kin, in every spelling."""
    secret_answer: bool = False
    """The answer carries secrets (CI variables, tokens, triggers, hooks, runners): never stored."""
    side_effect: bool = False
    """A GET that changes something (merge_ref, downloads that are counted): never answered from the cache."""
    binary: bool = False
    """May answer with non-JSON octets or a redirect; its ETag is not trusted (gitlab.md §4.2)."""
    job_token: bool = False
    deploy_token: bool = False
