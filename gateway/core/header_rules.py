"""What passes through: the fields that go up with a request and come down with its answer, for one configuration.

Fields are stripped first and added afterwards, so what a client names in ``Connection`` can't remove what the gateway
writes (RFC 9110 §7.6.1).
"""

from __future__ import annotations

from collections.abc import Callable

from .attribution import Attribution
from .headers import RequestHeaderRules, client_tls, forwarded_fields
from .messages import Field, Fields, RequestHead, ResponseHead, first, without
from .request_validation import AdmittedRequest
from .response_headers import ResponseHeaderRules

RETRY_AFTER: Field = (b"Retry-After", b"10")
"""Added to a 503 that has none (a maintenance page, a load balancer in front of GitLab): clients left to themselves retry
within a tenth of a second."""
_LENGTH = frozenset({b"content-length"})
_PUBLIC_BOUND = 64
_REPEATED_BOUND = 4096


class HeaderRules:
    """Compiled header rules for both directions.

    Args:
        upstream_host: The Host that GitLab sees; empty: the client's (shared mode).
        external_urls: What GitLab calls itself: addresses at these origins are made to lead back through the gateway.
        public_url: What clients call the gateway; empty: whatever Host they used, by the scheme that they used.
        prefix: GitLab's relative-URL root, which clients use at the gateway as well.
        bypass: GitLab's throttle-bypass header: ours to send, with every request.
        attribution: The field that tells GitLab who asks, and whether the User-Agent tells it, too.
        shared: The gateway is a plain shared cache.
    """

    def __init__(
        self,
        *,
        upstream_host: bytes = b"",
        external_urls: tuple[str, ...] = (),
        public_url: str = "",
        prefix: str = "",
        bypass: bytes = b"",
        attribution: tuple[bytes, bool] | None = None,
        shared: bool = False,
    ) -> None:
        self._attribution = Attribution(attribution[0], user_agent=attribution[1]) if attribution is not None else None
        named = attribution[0] if attribution is not None else b""
        self._up = RequestHeaderRules(bypass=bypass, attribution=named, shared=shared)
        self._up_trusted = RequestHeaderRules(bypass=bypass, attribution=named, shared=shared, trusted=True)
        self._bypass: Fields = ((bypass, b"1"),) if bypass else ()
        self._host: Field | None = (b"Host", upstream_host) if upstream_host else None
        self._external_urls = external_urls
        self._shared = shared
        self._public_url = public_url
        self._prefix = prefix
        self.leaks = 0
        """How many answers held instructions to Workhorse: the gateway is pointed at Puma, past Workhorse."""
        self._down: dict[tuple[bytes, bool], ResponseHeaderRules] = {}
        self._repeated: dict[tuple[Fields, bool], Fields] = {}

    def end_to_end(self, head: RequestHead, admitted: AdmittedRequest) -> Fields:
        """The request's own fields that concern GitLab, without credentials: what a cache may look at."""
        rules = self._up_trusted if admitted.trusted_peer else self._up
        repeated = admitted.repeated
        if not repeated:
            return tuple(rules.forwardable(head.fields, http_10=head.http_10))
        key = (repeated, admitted.trusted_peer)
        fields = self._repeated.get(key)
        if fields is None:
            fields = tuple(rules.forwardable(repeated))
            if len(self._repeated) >= _REPEATED_BOUND:
                self._repeated.clear()
            self._repeated[key] = fields
        return fields

    def forwardable_correlation(self, head: RequestHead, admitted: AdmittedRequest) -> Fields:
        """What marks this one request to whoever traces it, as far as GitLab may have it: what ``end_to_end`` left out."""
        rules = self._up_trusted if admitted.trusted_peer else self._up
        return rules.forwardable_correlation(head.correlation) if head.correlation else ()

    def request_fields(
        self, fields: Fields, head: RequestHead, admitted: AdmittedRequest, credential: Fields, caller: str = ""
    ) -> tuple[Fields, Fields]:
        """All fields that go up except those of the single request, its conditions and correlation: the fields before
        these and the fields after them. They are ``fields`` and what the gateway writes, with the ``caller``'s name if
        GitLab is told it."""
        if self._attribution is not None:
            fields = self._attribution.applied(fields, caller)
        host = self._host or (b"Host", admitted.host)
        forwarded = forwarded_fields(
            head.peer, admitted.host, tls=head.tls, trusted=admitted.trusted_peer, received=head.fields
        )
        return (host, *fields, *forwarded), (*self._bypass, *credential)

    def response_head(self, reply: ResponseHead, head: RequestHead, admitted: AdmittedRequest) -> ResponseHead:
        """The head of GitLab's answer as the client may see it. Raises Rejection UPSTREAM_PROTOCOL."""
        rules = self._rules(admitted, head)
        if reply.status == 204:  # RFC 9110 §8.6: no length at all; a client may wait for octets that nobody sends
            reply = ResponseHead(204, without(reply.fields, _LENGTH), reply.reason)
        if reply.status not in {503, 101}:
            passed = rules.passed(reply)
            if passed is not None:
                return passed
        forwarded = rules.forwardable(reply.fields)
        if forwarded.leaked:
            self.leaks += 1
        if reply.status == 503 and not self._shared and first(reply.fields, b"retry-after") is None:
            forwarded.fields.append(RETRY_AFTER)
        return ResponseHead(reply.status, tuple(forwarded.fields), reply.reason)

    def field_rewriter(self, head: RequestHead, admitted: AdmittedRequest) -> Callable[[bytes, bytes], bytes]:
        """A function of the name (in lower case) and value of a field that may lead to GitLab: the value to pass on."""
        return self._rules(admitted, head).rewritten_field

    def url_rewriter(self, head: RequestHead, admitted: AdmittedRequest) -> Callable[[bytes], bytes | None]:
        """A function that turns an address of GitLab's into the one by which this request's caller reaches it
        (``ResponseHeaderRules.rewritten_url``)."""
        return self._rules(admitted, head).rewritten_url

    def _rules(self, admitted: AdmittedRequest, head: RequestHead) -> ResponseHeaderRules:
        if self._public_url or self._shared:
            key = (b"", False)
        else:
            key = (admitted.host, client_tls(head) if admitted.trusted_peer else head.tls)
        rules = self._down.get(key)
        if rules is None:
            host, tls = key
            public = self._public_url or f"{'https' if tls else 'http'}://{host.decode('latin-1')}{self._prefix}"
            rules = ResponseHeaderRules(external_urls=self._external_urls, public_url=public, shared=self._shared)
            if len(self._down) >= _PUBLIC_BOUND:
                self._down.clear()
            self._down[key] = rules
        return rules
