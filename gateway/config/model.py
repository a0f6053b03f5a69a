"""The whole configuration as frozen values. The annotations are read by the decoder, the schema and the docs' test.

A field's docstring is its description: editors show it, and `gitlab-gateway schema` prints it. Nothing here parses.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..core.access import PrincipalKind, Priority
from ..core.catalogue import Access, Surface
from ..core.rule_match import Lists
from ..core.secret import Secret
from ..identity.settings import Passthrough
from .credential_model import Attribution, Credential
from .limit_model import CostEntry, LimitEntry
from .oidc_model import Oidc, Session
from .section import Section
from .units import HostPort, parse_store_url
from .vocabulary import (
    Address,
    CacheMode,
    CachePlace,
    Cidr,
    Durability,
    Duration,
    FieldName,
    HookPath,
    Host,
    Id,
    KeySource,
    Keywords,
    Level,
    Method,
    Mode,
    OnAudit,
    OnBuckets,
    OnCache,
    OnKeys,
    OptionalId,
    Path,
    Project,
    Route,
    Sha256,
    Sink,
    Size,
    Store,
    Url,
)

# upstream


class Timeouts(Section, frozen=True):
    """How long GitLab may take."""

    connect: Duration = 2.0
    """For the TCP and TLS handshakes."""
    first_byte: Duration = 60.0
    """From the last octet of the request to the first of the answer; long polls of runners ask for more by themselves."""
    idle: Duration = 300.0
    """Between two reads of an answer's body."""
    tunnel_idle: Duration = 3600.0
    """For a WebSocket through which nothing moves; GitLab's own NGINX waits as long."""


class Breaker(Section, frozen=True):
    """When to stop asking a GitLab that fails."""

    window: Duration = 30.0
    """Failures older than this are forgotten."""
    min_requests: int = 20
    """Fewer requests than this in the window never open it."""
    error_ratio: float = 0.5
    """The share of failed requests in the window that opens it."""
    open_for: Duration = 10.0
    """Then one request is let through to see."""


class Upstream(Section, frozen=True):
    """Where GitLab is."""

    url: Url
    """GitLab's address as the gateway reaches it. Its path is the relative-URL prefix of the install."""
    external_url: Url | None = None
    """What GitLab believes it is called (its `external_url`), where that is not `listen.public_url`: links that lead there
    are turned to lead back through the gateway."""
    timeouts: Timeouts = Timeouts()
    """How long GitLab may take."""
    max_in_flight: int = 200
    """Requests at GitLab at one time; more wait, then 503."""
    adaptive: bool = True
    """Let fewer than `max_in_flight` up while GitLab answers more slowly than it used to."""
    max_tunnels: int = 1000
    """WebSockets at one time, beside the requests, handshakes that GitLab has not answered yet among them; more are 503. Of
    runners' long polls and watches of clusters as many may wait beside the requests, too; more hold places among them."""
    breaker: Breaker = Breaker()
    """When to stop asking a GitLab that fails."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign GitLab's certificate; absent: the system's."""
    attribution: Attribution | None = None
    """How GitLab's own logs learn who asked; absent: they see the credential alone."""
    rewrite_json: bool = False
    """Turn GitLab's addresses of itself in JSON answers, too (`web_url`, `http_url_to_repo`, `_links` and their like), to
    lead back through `listen.public_url`. Of no use where that is GitLab's own `external_url`."""
    throttle_bypass_header: FieldName | None = None
    """The header named by GitLab's `GITLAB_THROTTLE_BYPASS_HEADER`: sent as `1` with every forwarded request, and removed
    when a client sends it."""


# listen


class ListenLimits(Section, frozen=True):
    """What one client may send, before anything is known about it."""

    target_bytes: Size = 16 << 10
    """Longest request target; more is 414."""
    field_bytes: Size = 16 << 10
    """Longest single header line; more is 431."""
    header_bytes: Size = 64 << 10
    """All header lines together; more is 431."""
    headers: int = 200
    """Number of header lines; more is 431."""
    request_head: Duration = 15.0
    """For a whole request head to arrive, from its first octet."""
    body_idle: Duration = 10.0
    """Between two reads of a request's body; more is 408."""
    body_rate: Size = 1 << 10
    """A second: what a request's body must bring in the long run, after 30 seconds to begin with; less is 408. Time in
    which GitLab takes none does not count. `0`: any will do."""
    idle: Duration = 75.0
    """For the next request on a kept-alive connection."""
    connections: int = 0
    """Open at one time; further ones are closed at once. `0`: as many as there are file descriptors for, less those
    kept for GitLab and the gateway's own."""
    connections_per_peer: int = 0
    """Open at one time from one address; `trusted_proxies` are not counted. `0`: no limit."""


class ListenDrain(Section, frozen=True):
    """How the gateway goes when it is told to (SIGTERM)."""

    notice: Duration = 0.0
    """`/readyz` says 503 for so long before the data port closes, so that a load balancer stops sending in time."""
    deadline: Duration = 25.0
    """Then requests in progress have so long to end; those without an answer by then get 503 or 504, others are cut."""


class ListenTls(Section, frozen=True):
    """A certificate of the gateway's own. Its files are read again on SIGHUP, and within seconds of a change."""

    cert_file: Path
    """PEM: the certificate and those between it and its root."""
    key_file: Path
    """PEM: its key, without a passphrase."""


class Listen(Section, frozen=True):
    """Where clients come in, and which of them are believed."""

    address: Address = HostPort("127.0.0.1", 8080)
    """The data port. This machine only, until told otherwise: `0.0.0.0:8080` for every address."""
    admin: Address = HostPort("127.0.0.1", 9901)
    """The admin port: `/livez`, `/readyz`, `/metrics`. Never the data port."""
    public_url: Url | None = None
    """What clients call the gateway. Its host (and `hosts`) are then the only ones answered; absent: any valid Host."""
    hosts: tuple[Host, ...] = ()
    """Further hosts to answer to, beside that of `public_url`."""
    trusted_proxies: tuple[Cidr, ...] = ()
    """Peers whose `X-Forwarded-*` are believed: load balancers in front of the gateway, nobody else."""
    tls: ListenTls | None = None
    """TLS on the data port; absent: plain HTTP, for a proxy in front or for this machine."""
    workers: int = 1
    """Processes that serve, 64 at most; more than one needs `stores.shared` on Redis."""
    limits: ListenLimits = ListenLimits()
    """What one client may send."""
    drain: ListenDrain = ListenDrain()
    """How the gateway goes when it is told to (SIGTERM)."""

    @property
    def idle_s(self) -> float:
        """A connection on which nothing comes is closed by then."""
        return max(self.limits.idle, self.limits.request_head)


# secrets, admin, stores


class Secrets(Section, frozen=True):
    """The gateway's own keys. Absent ones are made once in `state_dir`; shared stores require them here."""

    pepper: Secret | None = None
    """Keys the hashes under which gateway keys are stored. Changing it revokes every gateway key."""
    encryption_key: Secret | None = None
    """Encrypts cached answers in shared stores, and rotated tokens. Changing it empties the cache, and rotated tokens can't
    be read any more."""
    audit_key: Secret | None = None
    """Keys the credential fingerprints of logs and audit. Changing it makes old and new fingerprints differ."""


class AdminKey(Section, frozen=True):
    """One operator's key to the admin port."""

    id: Id
    """Who it belongs to."""
    sha256: Sha256
    """SHA-256 of the key in hex; `gitlab-gateway keys admin` makes both."""


class Admin(Section, frozen=True):
    """Who may use the admin port for more than probes and metrics."""

    keys: tuple[AdminKey, ...] = ()
    """Without any, `/-/config` and its like do not exist."""


class OnError(Section, frozen=True):
    """Which way each store fails."""

    buckets: OnBuckets = OnBuckets.LOCAL
    """`local`: each gateway counts by itself; `open`: no limits; `closed`: 503."""
    cache: OnCache = OnCache.BYPASS
    """`bypass`: GitLab is asked."""
    keys: OnKeys = OnKeys.LAST_KNOWN_GOOD
    """`last_known_good`: keys seen lately go on working for a bounded time; `closed`: 503."""


class Stores(Section, frozen=True):
    """Where the gateway remembers."""

    shared: Store = parse_store_url("memory:")
    """Buckets and cache: `memory:`, `redis://HOST:PORT/DB`, `rediss://…`, `redis+sentinel://…`, `redis+cluster://…`."""
    keys: Store | None = None
    """Gateway keys: `sqlite:///PATH`, `redis://…`; absent: `shared` when that is Redis, else a file in `state_dir`."""
    credentials: Store | None = None
    """Upstream tokens made by rotation, encrypted: `sqlite:///PATH`, `redis://…`; absent: `shared` when that is Redis,
    else a file in `state_dir`."""
    on_error: OnError = OnError()
    """Which way each store fails."""


# who is calling


class Verify(Section, frozen=True):
    """How long GitLab's word about a token is remembered."""

    ttl: Duration = 30.0
    """A token GitLab knew is asked about again after this: how long a revoked one may go on working here."""
    negative_ttl: Duration = 5.0
    """A token GitLab did not know is refused for this long without asking."""
    stale: Duration = 600.0
    """While GitLab does not answer, tokens verified before go on working for this long; new ones are refused with 503."""


class Bind(Section, frozen=True):
    """Where an identity may call from."""

    cidr: tuple[Cidr, ...]
    """Networks; a credential used from elsewhere is refused as if unknown."""


class Identity(Section, frozen=True):
    """Who is calling: exactly one of `key`, `oidc`, `gitlab_token` and `anonymous`."""

    id: Id
    """Named by rules, audit and metrics."""
    team: OptionalId = ""
    """For limits `by: team`."""
    priority: Priority = Priority.INTERACTIVE
    """Who goes first when GitLab is short of places: `critical` keeps a reserve, `background` is shed first."""
    key: KeySource | None = None
    """`issued`: gateway keys, made with `gitlab-gateway keys new ID`. Denied everything that no rule allows."""
    oidc: Oidc | None = None
    """Workloads with a token of their issuer's. Denied everything that no rule allows; the first identity that fits is the
    caller."""
    gitlab_token: bool = False
    """The caller's own GitLab token, verified by GitLab and passed on; GitLab judges it."""
    anonymous: bool = False
    """Callers without a credential; absent: they get 401."""
    verify: Verify | None = None
    """For `gitlab_token`: how long GitLab's word is remembered."""
    session: Session | None = None
    """For `oidc`: the credential that `POST /-/gateway/token` gives for its token."""
    bind: Bind | None = None
    """Where it may call from; absent: anywhere."""

    @property
    def kind(self) -> PrincipalKind:
        """How its callers are recognised."""
        if self.gitlab_token:
            return PrincipalKind.GITLAB_TOKEN
        if self.oidc is not None:
            return PrincipalKind.OIDC
        return PrincipalKind.ANONYMOUS if self.anonymous else PrincipalKind.KEY


# what they may do


class Within(Section, frozen=True):
    """Everything below a group."""

    under_group: Project | tuple[Project, ...]
    """A group or several, by number or full path; subgroups at any depth are in it."""


class Clause(Section, frozen=True):
    """Conditions that must all hold. A condition left out holds; at least one must be there."""

    access: Access | None = None
    """`read`, or `write` (which includes read), by the route catalogue; an unknown route counts as write."""
    methods: tuple[Method, ...] | None = None
    """HTTP methods."""
    routes: tuple[Route, ...] | None = None
    """`/template` or `METHOD /template`, as `gitlab-gateway routes` lists them; a last `**` is any remainder."""
    permissions: tuple[str, ...] | None = None
    """GitLab's own fine-grained permission names."""
    surfaces: tuple[Surface, ...] | None = None
    """GitLab's HTTP surfaces."""
    projects: tuple[Project, ...] | Within | None = None
    """Projects by number or full path (`*` within a segment, `**` across), or everything `under_group`."""
    lists: Lists | None = None
    """Of an allow with `projects`: what becomes of lists that show more (`/projects`, `/search` …). `refuse` (absent: the
    same), or `filter`: the page is sent without what is elsewhere."""


class Rule(Section, frozen=True):
    """Which identities may do what, and as whom GitLab sees them. Any deny wins over any allow."""

    id: Id
    """Named by audit and `explain`."""
    for_: tuple[Id, ...] = msgspec.field(name="for")
    """Identities; `passthrough` in rules that only deny."""
    use: OptionalId = ""
    """The credential GitLab sees; needed with `allow`."""
    allow: tuple[Clause, ...] = ()
    """One clause that holds is enough."""
    deny: tuple[Clause, ...] = ()
    """One clause that holds refuses the request, whatever other rules allow."""
    sudo: Annotated[tuple[str, ...], Keywords({"never": ()})] = ()
    """`never`, or the users (names or numbers) that `Sudo` may name; needs a credential with `sudo: true`."""
    mode: Mode = Mode.ENFORCE
    """`shadow`: recorded, not applied."""


# cache, audit, logging


class CacheRoute(Section, frozen=True):
    """A lifetime for one route."""

    match: Route
    """A GET of the catalogue: `GET /api/v4/projects/:id`."""
    ttl: Duration
    """For how long its answers are reused without asking, within `access_ttl`."""


class Hooks(Section, frozen=True):
    """GitLab's webhooks and system hooks: what they tell of is purged."""

    secret: Secret
    """What GitLab sends as `X-Gitlab-Token`, 16 characters at least; one that begins with `whsec_` is a signing token, and
    its signature is asked for instead."""
    path: HookPath = "/-/gateway/hooks"
    """Where GitLab sends them, on the data port."""
    hold: Duration = 3.0
    """After a purge, for how long what it took is not stored again: GitLab's read replicas may be behind."""
    max_silence: Duration = 900.0
    """When no hook came for this long, at any gateway on the same store, nothing is reused without asking."""


class Cache(Section, frozen=True):
    """What GitLab need not be asked twice."""

    mode: CacheMode = CacheMode.PRIVATE
    """`private`: one cache per credential; `shared`: a plain RFC 9111 shared cache without a credential stage; `off`."""
    store: CachePlace = CachePlace.SHARED
    """`shared`: where `stores.shared` is; `memory`: in this gateway, though buckets are in Redis. What purges one gateway's
    then purges no other's."""
    ttl: Duration = 0.0
    """For how long answers are reused without asking, within `access_ttl`. `0s`: every reuse is revalidated, which costs
    GitLab little and is never stale."""
    access_ttl: Duration = 60.0
    """However long a body is kept, whether its caller may see it is asked again at least this often."""
    routes: tuple[CacheRoute, ...] = ()
    """Lifetimes of single routes, before `ttl`."""
    immutable: bool = True
    """Answers that a full commit SHA names are reused until `access_ttl`, whatever `ttl` says."""
    hooks: Hooks | None = None
    """Purging by GitLab's webhooks; absent: lifetimes and writes through the gateway alone."""
    stale_if_error: Duration = 0.0
    """For how long an expired answer may stand in while GitLab fails, marked as stale. `0s`: never."""
    max_entry: Size = 2 << 20
    """Larger answers pass unstored."""
    max_bytes: Size = 256 << 20
    """Of the memory store, all entries together."""
    near_bytes: Size = 32 << 20
    """In front of a shared store, in each worker: copies that are reused without asking Redis. `0B`: none."""


class AuditFiles(Section, frozen=True):
    """Rotation of the audit's file by the gateway itself. One that somebody else renames is followed without it."""

    size: Size
    """A file that would grow past this is renamed to `PATH.1`, and those before it one number up."""
    keep: int = 10
    """How many rotated files stay."""


class Audit(Section, frozen=True):
    """The record: one JSON line per request."""

    sink: Sink = "stdout"
    """`stdout`, `stderr` or `file:/absolute/path`."""
    chain: bool = False
    """Each line carries a MAC over itself and the line before it, keyed by `secrets.audit_key`: `audit verify` finds
    what was removed, changed or moved."""
    durability: Durability = Durability.BATCHED
    """`batched`: a killed gateway loses at most 50 ms of lines; `before_write`: besides, what changes something has a line
    on disk before GitLab hears of it."""
    on_failure: OnAudit = OnAudit.SPOOL_THEN_BLOCK
    """While the sink fails, lines wait in `state_dir`; when there is no room, `spool_then_block` refuses what changes
    something (503), `spool_then_block_all` reads too. `drop`: lines are lost and counted, nothing is refused."""
    spool: Size = 64 << 20
    """Of the file in `state_dir` where lines wait."""
    rotate: AuditFiles | None = None
    """Absent: the file grows until somebody else rotates it."""


class Logging(Section, frozen=True):
    """The operator's log, on standard error."""

    level: Level = Level.INFO
    """`debug` explains decisions; `warning` is for what somebody must act on."""


class Config(Section, frozen=True):
    """Everything."""

    version: int
    """Of this format: 1."""
    upstream: Upstream
    """Where GitLab is."""
    listen: Listen = Listen()
    """Where clients come in."""
    state_dir: Path = ""
    """What must survive a restart; created 0700. Absent: `$XDG_STATE_HOME/gitlab-gateway`."""
    secrets: Secrets = Secrets()
    """The gateway's own keys."""
    admin: Admin = Admin()
    """Who may use the admin port for more than probes."""
    stores: Stores = Stores()
    """Where the gateway remembers."""
    identities: tuple[Identity, ...] = (Identity(id="people", gitlab_token=True),)
    """Who is calling. Absent: everybody with a GitLab token of their own, nobody else."""
    passthrough: Annotated[tuple[Passthrough, ...], Keywords({"all": tuple(Passthrough), "none": ()})] = tuple(Passthrough)
    """Credentials only GitLab can judge, let through on their own surfaces: `all`, `none` or a list."""
    credentials: tuple[Credential, ...] = ()
    """What GitLab sees instead of a gateway key."""
    rules: tuple[Rule, ...] = ()
    """What gateway keys may do, and what nobody may."""
    limits: tuple[LimitEntry, ...] = ()
    """How fast. Absent: nothing is enforced and a nominal limit is advertised."""
    limits_mode: Mode = Mode.ENFORCE
    """`shadow`: every limit is counted and measured, none refuses."""
    costs: tuple[CostEntry, ...] = ()
    """What operations weigh for limits with `cost: weighted`, over the gateway's own table."""
    cache: Cache = Cache()
    """What GitLab need not be asked twice."""
    audit: Audit = Audit()
    """The record."""
    logging: Logging = Logging()
    """The operator's log."""

    @property
    def cache_is_shared(self) -> bool:
        """The cache is where other gateways have theirs."""
        return self.stores.shared.shared and self.cache.store is CachePlace.SHARED
