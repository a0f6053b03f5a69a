"""Cache directives, parsed once when an answer is stored: ``Cache-Control`` (RFC 9111 §5.2) and its targeted forms.

``CDN-Cache-Control`` (RFC 9213) and the older ``Surrogate-Control`` are meant for a gateway like this one and, if they
parse, replace ``Cache-Control`` and ``Expires`` altogether.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from .messages import Fields, joined
from .structured_fields import parse_dictionary

MAX_DELTA_S = 2_147_483_648.0
"""What any longer delta-seconds counts as (RFC 9111 §1.2.2)."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Either all that separates two list members, in one match: if it were tried anew from each comma, it would take quadratic
# time. Or a member: a directive or, by the last branch, anything broken up to the next comma.
_MEMBER = re.compile(
    rb'[ \t,]++|(?P<name>%s)(?:=(?P<value>"(?:[^"\\]|\\.)*"|[^ \t,"]*))?[ \t]*(?=,|$)|(?P<broken>[^,]+)' % _TOKEN
)
_LEADING_TOKEN = re.compile(rb"[ \t]*(%s)" % _TOKEN)
_ESCAPED = re.compile(rb"\\(.)")
_BROKEN = b"\x00"  # no directive can have this value; it means "unusable"


def parse_directives(value: bytes) -> dict[bytes, bytes | None]:
    """Directive names in lower case with their unquoted values; of repeated directives the first (RFC 9111 §4.2.1).

    A broken member counts by its leading token, with a value that is never valid: ``max-age= 60`` grants no freshness,
    ``no-store;`` still forbids storing.
    """
    found: dict[bytes, bytes | None] = {}
    for match in _MEMBER.finditer(value):
        name = match["name"]
        if name is None:
            leading = _LEADING_TOKEN.match(match["broken"] or b"")
            if leading is not None:
                found.setdefault(leading.group(1).lower(), _BROKEN)
            continue
        text = match["value"]
        if text is not None and text[:1] == b'"':
            text = _ESCAPED.sub(rb"\1", text[1:-1])
        found.setdefault(name.lower(), text)
    return found


def delta_seconds(value: bytes | None) -> float:
    """A directive's value in seconds; 0 if it is not a number, so that doubtful freshness is none (RFC 9111 §4.2.1)."""
    if value is None or not value.isdigit():
        return 0.0
    return MAX_DELTA_S if len(value.lstrip(b"0")) > 10 else min(float(value), MAX_DELTA_S)


class ResponseDirectives(msgspec.Struct, frozen=True, gc=False):
    """What an answer says to a shared cache. Seconds are None where not given."""

    no_store: bool = False
    no_cache: bool = False
    no_cache_fields: frozenset[bytes] = frozenset()
    """The fields in ``no-cache="a, b"``: only these may not be reused without validation."""
    private: bool = False
    private_fields: frozenset[bytes] = frozenset()
    public: bool = False
    must_revalidate: bool = False
    """``must-revalidate``, ``proxy-revalidate``, or by way of ``s-maxage`` (§5.2.2.10)."""
    must_understand: bool = False
    max_age_s: float | None = None
    """The lifetime for a shared cache: ``s-maxage`` where given, otherwise ``max-age``."""
    shared_max_age: bool = False
    stale_while_revalidate_s: float | None = None
    stale_if_error_s: float | None = None
    targeted: bool = False
    """Whether they come from a targeted field, so that ``Expires`` does not count (RFC 9213 §2.2)."""


class RequestDirectives(msgspec.Struct, frozen=True, gc=False):
    """What a client asks of the caches on the way (§5.2.1)."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    min_fresh_s: float = 0.0
    max_stale_s: float = 0.0
    stale_if_error_s: float | None = None


_SILENT_RESPONSE = ResponseDirectives()
_SILENT_REQUEST = RequestDirectives()


def _field_names(value: bytes | None) -> frozenset[bytes]:
    if value is None or value == _BROKEN:
        return frozenset()
    return frozenset(name for part in value.split(b",") if (name := part.strip(b" \t").lower()))


def _optional_seconds(found: dict[bytes, bytes | None], name: bytes) -> float | None:
    return delta_seconds(found[name]) if name in found else None


def _from_directives(found: dict[bytes, bytes | None], *, targeted: bool) -> ResponseDirectives:
    no_cache_fields = _field_names(found.get(b"no-cache"))
    private_fields = _field_names(found.get(b"private"))
    shared = _optional_seconds(found, b"s-maxage")
    return ResponseDirectives(
        no_store=b"no-store" in found,
        no_cache=b"no-cache" in found and not no_cache_fields,
        no_cache_fields=no_cache_fields,
        private=b"private" in found and not private_fields,
        private_fields=private_fields,
        public=b"public" in found,
        must_revalidate=shared is not None or b"must-revalidate" in found or b"proxy-revalidate" in found,
        must_understand=b"must-understand" in found,
        max_age_s=shared if shared is not None else _optional_seconds(found, b"max-age"),
        shared_max_age=shared is not None,
        stale_while_revalidate_s=_optional_seconds(found, b"stale-while-revalidate"),
        stale_if_error_s=_optional_seconds(found, b"stale-if-error"),
        targeted=targeted,
    )


@lru_cache(maxsize=512)
def parse_cache_control(value: bytes) -> ResponseDirectives:
    """A response's ``Cache-Control``."""
    return _from_directives(parse_directives(value), targeted=False)


@lru_cache(maxsize=512)
def parse_targeted(value: bytes, target: str | None = None) -> ResponseDirectives | None:
    """A targeted field (RFC 9213 §2.1), or None if it is empty or broken and so counts as absent.

    Args:
        value: The field value, a Structured Field dictionary.
        target: Set for ``Surrogate-Control``, whose members may be meant for another surrogate
            (``max-age=60;other``) and whose names come in any case.
    """
    try:
        members = parse_dictionary(value.lower() if target is not None else value)
    except ValueError:
        return None
    found: dict[bytes, bytes | None] = {}
    for name, (bare, parameters) in members.items():
        if target is not None and parameters and target not in parameters:
            continue
        if bare is True:
            found[name.encode()] = None
        elif isinstance(bare, int) and bare is not False and bare >= 0:
            found[name.encode()] = b"%d" % bare
        elif isinstance(bare, str) and name in {"no-cache", "private"}:
            found[name.encode()] = bare.encode()
        # No directive known here has a value of another type: such a member is ignored, the others count.
    return _from_directives(found, targeted=True) if members else None


def response_directives(fields: Fields, surrogate: str | None = None) -> ResponseDirectives:
    """The directives of an answer that count here, by precedence (RFC 9213 §2.2).

    Args:
        fields: The answer's fields.
        surrogate: The gateway's name as a surrogate; None if only ``Cache-Control`` counts (a private cache is no CDN).
    """
    if surrogate is not None:
        value = joined(fields, b"cdn-cache-control")
        directives = parse_targeted(value) if value is not None else None
        if directives is None:
            value = joined(fields, b"surrogate-control")
            directives = parse_targeted(value, surrogate) if value is not None else None
        if directives is not None:
            return directives
    return plain_directives(joined(fields, b"cache-control"))


def plain_directives(value: bytes | None) -> ResponseDirectives:
    """The directives of an answer's ``Cache-Control``, where no other field counts; ``value`` is None if it has none."""
    return parse_cache_control(value) if value is not None else _SILENT_RESPONSE


@lru_cache(maxsize=512)
def parse_request_cache_control(value: bytes) -> RequestDirectives:
    """A request's ``Cache-Control``."""
    found = parse_directives(value)
    max_stale = 0.0
    if b"max-stale" in found:
        allowed = found[b"max-stale"]
        max_stale = MAX_DELTA_S if allowed is None else delta_seconds(allowed)
    return RequestDirectives(
        no_cache=b"no-cache" in found,
        no_store=b"no-store" in found,
        only_if_cached=b"only-if-cached" in found,
        max_age_s=_optional_seconds(found, b"max-age"),
        min_fresh_s=delta_seconds(found.get(b"min-fresh")),
        max_stale_s=max_stale,
        stale_if_error_s=_optional_seconds(found, b"stale-if-error"),
    )


def request_directives(fields: Fields) -> RequestDirectives:
    """A request's directives. ``Pragma`` is deprecated (RFC 9111 §5.4) and not read."""
    value = joined(fields, b"cache-control")
    return parse_request_cache_control(value) if value is not None else _SILENT_REQUEST
