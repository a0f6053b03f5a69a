"""Correlation fields: how clients, proxies and tracers mark each single request.

Their values are new with every request, and GitLab's answer depends on none of them. Two requests that differ in nothing
else are alike, so the edge sets these fields aside (``RequestHead.correlation``): what is remembered of the rest holds for
both. Without that, a load balancer that gives each request an id would leave nothing to remember.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .exchange import Exchange
from .headers import request_id, trace_id
from .messages import Fields, RequestHead, first, lower, values

CORRELATION_FIELDS = frozenset(
    {
        # Ids: nginx, HAProxy, Envoy, Kong, Rails, Heroku, .NET, Varnish.
        b"x-request-id",
        b"x-correlation-id",
        b"x-unique-id",
        b"x-trace-id",
        b"x-span-id",
        b"x-client-trace-id",
        b"x-kong-request-id",
        b"x-vcap-request-id",
        b"x-arr-log-id",
        b"x-varnish",
        b"kong-request-id",
        b"request-id",
        b"correlation-id",
        b"correlation-context",
        # When a proxy received it, and until when it wants the answer.
        b"x-request-start",
        b"x-queue-start",
        b"x-timer",
        b"l5d-ctx-deadline",
        # Clouds' load balancers: AWS, Google, Azure, Cloudflare, Akamai.
        b"x-amzn-trace-id",
        b"x-amz-cf-id",
        b"x-cloud-trace-context",
        b"x-azure-ref",
        b"x-appgw-trace-id",
        b"cf-ray",
        b"akamai-grn",
        # Tracers: W3C Trace Context and Baggage, B3, Jaeger, OpenTracing, Linkerd.
        b"traceparent",
        b"tracestate",
        b"baggage",
        b"b3",
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-b3-parentspanid",
        b"x-b3-sampled",
        b"x-b3-flags",
        b"x-ot-span-context",
        b"ot-tracer-traceid",
        b"ot-tracer-spanid",
        b"ot-tracer-sampled",
        b"uber-trace-id",
        b"l5d-ctx-trace",
        b"l5d-reqid",
        # Agents: Datadog, Sentry, New Relic, Elastic, Instana, Dynatrace, AppDynamics, Honeycomb, SkyWalking, Azure.
        b"x-datadog-trace-id",
        b"x-datadog-parent-id",
        b"x-datadog-sampling-priority",
        b"x-datadog-tags",
        b"sentry-trace",
        b"newrelic",
        b"elastic-apm-traceparent",
        b"x-instana-t",
        b"x-instana-s",
        b"x-instana-l",
        b"x-dynatrace",
        b"singularityheader",
        b"x-honeycomb-trace",
        b"sw8",
        b"sw8-x",
        b"sw8-correlation",
        b"x-ms-request-id",
        b"x-ms-request-root-id",
    }
)
"""In lower case."""


def _any_of(names: Iterable[bytes]) -> bytes:
    """A pattern for them. Grouped by their first letter, since most lines of a head begin with another one."""
    by_letter: dict[bytes, list[bytes]] = {}
    for name in sorted(names, reverse=True):
        by_letter.setdefault(name[:1], []).append(re.escape(name[1:]))
    return b"|".join([b"%b(?:%b)" % (letter, b"|".join(rests)) for letter, rests in by_letter.items()])


# A value as every parser takes it, word for word: printable, single blanks inside, any around it; or none, as some tracers
# send. Atomic, so that a long one costs linear time.
_LINE = re.compile(
    rb"\r\n((?i:x-(?:%b)|%b)):[ \t]*+((?>(?:[!-~]++(?: [!-~]++)*)?))[ \t]*+(?=\r\n)"
    % (
        _any_of([name[2:] for name in CORRELATION_FIELDS if name.startswith(b"x-")]),
        _any_of([name for name in CORRELATION_FIELDS if not name.startswith(b"x-")]),
    )
)

FixedLines = tuple[bytes, ...]
"""A block of field lines without the values of its correlation fields: what stands between them, and their names."""


def split_correlation(block: bytes) -> tuple[FixedLines, Fields]:
    """Split a block of field lines into what repeats and what does not.

    Args:
        block: Every line with its CRLF in front: from the one that ends the request line on.

    Returns:
        The rest, which is equal for two blocks only where they have the same fields in the same places but for these
        values; and the correlation fields in their order, none where a name stands twice.
    """
    pieces = _LINE.split(block)
    if len(pieces) == 1:
        return (block,), ()
    names = pieces[1::3]
    correlation = tuple(zip(names, pieces[2::3], strict=True))
    if len(names) > 1 and len({lower(name) for name in names}) < len(names):
        return (block,), ()
    del pieces[2::3]
    return tuple(pieces), correlation


def without_correlation(fields: Fields, correlation: Fields) -> Fields | None:
    """``fields`` less ``correlation``.

    Returns:
        None where the two do not agree, or ``Connection`` names one of them (RFC 9110 §7.6.1): it must not go up then.
    """
    if tuple([field for field in fields if lower(field[0]) in CORRELATION_FIELDS]) != correlation:
        return None
    for value in values(fields, b"connection"):
        if not CORRELATION_FIELDS.isdisjoint({token.strip(b" \t").lower() for token in value.split(b",")}):
            return None
    return tuple([field for field in fields if lower(field[0]) not in CORRELATION_FIELDS])


def record_ids(x: Exchange, head: RequestHead, *, trusted: bool) -> bool:
    """Note a request's id and trace: the id that a trusted peer gave it, else the one that it has already.

    Returns:
        Whether that id stands among ``head.fields``: another request with these fields would have it, too.
    """
    fields = head.correlation or head.fields
    received = first(fields, b"x-request-id") if trusted else None
    if received is not None:
        x.request_id = request_id(received, x.request_id, trusted=True)
    x.trace_id = trace_id(fields)
    return received is not None and not head.correlation
