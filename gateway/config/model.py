"""The whole configuration as frozen values. The decoder, the schema and the documentation's test read the annotations.

A field's docstring is its description: editors show it, `gitlab-gateway schema` prints it, and `docs/configuration.md`
repeats it word for word. Nothing here parses.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..core.access import PrincipalKind, Priority
from ..core.catalogue import Access, Surface
from ..core.rule_match import Lists
from ..core.secret import Secret
from ..identity.settings import Passthrough
from .admin_model import Admin
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
    Sink,
    Size,
    Store,
    Url,
)

# upstream


class Timeouts(Section, frozen=True):
    """How long the gateway waits for GitLab."""

    connect: Duration = 2.0
    """Longest time to open a connection to GitLab: name lookup, TCP and TLS handshakes together; more is 504."""
    first_byte: Duration = 60.0
    """Longest wait for an answer's head after the request's end; more is 504. Git, LFS and runners always get 5 minutes."""
    idle: Duration = 300.0
    """Longest pause in an answer's body; then it is cut off. Also how long GitLab may accept none of a request's body."""
    tunnel_idle: Duration = 3600.0
    """How long a WebSocket through which nothing moves stays open; GitLab's own NGINX waits as long."""


class Breaker(Section, frozen=True):
    """Circuit breaker: when to stop sending requests to a GitLab that fails."""

    window: Duration = 30.0
    """Length of the breaker's sliding window: requests that ended longer ago no longer count."""
    min_requests: int = 20
    """Fewer requests than this within `window` never open the breaker."""
    error_ratio: float = 0.5
    """Share of failed requests within `window` at which the breaker opens; more than 0, at most 1."""
    open_for: Duration = 10.0
    """How long the breaker stays open; then one request is let through as a probe."""


class Upstream(Section, frozen=True):
    """Where GitLab is, and how the gateway talks to it."""

    url: Url
    """GitLab's address, as the gateway reaches it. Its path is the relative-URL prefix of the installation."""
    external_url: Url | None = None
    """GitLab's own name for itself (its `external_url`), if that is not `listen.public_url`: links to it are rewritten to
    lead back through the gateway."""
    timeouts: Timeouts = Timeouts()
    """How long the gateway waits for GitLab."""
    max_in_flight: int = 200
    """Maximum number of requests at GitLab at one time; further ones wait for at most 5 seconds, then get 503."""
    adaptive: bool = True
    """Allow fewer than `max_in_flight` requests at GitLab while it answers more slowly than it used to."""
    max_tunnels: int = 1000
    """Maximum number of WebSockets at one time, in addition to `max_in_flight` and including handshakes that GitLab has not
    answered yet; more are 503. As many long polls of runners and watches of clusters may wait in addition; beyond that
    number they take places of `max_in_flight`."""
    breaker: Breaker = Breaker()
    """Circuit breaker: when to stop sending requests to a GitLab that fails."""
    ca_file: Path | None = None
    """PEM file of the authorities that may sign GitLab's certificate; if absent, the system's."""
    attribution: Attribution | None = None
    """How GitLab's own logs learn which caller made a request; if absent, they show only the credential."""
    rewrite_json: bool = False
    """Also rewrite GitLab's addresses of itself in JSON answers (`web_url`, `http_url_to_repo`, `_links` and the like) to
    lead back through `listen.public_url`. Of no use if that is GitLab's own `external_url`."""
    throttle_bypass_header: FieldName | None = None
    """The header named by GitLab's `GITLAB_THROTTLE_BYPASS_HEADER`: sent as `1` with every forwarded request, and removed
    when a client sends it."""


# listen


class ListenLimits(Section, frozen=True):
    """Limits on connections and requests, applied before anything is known about the client."""

    target_bytes: Size = 16 << 10
    """Maximum size of a request target; more is 414."""
    field_bytes: Size = 16 << 10
    """Maximum size of a single header line; more is 431."""
    header_bytes: Size = 64 << 10
    """Maximum size of all header lines together; more is 431."""
    headers: int = 200
    """Maximum number of header lines; more is 431."""
    request_head: Duration = 15.0
    """Longest time for a whole request head to arrive, from its first octet (on a new connection, from its opening); then
    the connection is closed."""
    body_idle: Duration = 10.0
    """Longest pause between two reads of a request's body; more is 408."""
    body_rate: Size = 1 << 10
    """Minimum rate of a request's body, per second. A body may fall at most 30 seconds behind it; more is 408. Time in
    which GitLab accepts no data does not count. `0`: no minimum."""
    idle: Duration = 75.0
    """How long a kept-alive connection may wait for its next request; then it is closed."""
    connections: int = 0
    """Maximum open connections in all; more are closed at once. `0`: as many as there are file descriptors for, minus those
    kept for GitLab and for the gateway itself."""
    connections_per_peer: int = 0
    """Maximum open connections from one address; more are closed at once. `trusted_proxies` are exempt. `0`: no limit."""


class ListenDrain(Section, frozen=True):
    """How the gateway shuts down on SIGTERM."""

    notice: Duration = 0.0
    """How long `/readyz` answers 503 before the data port closes, so that a load balancer stops sending in time."""
    deadline: Duration = 25.0
    """How long requests in progress have to finish once the data port has closed; those without an answer by then get 503
    or 504, others are cut off."""


class ListenTls(Section, frozen=True):
    """The gateway's own certificate. The files are read again on SIGHUP, and within seconds of a change."""

    cert_file: Path
    """PEM file with the certificate, followed by the intermediate certificates between it and its root."""
    key_file: Path
    """PEM file with the certificate's private key, without a passphrase."""


class Listen(Section, frozen=True):
    """Where the gateway listens, and which peers it trusts."""

    address: Address = HostPort("127.0.0.1", 8080)
    """Address of the data port, which serves clients. By default it is reachable from this machine only; `0.0.0.0:8080`
    listens on every address."""
    admin: Address = HostPort("127.0.0.1", 9901)
    """Address of the admin port: `/livez`, `/readyz`, `/metrics`. It must not be that of the data port."""
    public_url: Url | None = None
    """URL by which clients reach the gateway. Requests for any host but this one and `hosts` get 421; if absent, any valid
    Host is answered."""
    hosts: tuple[Host, ...] = ()
    """Further hosts that the gateway answers to, in addition to that of `public_url`."""
    trusted_proxies: tuple[Cidr, ...] = ()
    """Peers whose `X-Forwarded-*` fields are believed: load balancers in front of the gateway, nobody else."""
    tls: ListenTls | None = None
    """Certificate for TLS on the data port; if absent, plain HTTP: for use behind a proxy, or from this machine only."""
    workers: int = 1
    """Number of processes that serve requests, at most 64; more than one requires `stores.shared` on Redis."""
    limits: ListenLimits = ListenLimits()
    """Limits on connections and requests, applied before anything is known about the client."""
    drain: ListenDrain = ListenDrain()
    """How the gateway shuts down on SIGTERM."""

    @property
    def idle_s(self) -> float:
        """Seconds after which a connection on which nothing arrives has been closed."""
        return max(self.limits.idle, self.limits.request_head)


# secrets, stores


class Secrets(Section, frozen=True):
    """The gateway's own secret keys. Absent ones are made once in `state_dir`; shared stores require them here."""

    pepper: Secret | None = None
    """Key of the hashes under which gateway keys are stored. Changing it revokes every gateway key."""
    encryption_key: Secret | None = None
    """Key that encrypts cached answers in shared stores, and rotated tokens. Changing it empties the cache; rotated tokens
    need the previous key in `decryption_keys`."""
    decryption_keys: tuple[Secret, ...] = ()
    """Further keys that decrypt rotated tokens while `encryption_key` is being changed; nothing is encrypted with them."""
    audit_key: Secret | None = None
    """Key of the credential fingerprints in logs and audit, and of `audit.chain`. Changing it changes all fingerprints."""


class OnError(Section, frozen=True):
    """What happens while a store is unavailable."""

    buckets: OnBuckets = OnBuckets.LOCAL
    """While the limits' store is unavailable, `local`: each gateway enforces its share of every limit; `open`: no limits;
    `closed`: 503."""
    cache: OnCache = OnCache.BYPASS
    """While the cache's store is unavailable, `bypass`: GitLab is asked."""
    keys: OnKeys = OnKeys.LAST_KNOWN_GOOD
    """While the key store is unavailable, `last_known_good`: keys seen in the last 10 minutes go on working, others get
    503; `closed`: all get 503."""


class Stores(Section, frozen=True):
    """Where the gateway keeps its state."""

    shared: Store = parse_store_url("memory:")
    """For buckets and cache: `memory:`, `redis://HOST:PORT/DB`, `rediss://…`, `redis+sentinel://…`, `redis+cluster://…`."""
    keys: Store | None = None
    """For gateway keys: `sqlite:///PATH`, `redis://…`; if absent, `shared` if that is Redis, else a file in `state_dir`."""
    credentials: Store | None = None
    """For upstream tokens made by rotation, encrypted: `sqlite:///PATH`, `redis://…`; if absent, `shared` if that is Redis,
    else a file in `state_dir`."""
    on_error: OnError = OnError()
    """What happens while a store is unavailable."""


# who is calling


class Verify(Section, frozen=True):
    """How long GitLab's judgement of a token is believed."""

    ttl: Duration = 30.0
    """How long GitLab's acceptance of a token is believed: a revoked one may go on working here for as long."""
    negative_ttl: Duration = 5.0
    """How long a token that GitLab did not accept is refused without asking again."""
    stale: Duration = 600.0
    """While GitLab does not answer, tokens that it accepted within this time go on working; others are refused with 503."""


class Bind(Section, frozen=True):
    """Networks from which an identity may call."""

    cidr: tuple[Cidr, ...]
    """Networks from which the identity may call; a credential used from elsewhere is refused as if unknown."""


class Identity(Section, frozen=True):
    """One kind of caller, recognised by exactly one of `key`, `oidc`, `gitlab_token` and `anonymous`."""

    id: Id
    """Name of the identity in rules, audit and metrics."""
    team: OptionalId = ""
    """Name of the team whose bucket the identity shares in limits `by: team`."""
    priority: Priority = Priority.INTERACTIVE
    """Whose requests go first when places at GitLab are short: `critical` has a reserve, `background` is refused first."""
    key: KeySource | None = None
    """`issued`: callers with gateway keys, made with `gitlab-gateway keys new ID`. They may do only what a rule allows."""
    oidc: Oidc | None = None
    """Workloads with a token signed by their issuer. They may do only what a rule allows; if several identities fit, the
    first is the caller."""
    gitlab_token: bool = False
    """Callers with a GitLab token of their own: GitLab verifies it, receives it, and decides what they may do."""
    anonymous: bool = False
    """Callers without a credential; if no identity is for them, they get 401."""
    verify: Verify | None = None
    """For `gitlab_token`: how long GitLab's judgement of a token is believed."""
    session: Session | None = None
    """For `oidc`: the credential that `POST /-/gateway/token` gives in exchange for a workload's token."""
    bind: Bind | None = None
    """Networks from which the identity may call; if absent, any."""

    @property
    def kind(self) -> PrincipalKind:
        """The way in which this identity's callers are recognised."""
        if self.gitlab_token:
            return PrincipalKind.GITLAB_TOKEN
        if self.oidc is not None:
            return PrincipalKind.OIDC
        return PrincipalKind.ANONYMOUS if self.anonymous else PrincipalKind.KEY


# what they may do


class Within(Section, frozen=True):
    """Everything in one or more groups."""

    under_group: Project | tuple[Project, ...]
    """A group, or a list of groups, by number or full path; their subgroups at any depth are included."""


class Clause(Section, frozen=True):
    """Conditions that must all hold. One that is left out holds; at least one must be given."""

    access: Access | None = None
    """Class of the operation in the route catalogue: `read`, or `write`, which includes read. Unknown routes are writes."""
    methods: tuple[Method, ...] | None = None
    """HTTP methods, one of which the request must have."""
    routes: tuple[Route, ...] | None = None
    """Routes, one of which the request must match: `/template` or `METHOD /template`, as `gitlab-gateway routes` lists
    them; a final `**` stands for any remainder."""
    permissions: tuple[str, ...] | None = None
    """GitLab's own fine-grained permissions: an allow must name all that the operation needs, a deny any one of them."""
    surfaces: tuple[Surface, ...] | None = None
    """GitLab's HTTP surfaces (`rest`, `git` …), one of which the route must belong to."""
    projects: tuple[Project, ...] | Within | None = None
    """Projects by number or full path (`*` within a segment, `**` across), or everything `under_group`."""
    lists: Lists | None = None
    """Has effect only in an allow with `projects`: what happens to lists that show more than these (`/projects`, `/search`
    …). `refuse` (the default): they are refused; `filter`: each page is sent without what lies elsewhere."""


class Rule(Section, frozen=True):
    """Which identities may do what, and as whom GitLab sees them. Any deny wins over any allow."""

    id: Id
    """Name of the rule in audit and `explain`."""
    for_: tuple[Id, ...] = msgspec.field(name="for")
    """Ids of the identities to which the rule applies; `passthrough` is possible in rules that only deny."""
    use: OptionalId = ""
    """Id of the credential that GitLab sees; required with `allow`."""
    allow: tuple[Clause, ...] = ()
    """What is permitted: requests for which one of these clauses holds."""
    deny: tuple[Clause, ...] = ()
    """What is refused, whatever other rules allow: requests for which one of these clauses holds."""
    sudo: Annotated[tuple[str, ...], Keywords({"never": ()})] = ()
    """`never`, or the users (names or numbers) that a caller's `Sudo` may name; requires a credential with `sudo: true`."""
    mode: Mode = Mode.ENFORCE
    """`enforce`, or `shadow`: what the rule decides is recorded, but not applied."""


# cache, audit, logging


class CacheRoute(Section, frozen=True):
    """The lifetime of one route's answers."""

    match: Route
    """A GET of the route catalogue: `GET /api/v4/projects/:id`."""
    ttl: Duration
    """How long the route's answers are reused without asking GitLab, within `access_ttl`."""


class Hooks(Section, frozen=True):
    """GitLab's webhooks and system hooks: what they report as changed is purged."""

    secret: Secret
    """Secret token that GitLab sends as `X-Gitlab-Token`, at least 16 characters; one that begins with `whsec_` is a
    signing token, and GitLab's signature is required instead."""
    path: HookPath = "/-/gateway/hooks"
    """Path on the data port to which GitLab sends its hooks."""
    hold: Duration = 3.0
    """How long, after a purge, what it removed is not stored again: GitLab's read replicas may be behind."""
    max_silence: Duration = 900.0
    """When no hook has come for this long, at any gateway on the same store, every reuse is revalidated, except for what
    `immutable` covers."""


class Cache(Section, frozen=True):
    """How GitLab's answers are cached."""

    mode: CacheMode = CacheMode.PRIVATE
    """`private`: a cache per credential; `shared`: a plain RFC 9111 shared cache, no credential stage; `off`: no cache."""
    store: CachePlace = CachePlace.SHARED
    """Where answers are stored: `shared`: in `stores.shared`; `memory`: in this gateway, even if buckets are in Redis. A
    purge by one gateway then does not reach the others."""
    ttl: Duration = 0.0
    """How long answers are reused without asking GitLab, within `access_ttl`. `0s`: every reuse is revalidated, which costs
    GitLab little and is never stale."""
    access_ttl: Duration = 60.0
    """GitLab is asked at least this often whether a caller may see a stored answer, however long its body is kept."""
    routes: tuple[CacheRoute, ...] = ()
    """Lifetimes of single routes, which take precedence over `ttl`."""
    immutable: bool = True
    """Reuse answers that a full commit SHA names until `access_ttl`, whatever `ttl` says."""
    hooks: Hooks | None = None
    """Purging by GitLab's webhooks; if absent, only lifetimes and writes through the gateway end stored answers."""
    stale_if_error: Duration = 0.0
    """How long an expired answer may be served, marked as stale, while GitLab fails. `0s`: never."""
    max_entry: Size = 2 << 20
    """Maximum size of a stored answer; larger ones are passed on without being stored."""
    max_bytes: Size = 256 << 20
    """Maximum size of the memory store, all entries together."""
    near_bytes: Size = 32 << 20
    """Maximum size, in each worker, of the copies kept in front of a shared store, which are reused without asking Redis.
    `0B`: no copies."""


class AuditFiles(Section, frozen=True):
    """Rotation of the audit file by the gateway itself. A rename by anything else is followed without this section."""

    size: Size
    """Maximum size of the file: one that would grow past it is renamed to `PATH.1`, and the number of each earlier one goes
    up by one."""
    keep: int = 10
    """How many rotated files are kept."""


class Audit(Section, frozen=True):
    """The audit: one JSON line per request."""

    sink: Sink = "stdout"
    """Where lines are written: `stdout`, `stderr` or `file:/absolute/path`."""
    chain: bool = False
    """Give each line a MAC over itself and the line before it, keyed by `secrets.audit_key`: `audit verify` then finds what
    was removed, changed or moved."""
    durability: Durability = Durability.BATCHED
    """`batched`: a killed gateway loses at most 50 ms of lines; `before_write`: in addition, a request that changes
    something is forwarded to GitLab only once a line about it is on disk."""
    on_failure: OnAudit = OnAudit.SPOOL_THEN_BLOCK
    """While the sink fails: `spool_then_block`: lines wait in `state_dir`, and when there is no room left, requests that
    change something get 503; `spool_then_block_all`: then reads do, too; `drop`: lines are lost and counted, and nothing is
    refused."""
    spool: Size = 64 << 20
    """Maximum size of the file in `state_dir` in which lines wait."""
    rotate: AuditFiles | None = None
    """Rotation of the file by the gateway itself; if absent, it grows until something else rotates it."""


class Logging(Section, frozen=True):
    """The operator's log, on standard error."""

    level: Level = Level.INFO
    """Minimum severity of the messages. `warning` is for what somebody must act on; `debug` adds nothing to `info`."""


class Config(Section, frozen=True):
    """The whole configuration."""

    version: int
    """Version of this file format; always 1."""
    upstream: Upstream
    """Where GitLab is, and how the gateway talks to it."""
    listen: Listen = Listen()
    """Where the gateway listens."""
    state_dir: Path = ""
    """Directory for what must survive a restart, created with mode 0700. If absent, `$XDG_STATE_HOME/gitlab-gateway`."""
    secrets: Secrets = Secrets()
    """The gateway's own secret keys."""
    admin: Admin = Admin()
    """Who may use the admin port for more than probes and metrics."""
    stores: Stores = Stores()
    """Where the gateway keeps its state."""
    identities: tuple[Identity, ...] = (Identity(id="people", gitlab_token=True),)
    """Who may call. If absent: everybody with a GitLab token of their own, nobody else."""
    passthrough: Annotated[tuple[Passthrough, ...], Keywords({"all": tuple(Passthrough), "none": ()})] = tuple(Passthrough)
    """Credentials that only GitLab can judge, let through on the surfaces they are meant for: `all`, `none` or a list."""
    credentials: tuple[Credential, ...] = ()
    """What GitLab sees instead of a gateway key or a workload's token."""
    rules: tuple[Rule, ...] = ()
    """What callers with gateway keys and workloads may do, and what nobody may."""
    limits: tuple[LimitEntry, ...] = ()
    """How much callers may ask. If absent, nothing is enforced and a nominal limit is advertised."""
    limits_mode: Mode = Mode.ENFORCE
    """`enforce`, or `shadow`: every limit is counted and measured, but none refuses a request."""
    costs: tuple[CostEntry, ...] = ()
    """Costs of operations in limits with `cost: weighted`; they override the gateway's own table."""
    cache: Cache = Cache()
    """How GitLab's answers are cached."""
    audit: Audit = Audit()
    """The audit: one JSON line per request."""
    logging: Logging = Logging()
    """The operator's log, on standard error."""

    @property
    def cache_is_shared(self) -> bool:
        """Whether the cache is in the store that other gateways use, too."""
        return self.stores.shared.shared and self.cache.store is CachePlace.SHARED
