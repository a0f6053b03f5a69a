"""The key that an answer is stored under, and when another request may have the answer.

key = partition + target + variance. The partition comes last, and everything before it is free of line feeds (targets and
field values can't hold one), so no two different requests spell the same key.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from .correlation import CORRELATION_FIELDS
from .messages import Fields, joined, lower

# These fields are forwarded, but GitLab's answer does not depend on them: tracing, what sends, what the client holds.
# Every field outside this set is part of a private key, so a field nobody thought of can cost a hit but never mix up two
# answers. What the gateway says about the client's address is not part of the key. GitLab can restrict access by address
# (group allow-lists), which `access_ttl` bounds; but a brokered credential used by 200 bots would otherwise be 200 caches.
INERT = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"dnt",
        b"pragma",
        b"priority",
        b"referer",
        b"te",
        b"user-agent",
        b"via",
    }
    | CORRELATION_FIELDS
)

_CODINGS = (b"br", b"deflate", b"gzip", b"zstd")
_NOT_RARE = frozenset({*_CODINGS, b"*", b"identity"})


@lru_cache(maxsize=512)
def coding_class(value: bytes) -> bytes:
    """``Accept-Encoding`` without refused codings and without order: ``br, gzip`` and ``gzip;q=0.5, br`` are one class."""
    weighted = {name.removeprefix(b"x-"): quality for name, quality in _weighted(value)}
    # RFC 9110 §12.5.3: `*` stands for the codings that are not named.
    others = weighted.get(b"*", 0.0)
    accepted = [coding for coding in _CODINGS if weighted.get(coding, others) > 0]
    rare = sorted([name for name, quality in weighted.items() if quality > 0 and name not in _NOT_RARE])
    return b",".join([*accepted, *rare])


def _weighted(value: bytes) -> list[tuple[bytes, float]]:
    """The members of a list with their ``q``, lower-cased; a ``q`` that can't be read counts as 1."""
    found = []
    for member in value.split(b","):
        name, _, parameters = member.partition(b";")
        quality = 1.0
        for parameter in parameters.split(b";"):
            key, _, text = parameter.strip().lower().partition(b"=")
            if key == b"q":
                try:
                    quality = float(text)
                except ValueError:
                    quality = 1.0
        if name.strip():
            found.append((name.strip().lower(), quality))
    return found


class RequestTraits(msgspec.Struct, frozen=True, gc=False):
    """What a cache needs to know of a request's fields, read in one pass."""

    variance: bytes
    """Everything that can change the answer, one line per field, in the order received: each client keeps to one order, and
    a separate key for another order only costs a miss. No line is empty."""
    cache_control: bytes | None
    if_none_match: bytes | None
    refused: bytes
    """The lower-cased name of a field that keeps this request from the cache; empty if there is none."""


_KEYED, _INERT, _CODING, _CACHE_CONTROL, _IF_NONE_MATCH, _REFUSED = range(6)
_ROLES_BOUND = 4096
_TRAITS_BOUND = 2048


class RequestReader(dict[bytes, int]):
    """Reads requests for private caches; remembers the role of every field name it has met, as spelt.

    Args:
        refused: Lower-cased names of fields that keep a request from the cache.
    """

    def __init__(self, *, refused: frozenset[bytes]) -> None:
        super().__init__()
        self._known = dict.fromkeys(INERT, _INERT) | dict.fromkeys(refused, _REFUSED)
        self._known |= {
            b"accept-encoding": _CODING,
            b"cache-control": _CACHE_CONTROL,
            b"if-none-match": _IF_NONE_MATCH,
        }
        self.read = lru_cache(_TRAITS_BOUND)(self._read)
        """Read a request's fields in one pass. Results are remembered, because clients repeat their fields."""

    def __missing__(self, name: bytes) -> int:
        role = self._known.get(name.lower(), _KEYED)
        if len(name) <= 64:
            if len(self) >= _ROLES_BOUND:
                self.clear()
            self[name] = role
        return role

    def _read(self, fields: Fields) -> RequestTraits:
        coding = cache_control = if_none_match = None
        refused = b""
        lines: list[bytes] = []
        for name, value in fields:
            role = self[name]
            if role == _INERT:
                continue
            if role == _KEYED:
                lines.append(b"%b:%b" % (lower(name), value))
            elif role == _CODING:
                coding = value if coding is None else coding + b"," + value
            elif role == _IF_NONE_MATCH:
                if_none_match = value if if_none_match is None else if_none_match + b", " + value
            elif role == _CACHE_CONTROL:
                cache_control = value if cache_control is None else cache_control + b", " + value
            else:
                refused = lower(name)
        lines.append(b"+" + coding_class(coding) if coding is not None else b"-")
        return RequestTraits(b"\n".join(lines), cache_control, if_none_match, refused)


def private_key(partition: bytes, target: bytes, sudo: str, variance: bytes, reached_as: bytes = b"") -> bytes:
    """The key of one answer for one partition.

    Args:
        partition: Who may see it; never empty.
        target: The raw target, without credentials; it is not normalised, so ``%2F`` and ``%2f`` are two keys.
        sudo: The user acted as.
        variance: As read by ``RequestReader.read``.
        reached_as: How the client addressed the gateway: an answer's links lead back there, and must not lead other
            callers to a host that one of them chose.
    """
    assert partition, "an empty partition would be everybody's"
    # The user's name may come from a parameter and hold anything.
    actor = sudo.encode("utf-8", "surrogatepass").replace(b"\\", b"\\\\").replace(b"\n", b"\\n") if sudo else b""
    return b"private\n%b\n%b\nsudo=%b\n%b\n\n%b" % (target, reached_as or b"-", actor, variance, partition)


def shared_key(target: bytes, reached_as: bytes = b"") -> bytes:
    """The primary key in a shared cache, the target URI (RFC 9111 §2); variants are stored under it."""
    return b"shared\n%b\n%b" % (reached_as, target)


# Vary (RFC 9111 §4.1)


def vary_names(fields: Fields) -> tuple[bytes, ...] | None:
    """The fields that ``Vary`` names, lower-cased and sorted; None for ``*``, which no request matches."""
    return vary_list(joined(fields, b"vary"))


@lru_cache(maxsize=256)
def vary_list(value: bytes | None) -> tuple[bytes, ...] | None:
    """The same as ``vary_names``, for the field's value, or None if it is missing.

    Memoised: an origin sends the same in every answer, and it is read twice for each answer that is stored.
    """
    if value is None:
        return ()
    names = {name for part in value.split(b",") if (name := part.strip(b" \t").lower())}
    return None if b"*" in names else tuple(sorted(names))


@lru_cache(maxsize=1024)
def normalise(name: bytes, value: bytes | None) -> bytes:
    """A selecting field's value without differences that do not matter; absent is not the same as empty.

    Languages, codings and charsets lose their case and, among equal weights, their order; any other field only loses the
    blanks around its commas.
    """
    if value is None:
        return b"\x00"
    if name == b"accept-encoding":
        return coding_class(value)
    if name in {b"accept-language", b"accept-charset"}:
        weighted = sorted(_weighted(value), key=lambda pair: (-pair[1], pair[0]))
        return b",".join(b"%s;q=%.3f" % pair for pair in weighted)
    return b",".join(part.strip(b" \t") for part in value.split(b","))


def selecting(names: tuple[bytes, ...], fields: Fields) -> tuple[tuple[bytes, bytes], ...]:
    """The request's side of ``Vary``."""
    return tuple((name, normalise(name, joined(fields, name))) for name in names)


def selects(stored: tuple[tuple[bytes, bytes], ...], language: bytes, fields: Fields) -> bool:
    """Whether this request would have brought the stored answer.

    Args:
        stored: The selecting fields of the request that brought it.
        language: The answer's ``Content-Language``: a client that prefers it to all others would get the same answer.
        fields: The fields of the request at hand.
    """
    for name, value in stored:
        requested = joined(fields, name)
        if normalise(name, requested) == value:
            continue
        if name == b"accept-language" and language and requested is not None and _prefers(requested, language):
            continue
        return False
    return True


def _prefers(requested: bytes, language: bytes) -> bool:
    """Whether ``language`` alone has the highest weight."""
    weighted = _weighted(requested)
    best = max((quality for _, quality in weighted), default=0.0)
    return best > 0 and [name for name, quality in weighted if quality == best] == [language]
