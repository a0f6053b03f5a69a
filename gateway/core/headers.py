"""Which request fields are forwarded to GitLab, and which the gateway writes itself.

The client's fields are filtered first and ours are added afterwards, so that a client that names our fields in
``Connection`` removes none of them. Every name is judged once and remembered. For responses, see ``response_headers``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

from .credentials import CREDENTIAL_FIELDS
from .errors import Code, Rejection, bad_request
from .messages import Field, Fields, RequestHead, lower, values

# RFC 9110 §7.6.1, and what old agents sent instead. `Proxy-*` is matched as a prefix, in `judge`.
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"}
)
# Written anew for the upstream request; `Expect` has already been met or refused at our own edge.
_REWRITTEN = frozenset({b"host", b"content-length", b"expect", b"x-request-id"})
# What proxies and content networks say of the client's address, in their own words. Rails reads `Client-IP`, and a proxy in
# front of GitLab whatever it is told to (nginx's `real_ip_header`). The address that we vouch for is in `X-Forwarded-For`.
_ADDRESS = frozenset(
    {
        b"client-ip",
        b"x-real-ip",
        b"x-client-ip",
        b"x-client-port",
        b"x-cluster-client-ip",
        b"x-original-forwarded-for",
        b"x-originating-ip",
        b"x-proxyuser-ip",
        b"x-remote-addr",
        b"x-remote-ip",
        # Akamai, Alibaba, App Engine, Azure, Cloudflare, CloudFront, DigitalOcean, Envoy, Fastly, Fly, Imperva, Netlify,
        # Sucuri, Vercel, WebLogic.
        b"true-client-ip",
        b"ali-cdn-real-ip",
        b"x-appengine-user-ip",
        b"x-azure-clientip",
        b"x-azure-socketip",
        b"cf-connecting-ip",
        b"cf-connecting-ipv6",
        b"cf-pseudo-ipv4",
        b"cloudfront-viewer-address",
        b"do-connecting-ip",
        b"x-envoy-external-address",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"incap-client-ip",
        b"x-nf-client-connection-ip",
        b"x-sucuri-clientip",
        b"x-vercel-forwarded-for",
        b"wl-proxy-client-ip",
    }
)
# GitLab, Workhorse, Rack or a proxy in between believes these, so no client may send them.
_SPOOFABLE = _ADDRESS | frozenset(
    {
        b"forwarded",
        b"x-original-url",
        b"x-original-uri",
        b"x-rewrite-url",
        b"x-request-start",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-sendfile",
        b"x-sendfile-type",
        b"x-gitlab-disable-sql-query-limit",
        b"x-gitlab-token",
        b"gitlab-shell-api-request",
        b"gitlab-kas-api-request",
        b"gitlab-agent-api-request",
        b"gitlab-agentk-api-request",
        b"gitlab-pages-api-request",
        b"gitlab-mailroom-api-request",
        b"gitlab-shared-secret",
        b"gitlab-storage-path",
    }
)
_SPOOFABLE_PREFIXES = (b"x-forwarded-", b"x-accel-", b"x-gateway-", b"x-ssl-", b"ssl-client-", b"gitlab-workhorse")
# Bodies are inspected according to these. If `Connection` could name them, they would vanish on the way up, and Rails would
# read another body than the one that was judged.
_NEVER_NOMINATED = frozenset({b"content-type", b"content-encoding"})

PSEUDONYM = b"gateway"
"""What this gateway calls itself in ``Via`` (RFC 9110 §7.6.3)."""
_OWN_VIA = ((b"Via", b"1.1 " + PSEUDONYM), (b"Via", b"1.0 " + PSEUDONYM))
_ACTIONS_BOUND = 2048
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PLAIN_CONNECTION = frozenset({b"keep-alive", b"close", b""})


class FieldAction(enum.IntEnum):
    """What becomes of a field with a given name."""

    DROP = 0
    KEEP = 1
    CONNECTION = 2
    VIA = 3
    TRACE = 4


class _FieldActions(dict[bytes, int]):
    """Name as spelt → action, decided when the name is first seen and remembered up to a bound."""

    __slots__ = ("_judge",)

    def __init__(self, rules: RequestHeaderRules) -> None:
        super().__init__()
        self._judge = rules.judge

    def __missing__(self, name: bytes) -> int:
        action = self._judge(name)
        if len(name) <= 64:
            if len(self) >= _ACTIONS_BOUND:
                self.clear()
            self[name] = action
        return action


class RequestHeaderRules:
    """The filter for one configuration, compiled once.

    Args:
        bypass: GitLab's configured throttle-bypass header, if any: no client may send it.
        attribution: The field that names the caller, if any: no client may send it either.
        trusted: These rules are for peers that are our own proxies: their ``baggage`` passes.
        shared: The gateway is a plain shared cache (no credential stage): credentials, and fields that only GitLab
            believes, are end-to-end fields like any other.
    """

    __slots__ = ("_actions", "_drop", "_trusted", "shared")

    def __init__(
        self,
        *,
        bypass: bytes = b"",
        attribution: bytes = b"",
        trusted: bool = False,
        shared: bool = False,
    ) -> None:
        drop = set(HOP_BY_HOP | _REWRITTEN)
        if not shared:
            drop |= _SPOOFABLE | CREDENTIAL_FIELDS
            drop |= {name.lower() for name in (bypass, attribution) if name}
        self._drop = frozenset(drop)
        self.shared = shared
        self._trusted = trusted
        self._actions = _FieldActions(self)

    def judge(self, name: bytes) -> FieldAction:
        """What becomes of fields named ``name``."""
        key = name.lower()
        if key == b"connection":
            return FieldAction.CONNECTION
        if key == b"via":
            return FieldAction.VIA
        if key in self._drop or key.startswith(b"proxy-"):
            return FieldAction.DROP
        if self.shared:
            # Fields that we write ourselves are ours in every mode.
            return FieldAction.DROP if key.startswith(b"x-forwarded-") or key == b"forwarded" else FieldAction.KEEP
        # Rack folds `_` into `-`: such a twin of any field would be read as that field, past every check and cache key.
        # GitLab's own NGINX drops such names, so no client of GitLab can need them.
        if b"_" in key or key.startswith(_SPOOFABLE_PREFIXES):
            return FieldAction.DROP
        if key in {b"traceparent", b"tracestate"}:
            return FieldAction.TRACE
        if key == b"baggage" and not self._trusted:
            return FieldAction.DROP
        return FieldAction.KEEP

    def forwardable(self, fields: Fields, *, http_10: bool = False) -> list[Field]:
        """The end-to-end fields of a request in wire order, without those that are ours to write, with our ``Via`` last.

        The caller adds Host, forwarded fields, the request id and the credential.

        Raises:
            Rejection: PROXY_LOOP (508); BAD_REQUEST (400) for a ``Connection`` that would change the body's meaning.
        """
        kept: list[Field] = []
        nominated: set[bytes] | None = None
        traced: list[Field] = []
        actions = self._actions
        for field in fields:
            action = actions[field[0]]
            if action == 1:
                kept.append(field)
            elif action == 0:
                continue
            elif action == FieldAction.CONNECTION:
                value = field[1]
                if value not in _PLAIN_CONNECTION:
                    names = _nominated(value)
                    nominated = names if nominated is None else nominated | names
            elif action == FieldAction.VIA:
                _check_loop(field[1])
                kept.append(field)
            else:
                traced.append(field)
                kept.append(field)
        if nominated:
            if not nominated.isdisjoint(_NEVER_NOMINATED):
                raise bad_request(close=True)
            kept = [field for field in kept if lower(field[0]) not in nominated]
        if traced and not _is_sound_trace(values(traced, b"traceparent")):
            kept = [field for field in kept if actions[field[0]] != FieldAction.TRACE]
        kept.append(_OWN_VIA[http_10])
        return kept

    def forwardable_correlation(self, fields: Fields) -> Fields:
        """Those of a request's correlation fields that are forwarded."""
        actions = self._actions
        traced = _is_sound_trace(values(fields, b"traceparent"))
        passing = {int(FieldAction.KEEP), int(FieldAction.TRACE)} if traced else {int(FieldAction.KEEP)}
        return tuple([field for field in fields if actions[field[0]] in passing])


def _check_loop(value: bytes) -> None:
    for entry in value.split(b","):
        received = entry.split(None, 2)
        if len(received) > 1 and received[1].lower() == PSEUDONYM:
            raise Rejection(Code.PROXY_LOOP, 508, "508 Loop Detected", proxy_error="proxy_loop_detected")


def _nominated(value: bytes) -> set[bytes]:
    return {name.strip(b" \t").lower() for name in value.split(b",")}


def _is_sound_trace(parents: list[bytes]) -> bool:
    """W3C Trace Context §3.2: one valid ``traceparent``, or it is dropped and ``tracestate`` with it."""
    if len(parents) != 1:
        return False
    match = _TRACEPARENT.fullmatch(parents[0])
    # Version 00 has exactly four parts; later ones may append more.
    return match is not None and (match[1] is None or not parents[0].startswith(b"00"))


def trace_id(fields: Iterable[Field]) -> str:
    """The trace that a request is part of (W3C Trace Context §3.2.2.3), 32 hex digits; empty where none is named."""
    parents = values(fields, b"traceparent")
    return parents[0][3:35].decode("ascii") if parents and _is_sound_trace(parents) else ""


# Fields written by us


def request_id(received: bytes | None, minted: str, *, trusted: bool) -> str:
    """The request's id: the one received if the peer is trusted and it is well formed, else ``minted``."""
    if trusted and received is not None:
        text = received.decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return minted


_ForwardedKey = tuple[str, bool, bytes]
_FORWARDED: dict[_ForwardedKey, Fields] = {}
_FORWARDED_BOUND = 4096
_ADDRESSES = re.compile(rb"[0-9A-Za-z.:\[\]_ ,\t-]{1,1024}")
_FORWARDED_HOST = re.compile(rb"[0-9A-Za-z.:\[\]_-]{1,261}")


def forwarded_fields(peer: str, host: bytes, *, tls: bool, trusted: bool = False, received: Iterable[Field] = ()) -> Fields:
    """``X-Forwarded-For``, ``-Proto``, ``-Host`` and ``-Port``.

    For any other peer they say what we saw. For a trusted proxy, its ``X-Forwarded-For`` is continued with its own address,
    and its other three fields are believed if well formed. ``Forwarded`` is not written: GitLab doesn't read it.

    Args:
        peer: The address of the connection's peer, without the port; ``unix:…`` is no address, and adds none.
        host: The host the request is for.
        tls: The client's connection to us was TLS.
        trusted: ``peer`` is one of our own proxies.
        received: The request's fields; read only if the peer is trusted.
    """
    key = (peer, tls, host)
    if not trusted:
        fields = _FORWARDED.get(key)
        if fields is None:
            fields = _write_forwarded(peer, host, tls=tls)
            if len(_FORWARDED) >= _FORWARDED_BOUND:
                _FORWARDED.clear()
            _FORWARDED[key] = fields
        return fields
    said: dict[bytes, bytes] = {}
    for name, value in received:
        low = lower(name)
        if low == b"x-forwarded-for" and low in said:
            said[low] += b", " + value
        elif low.startswith(b"x-forwarded-"):
            said[low] = value
    tls = _is_tls(said.get(b"x-forwarded-proto", b""), otherwise=tls)
    claimed_host = said.get(b"x-forwarded-host", b"")
    if _FORWARDED_HOST.fullmatch(claimed_host):
        host = claimed_host
    chain = said.get(b"x-forwarded-for", b"")
    port = said.get(b"x-forwarded-port", b"")
    return _write_forwarded(
        peer,
        host,
        tls=tls,
        chain=chain if _ADDRESSES.fullmatch(chain) else b"",
        port=port if port.isdigit() and len(port) <= 5 else b"",
    )


def client_tls(head: RequestHead) -> bool:
    """Whether the client of a trusted proxy, which sent ``head``, came to that by TLS."""
    said = values(head.fields, b"x-forwarded-proto")
    return _is_tls(said[-1], otherwise=head.tls) if said else head.tls


def _is_tls(proto: bytes, *, otherwise: bool) -> bool:
    """Whether an ``X-Forwarded-Proto`` says so; ``otherwise``: where it says neither."""
    return proto.lower() == b"https" if proto.lower() in {b"http", b"https"} else otherwise


def _write_forwarded(peer: str, host: bytes, *, tls: bool, chain: bytes = b"", port: bytes = b"") -> Fields:
    fields: list[Field] = []
    address = b"" if peer.startswith("unix:") else peer.encode("ascii", "replace")
    addresses = b", ".join(part for part in (chain, address) if part)
    if addresses:
        fields.append((b"X-Forwarded-For", addresses))
    fields.append((b"X-Forwarded-Proto", b"https" if tls else b"http"))
    if host:
        fields.append((b"X-Forwarded-Host", host))
    if not port:
        _, colon, tail = host.rpartition(b":")
        port = tail if colon and tail.isdigit() else (b"443" if tls else b"80")
    fields.append((b"X-Forwarded-Port", port))
    return tuple(fields)


def is_free(name: bytes) -> bool:
    """Whether a field of this name means nothing to HTTP, GitLab or the gateway, so that an operator may use it."""
    key = name.lower()
    taken = HOP_BY_HOP | _REWRITTEN | _SPOOFABLE | CREDENTIAL_FIELDS
    spoofable = key.startswith(_SPOOFABLE_PREFIXES) and not key.startswith(b"x-gateway-")
    return key.startswith(b"x-") and b"_" not in key and key not in taken and not spoofable
