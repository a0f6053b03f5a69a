"""What an answer is stored under, and when another request may have it.

key = partition + target + variance. The partition stands last and everything before it is free of line feeds (targets and
field values can't hold one), so no two different requests spell the same key.
"""

from __future__ import annotations

from functools import lru_cache

from .messages import Field, Fields, joined, lower

# Forwarded, and yet nothing GitLab's answer depends on: tracing, who we are, what the client holds. Every field outside
# this set is part of a private key, so a field nobody thought of can cost a hit but never mix two answers.
INERT = frozenset(
    {
        b"accept-encoding",  # by class, see coding_class
        b"cache-control",
        b"connection",
        b"content-length",
        b"date",
        b"dnt",
        b"if-none-match",
        b"pragma",
        b"priority",
        b"referer",
        b"te",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"via",
        b"x-correlation-id",
        b"x-request-id",
    }
)
# GitLab can restrict by client address (group allow-lists), which `access_ttl` bounds; with addresses in the key a
# brokered credential used by 200 bots would be 200 caches.
ADDRESS = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})

_CODINGS = (b"br", b"deflate", b"gzip", b"zstd")


@lru_cache(maxsize=512)
def coding_class(value: bytes) -> bytes:
    """``Accept-Encoding`` reduced to the codings that servers use: ``gzip, deflate, br`` and ``br, gzip`` are not two."""
    accepted: set[bytes] = set()
    for name, quality in _weighted(value):
        if quality > 0:
            accepted.update(_CODINGS if name == b"*" else (name.removeprefix(b"x-"),))
    return b",".join(coding for coding in _CODINGS if coding in accepted)


def _weighted(value: bytes) -> list[tuple[bytes, float]]:
    """Members of a list with their ``q``, lower-cased; what can't be read weighs 1."""
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


def private_key(partition: bytes, target: bytes, sudo: str, fields: Fields, inert: frozenset[bytes] = INERT) -> bytes:
    """The key of one answer for one partition.

    Args:
        partition: Who may see it; never empty.
        target: The raw target, less credentials: no normalising, ``%2F`` and ``%2f`` are two keys.
        sudo: The user acted as.
        fields: The request's, as forwarded, credentials taken out.
        inert: Lower-cased names that do not matter.
    """
    assert partition, "an empty partition would be everybody's"
    variance: list[Field] = []
    coding = b""
    for field in fields:
        name = lower(field[0])
        if name not in inert:
            variance.append((name, field[1]))
        elif name == b"accept-encoding":
            coding = coding + b"," + field[1] if coding else field[1]
    variance.sort()  # stable for one name: the order of its own lines stays
    lines = [b"private", target, b"sudo=" + sudo.encode("utf-8", "surrogateescape").replace(b"\n", b" ")]
    lines.append(coding_class(coding) if coding else b"-")
    lines += [name + b":" + value for name, value in variance]
    lines += [b"", partition]
    return b"\n".join(lines)


def shared_key(target: bytes) -> bytes:
    """The primary key of a shared cache in front of one origin; variants live under it."""
    return b"shared\n" + target


# Vary (RFC 9111 §4.1)


def vary_names(fields: Fields) -> tuple[bytes, ...] | None:
    """What ``Vary`` names, lower-cased and sorted; None for ``*``, which no request matches."""
    value = joined(fields, b"vary")
    if value is None:
        return ()
    names = {name for part in value.split(b",") if (name := part.strip(b" \t").lower())}
    return None if b"*" in names else tuple(sorted(names))


@lru_cache(maxsize=1024)
def normalise(name: bytes, value: bytes | None) -> bytes:
    """A selecting field's value where spelling does not matter; absent is not the same as empty.

    Languages, codings and types lose case and, among equal weights, order; of any other field only the blanks around
    commas go.
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
    """Would this request have brought the stored answer?

    Args:
        stored: The selecting fields of the request that did.
        language: The answer's ``Content-Language``: a client that prefers it before all others would get it again.
        fields: The request's now.
    """
    for name, value in stored:
        asked = joined(fields, name)
        if normalise(name, asked) == value:
            continue
        if name == b"accept-language" and language and asked is not None and _prefers(asked, language):
            continue
        return False
    return True


def _prefers(asked: bytes, language: bytes) -> bool:
    """Is ``language`` the one most wanted?"""
    weighted = _weighted(asked)
    best = max((quality for _, quality in weighted), default=0.0)
    return best > 0 and [name for name, quality in weighted if quality == best] == [language]
