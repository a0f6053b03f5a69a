"""GitLab's route catalogue: what a request *is*, by method and path segments, never by decoded path.

The rows come from ``gateway/routes``; here they are compiled and looked up. What the gateway never forwards
(``/api/v4/internal`` and its kin) is decided here, too, on segments and before any template, so that no spelling slips by.
"""

from __future__ import annotations

import copy
import enum
import re

import msgspec

from .query import query_parameters
from .route_tree import RouteTree, Span, expand, split
from .target import Target, percent_decode


class Access(enum.StrEnum):
    """What an operation does to GitLab."""

    READ = "read"
    WRITE = "write"


class Surface(enum.StrEnum):
    """Which of GitLab's HTTP surfaces a route belongs to. It decides error shapes and which credentials pass untouched."""

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


class ReferenceKind(enum.StrEnum):
    """What a path segment names."""

    PROJECT = "project"
    GROUP = "group"
    NAMESPACE = "namespace"
    """A group or a user's own namespace."""
    USER = "user"


class Flag(enum.StrEnum):
    """What a row of the data file may say besides its access class."""

    SECRET = "secret"  # noqa: S105 — a flag's name
    MAY_HOLD_SECRET = "may_hold_secret"  # noqa: S105
    SIDE_EFFECT = "side_effect"
    BINARY = "binary"
    BLOCKED = "blocked"
    WIDE = "wide"
    NAMES_IN_BODY = "names_in_body"
    PLACELESS = "placeless"
    JOB_TOKEN = "job_token"  # noqa: S105
    DEPLOY_TOKEN = "deploy_token"  # noqa: S105


class Reference(msgspec.Struct, frozen=True, gc=False):
    """Path segments that name a project, group or user."""

    index: int
    """Position in ``Target.segments``."""
    kind: ReferenceKind
    end: int = 0
    """Where it ends (exclusive) if it spans segments, as in Git's paths; 0 if it is only the segment at ``index``."""
    repository: bool = False
    """Whether it names a Git repository: ``.git``, ``.wiki`` and a snippet's number are no part of the project's path."""
    below: bool = False
    """Whether it may lead below a project: GitLab then takes a beginning of at least two segments that is a project."""

    def value(self, segments: tuple[str, ...]) -> str:
        """The reference as spelt: an id or a path, decoded once."""
        if not self.end:
            return segments[self.index]
        spelt = "/".join(segments[self.index : self.end])
        return _REPOSITORY_SUFFIX.sub("", spelt) if self.repository else spelt


# `Gitlab::RepoPath`: wikis, designs and snippets live under their project's path.
_REPOSITORY_SUFFIX = re.compile(r"(?:/snippets/[0-9]+)?(?:\.wiki|\.design)?(?:\.git)?\Z")


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
    may_hold_secret: bool = False
    """The answer holds a ``runners_token`` for those who may administer what it shows: stored only without that member."""
    side_effect: bool = False
    """A GET that changes something (merge_ref, downloads that are counted): never answered from the cache."""
    binary: bool = False
    """May answer with octets that are not JSON, or a redirect; its ETag is not trusted (Workhorse's was the same for every
    body: GitLab's issue 371991)."""
    wide: bool = False
    """Its answer or its effects may reach beyond the projects and groups that its path names."""
    names_in_body: bool = False
    """Its body may name another project or group (``target_project_id``, ``namespace`` …)."""
    placeless: bool = False
    """It names no project or group, and neither shows nor changes anything of one: the version, an account."""
    job_token: bool = False
    deploy_token: bool = False
    registry: str = ""
    """For an unknown route at a package registry: the registry's address, in the form that begins the names of its rows."""

    @property
    def route(self) -> str:
        """What tells package formats apart: the name or, where that is ``other``, the registry's address."""
        return self.registry or self.name


OTHER = "other"
"""The name of every route the catalogue does not know."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

FORMAT_VERSION = 1

_MEMO_BOUND = 8192
_MEMO_PATH_BYTES = 512

# Git sends exactly this query when it fetches; anything else may be the start of a push.
_FETCH = b"service=git-upload-pack"

# Looked up once: on the hot path, an enum's attribute costs more than the comparison.
_GIT, _WEB, _READ = Surface.GIT, Surface.WEB, Access.READ


class _Row(msgspec.Struct, frozen=True, array_like=True):
    method: str
    template: str
    surface: Surface
    access: Access
    permissions: tuple[str, ...] = ()
    references: dict[str, ReferenceKind] = {}
    flags: tuple[Flag, ...] = ()


class _File(msgspec.Struct, frozen=True):
    version: int
    gitlab: str
    operations: tuple[_Row, ...]


class _Leaf:
    """An operation as one expansion of its template lays it out."""

    __slots__ = ("moving", "operation", "tokens")

    def __init__(self, operation: Operation, tokens: tuple[str, ...]) -> None:
        self.operation = operation
        self.tokens = tokens
        first = next((at for at, token in enumerate(tokens) if token.startswith("*")), len(tokens))
        # References at or after a `*name` are at a different place in each path.
        self.moving = any(reference.index >= first for reference in operation.references)

    def place(self, spans: tuple[Span, ...]) -> Operation:
        """The operation, with its references at their places in this path."""
        starts: list[Span] = []
        at, wild = 0, iter(spans)
        for token in self.tokens:
            span = next(wild) if token.startswith("*") else (at, at + 1)
            starts.append(span)
            at = span[1]
        references = []
        for reference in self.operation.references:
            start, end = starts[reference.index]
            spanning = self.tokens[reference.index].startswith("*")
            references.append(msgspec.structs.replace(reference, index=start, end=end if spanning else 0))
        return msgspec.structs.replace(self.operation, references=tuple(references))


class Catalogue:
    """Every operation, found by method and segments. Look-ups are memoised with a bound."""

    def __init__(self, rows: tuple[_Row, ...], gitlab: str = "") -> None:
        self.gitlab = gitlab
        """The GitLab version the rows describe."""
        self._tree: RouteTree[_Leaf] = RouteTree()
        self._operations: dict[str, Operation] = {}
        self._in_order: tuple[Operation, ...] = ()
        self._memo: dict[tuple[str, bytes], Operation] = {}
        self._by_query: dict[bytes, Operation] = {}
        """Rows that match any project's path, by the one query that they require."""
        for row in rows:
            self._add(row)

    @classmethod
    def decode(cls, data: bytes) -> Catalogue:
        """Compile a data file of ``gateway.routes.build``. Raises ValueError if it is not one, or has another version."""
        try:
            file = msgspec.json.decode(data, type=_File)
        except msgspec.DecodeError as broken:
            raise ValueError(f"not a route catalogue: {broken}") from broken
        if file.version != FORMAT_VERSION:
            raise ValueError(f"route catalogue of version {file.version}; this gateway reads {FORMAT_VERSION}")
        return cls(file.operations, file.gitlab)

    def copy(self) -> Catalogue:
        """Return a catalogue of the same rows, with a memo of its own: the rows, once compiled, never change."""
        other = copy.copy(self)
        other._memo = {}
        return other

    def operations(self) -> tuple[Operation, ...]:
        """Every operation once, ordered by template and method."""
        if not self._in_order:
            rows = self._operations.values()
            self._in_order = tuple(sorted(rows, key=lambda operation: tuple(reversed(operation.name.split(" ", 1)))))
        return self._in_order

    def match(self, method: str, target: Target) -> Operation:
        """What ``method`` on ``target`` is; an unknown route is the operation ``other``, never an error.

        One catalogue serves one relative-URL prefix: the memo's key is the raw path.
        """
        key = (method, target.path)
        found = self._memo.get(key)
        if found is None:
            found = self._find(method, target.segments)
            if found.name == _TOKENS:
                return _as_pull(found) if asks_to_pull(target.query or b"") else found
            if len(self._memo) >= _MEMO_BOUND:
                self._memo.clear()
            if len(target.path) <= _MEMO_PATH_BYTES:
                self._memo[key] = found
        if found.surface is _GIT and found.access is _READ and target.query != _FETCH:
            return _as_push(found)
        if found.surface is _WEB and target.query in self._by_query and method == "GET" and may_be_project(target.segments):
            return _at_project(self._by_query[target.query], target.segments)
        return found

    def find(self, method: str, segments: tuple[str, ...]) -> Operation | None:
        """The row for ``segments``, or None; uses no memo, and does not judge what is blocked."""
        found = self._tree.find(method, segments)
        if found is None:
            return None
        leaf, spans = found
        return leaf.place(spans) if leaf.moving else leaf.operation

    def _find(self, method: str, segments: tuple[str, ...]) -> Operation:
        operation = self.find(method, segments)
        if is_blocked(segments):
            if operation is None:
                return Operation(OTHER, Access.WRITE, Surface.INTERNAL, known=False, blocked=True)
            return msgspec.structs.replace(operation, blocked=True)
        return operation or unknown(method, segments)

    def _add(self, row: _Row) -> None:
        query = row.template.partition("?")[2]
        if query:
            references = tuple(Reference(0, kind, below=True) for kind in row.references.values())
            self._by_query[query.encode("ascii")] = self._operation(row, row.access, references)
            return
        # With a template for every method, the method of each request decides between read and write.
        if row.method == "ANY":
            for method in ("GET", "OPTIONS"):
                self._plant(row, method, row.access)
            self._plant(row, "ANY", Access.WRITE)
        else:
            self._plant(row, row.method, row.access)

    def _plant(self, row: _Row, method: str, access: Access) -> None:
        for path in expand(row.template):
            tokens = split(path)
            references = []
            for index, token in enumerate(tokens):
                name, repository = token.removesuffix(".git"), "repository_path" in token
                kind = row.references.get(name[1:]) if name[:1] in ":*" else None
                if kind is not None:
                    references.append(Reference(index, kind, repository=repository))
            operation = self._operation(row, access, tuple(references))
            self._tree.add(method, tokens, _Leaf(operation, tokens))

    def _operation(self, row: _Row, access: Access, references: tuple[Reference, ...]) -> Operation:
        operation = Operation(
            name=f"{row.method} {row.template}",
            access=access,
            surface=row.surface,
            permissions=row.permissions,
            references=references,
            blocked=Flag.BLOCKED in row.flags,
            secret_answer=Flag.SECRET in row.flags,
            may_hold_secret=Flag.MAY_HOLD_SECRET in row.flags,
            side_effect=Flag.SIDE_EFFECT in row.flags,
            binary=Flag.BINARY in row.flags,
            wide=Flag.WIDE in row.flags,
            names_in_body=Flag.NAMES_IN_BODY in row.flags,
            placeless=Flag.PLACELESS in row.flags,
            job_token=Flag.JOB_TOKEN in row.flags,
            deploy_token=Flag.DEPLOY_TOKEN in row.flags,
        )
        self._operations.setdefault(operation.name, operation)
        return operation


def unknown(method: str, segments: tuple[str, ...]) -> Operation:
    """The stand-in for a route the catalogue lacks: GitLab adds routes with every release and answers for them itself."""
    access = Access.READ if method in SAFE_METHODS else Access.WRITE
    operation = _UNKNOWN[access, _surface(segments)]
    if operation.surface is Surface.PACKAGES:
        return msgspec.structs.replace(operation, registry=_registry(method, segments))
    return operation


def _surface(segments: tuple[str, ...]) -> Surface:
    if segments[:2] == ("api", "v4"):
        return _below_api(segments[2:])
    if segments[:1] == ("api",):
        return Surface.REST
    if segments[:1] == ("v2",):
        return Surface.REGISTRY  # no group can be called so
    for at, segment in enumerate(segments[:-1]):
        if segment.endswith(".git"):
            after = segments[at + 1 : at + 3]
            return Surface.LFS if after[0] == "gitlab-lfs" or after == ("info", "lfs") else Surface.GIT
    return Surface.WEB


def _below_api(segments: tuple[str, ...]) -> Surface:
    """The surface of a path under ``/api/v4``. Everything below a registry's address belongs to that registry: clients ask
    there for more than GitLab has or describes, such as the artifacts of virtual registries (and their container images,
    `/v2/virtual_registries`)."""
    if segments[:1] in _OWNERS:
        segments = segments[2:]
        if segments[:2] == ("ml", "mlflow"):
            return Surface.MLFLOW
        if segments[:1] == ("-",):
            segments = segments[1:]
    if segments[:1] in _REGISTRIES:
        segments = segments[1:]
    return Surface.PACKAGES if segments[:1] == ("packages",) and len(segments) > 1 else Surface.REST


def _registry(method: str, segments: tuple[str, ...]) -> str:
    """``PUT /api/v4/projects/:id/packages/npm/*`` for any path below that; "" for an unknown format."""
    template = (*segments[:3], ":id", *segments[4:]) if segments[2:3] in _OWNERS else segments
    end = template.index("packages") + 2
    return f"{method} /{'/'.join(template[:end])}/*" if template[end - 1] in _FORMATS else ""


_FORMATS = frozenset(
    {"cargo", "composer", "conan", "debian", "generic", "go", "helm", "maven", "ml_models", "npm", "nuget", "pypi", "rpm"}
    | {"rubygems", "terraform"}
)
_OWNERS = (("projects",), ("groups",), ("group",))
_REGISTRIES = (("virtual_registries",), ("dependency_proxy",))

_UNKNOWN = {
    (access, surface): Operation(OTHER, access, surface, known=False)
    for access in Access
    for surface in (Surface.REST, Surface.GIT, Surface.LFS, Surface.WEB, Surface.PACKAGES, Surface.REGISTRY, Surface.MLFLOW)
}


def _as_push(operation: Operation) -> Operation:
    if operation.name.endswith("/info/refs"):
        return msgspec.structs.replace(operation, access=Access.WRITE)
    return operation


# Clients of the container registry say in the query what they want their token to open.
_TOKENS = "GET /jwt/auth"
_PULLED = rb"repository:[A-Za-z0-9._/-]+:pull"
_PULLS = re.compile(_PULLED + rb"(?: " + _PULLED + rb")*")


def asks_to_pull(query: bytes) -> bool:
    """Whether the token allows only pulls of images from the container registry or, when a client logs in, nothing."""
    parameters = [parameter for parameter in query_parameters(query) if parameter.name in {"service", "scope"}]
    return (
        all(parameter.plain for parameter in parameters)
        and [parameter.value for parameter in parameters if parameter.name == "service"] == [b"container_registry"]
        and all(_PULLS.fullmatch(parameter.value) for parameter in parameters if parameter.name == "scope")
    )


def _as_pull(operation: Operation) -> Operation:
    return msgspec.structs.replace(operation, access=Access.READ)


# Go asks at any path of a project, or below one, where the repository is (`?go-get=1`; `Gitlab::Middleware::Go`).
_TOP_LEVEL = re.compile(
    r"-|\.well-known|[0-9]{3}\.html|admin|api|apple-touch-icon\.png|assets|dashboard|deploy\.html|explore|favicon\.(?:ico|png)"
    r"|files|groups|health_check|help|import|jwt|login|oauth|profile|projects|public|robots\.txt|s|search"
    r"|sitemap(?:\.xml(?:\.gz)?)?|slash-command-logo\.png|snippets|unsubscribes|uploads|users|v2",
    re.IGNORECASE,
)
"""Names that no group can have (``Gitlab::PathRegex``)."""
_PROJECT_WORD = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*(?<!\.git)(?<!\.atom)")


def may_be_project(segments: tuple[str, ...]) -> bool:
    """Whether GitLab may take ``segments`` for a project's path, or for a path below one."""
    return (
        len(segments) >= 2
        and _TOP_LEVEL.fullmatch(segments[0]) is None
        and all(_PROJECT_WORD.fullmatch(segment) for segment in segments)
    )


def _at_project(operation: Operation, segments: tuple[str, ...]) -> Operation:
    spans = tuple(msgspec.structs.replace(reference, end=len(segments)) for reference in operation.references)
    return msgspec.structs.replace(operation, references=spans)


# What no client of a gateway has any business with -------------------------------------------------------------------

_BLOCKED_API = frozenset({"internal", "geo", "container_registry_event"})
_BLOCKED_INSTANCE = frozenset({"health", "health_check", "liveness", "readiness", "metrics", "chaos"})
_VERSION = re.compile(r"v[0-9]+")
_SEPARATORS = re.compile(r"[/\\]+")


def is_blocked(segments: tuple[str, ...]) -> bool:
    """Whether it is ``/api/vN/internal``, ``/api/vN/geo``, a health or a metrics page, however it is spelt.

    Judged more broadly than GitLab routes: letter case, a format suffix, path parameters after ``;``, separators and
    escapes that survived the one decoding are all seen through, in case something between here and Rails does so, too.
    """
    if segments[:2] == ("api", "v4") and len(segments) > 2:
        third = segments[2]
        if third.isidentifier() and third.isascii() and third.islower():
            return third in _BLOCKED_API  # such a word leaves nothing to see through
    words = _plain(segments[:4])
    if len(words) >= 3 and words[0] == "api" and _VERSION.fullmatch(words[1]):
        return words[2] in _BLOCKED_API
    return len(words) >= 2 and words[0] == "-" and words[1] in _BLOCKED_INSTANCE


def _plain(segments: tuple[str, ...]) -> list[str]:
    path = "/".join(segments)
    if "%" in path:
        octets = path.encode("utf-8", "surrogateescape")
        for _ in range(3):
            octets = percent_decode(octets)
        path = octets.decode("utf-8", "surrogateescape")
    words = (_word(piece) for piece in _SEPARATORS.split(path))
    return [word for word in words if word]


def _word(piece: str) -> str:
    return piece.partition(";")[0].strip(". \t\r\n\0").partition(".")[0].strip().casefold()
