"""The last line of defence for logs and audit: token-shaped strings and secret-bearing parameters are blanked.

Credentials that the gateway itself reads are cut from the target long before. This catches what GitLab's other surfaces
carry in addresses (feed, trigger, runner and static-object tokens, OAuth codes), and what callers paste where it does not
belong.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .target import percent_decode

MASK = b"[redacted]"

# Each pattern takes time proportional to the text's length: callers without a credential choose it, up to `target_bytes`.

# Names whose values are secrets anywhere in a query: those that GitLab keeps out of its own logs, and others that
# are secret in its API (a CI variable's `value`, a feature flag client's `instance_id`, Slack's `webhook`). `code` is
# OAuth's.
_SECRET_NAME = (
    rb"(?:[^=&;?]*?(?:token|secret|passw|passphrase|signature|credential|api_?key|assertion|variables|samlresponse)[^=&;?]*"
    rb"|[^=&;?]*(?:key|value|webhook|verifier|pass|dsn|account_json)(?:\]|%5d)*"
    rb"|(?:[^=&;?]*_)?(?:code|attempt)|instance_?id|sig)"
)
_NAMES = re.compile(rb"[?&;]([^=&;?]*)(?==)")
_SECRET_NAMES = re.compile(rb"(?:^|&)" + _SECRET_NAME + rb"(?:$|&)", re.IGNORECASE)
# A name is matched only if a `=` ends it: otherwise each position in it would be tried to the end of the text.
_SECRET_PARAMETER = re.compile(rb"([?&;](?=[^=&;?]*=)" + _SECRET_NAME + rb"=)[^&#\s]*", re.IGNORECASE)
# OAuth's `state`; GitLab's lists, to-dos, members and commit statuses have states of their own.
_STATE = re.compile(
    rb"([?&;]state=)(?!(?:active|all|awaiting|blocked|canceled|closed|done|failed|locked|merged|opened|pending|running|skipped"
    rb"|success)(?:[&;#\s]|$))[^&#\s]*",
    re.IGNORECASE,
)
# GitLab's prefixes (an instance may put its own in front), and the gateway's own keys.
_TOKEN = re.compile(
    rb"(?:gl(?:pat|dt|cbt|ptt|ft|imt|agent|rtr?|oas|soat|ffct|wt|rct)-[0-9A-Za-z_.=-]{8,}|GR1348941[0-9A-Za-z_-]{8,}"
    rb"|ggw_[0-9A-Za-z]{8,}|whsec_[0-9A-Za-z+/=]{8,})"
)
# Matched with the characters that precede it: if no dot follows the run, a JWT begins nowhere in it.
_JWT = re.compile(
    rb"(?<![0-9A-Za-z_-])(?=[0-9A-Za-z_-]+\.[0-9A-Za-z_.=-]{8})[0-9A-Za-z_-]*?eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_.=-]{8,}"
)
# GitLab's invitations carry their token in the path.
_INVITATION = re.compile(rb"(/-/invites/)[0-9A-Za-z_-]{8,}")
# What precedes the host in an address, as in `import_url=https://user:password@…`.
_USERINFO = re.compile(rb"((?::|%3a)(?:/|%2f){2})(?:[^/?#&\s%]|%(?!2f|3f|23))+(?=@|%40)", re.IGNORECASE)

# An encoded letter, digit, dash, underscore or dot: none of them needs encoding, so it may hide something.
_HIDING = re.compile(rb"%(?:25)*(?:2[de]|3[0-9]|[46][1-9a-f]|[57][0-9a]|5f)", re.IGNORECASE)


def escape_unprintable(text: str) -> str:
    """``text``, with everything escaped that would change a terminal's colours, end its lines or reverse them."""
    return "".join([letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text])


is_page_query = re.compile(
    rb"(?:(?:(?:page|per_page|id_after|id_before)=[0-9]{1,18}|(?:order_by|sort)=[a-z_]{1,11}"
    rb"|state=(?:active|all|blocked|closed|locked|merged|opened))(?:&(?!$)|$))+"
).fullmatch
"""Matches the query of a request for a page of a list: no value in it could hide anything."""


def is_page(path: bytes, query: bytes) -> bool:
    """Whether it is enough to give ``path`` to ``redact``, instead of ``path``, a question mark and ``query``."""
    return is_page_query(query) is not None and ends_at_mark(path)


def ends_at_mark(path: bytes) -> bool:
    """Whether a question mark ends everything in ``path``: a parameter there, which may be a secret, would continue after
    the mark."""
    return b"&" not in path and b";" not in path


def redact(text: bytes) -> bytes:
    """``text`` (a raw target, a header value, an error's words) with secrets blanked; the same object if it is clean."""
    hiding = b"%" in text and _HIDING.search(text) is not None
    if hiding:
        # Only names are decoded here: a decoded value would end at any ampersand, hash or blank in it.
        text = _NAMES.sub(_plainly, text)
    text = _by_place(text)
    if hiding:
        # A token, or part of one, may hide by encoding letters once or twice: then the decoded text is returned, blanked.
        plain = percent_decode(percent_decode(text))
        found = _by_form(_by_place(plain))
        if found != plain:
            return found
    return _by_form(text)


def _by_place(text: bytes) -> bytes:
    """``text`` without what is a secret because of where it stands."""
    if b"=" in text:
        names = b"&".join(_NAMES.findall(text))
        if _known_secret(names) if len(names) <= _NAMES_BYTES else _holds_secret(names):
            text = _SECRET_PARAMETER.sub(rb"\1" + MASK, text)
        if b"state=" in text.lower():
            text = _STATE.sub(rb"\1" + MASK, text)
    if b"@" in text or b"%40" in text:
        text = _USERINFO.sub(rb"\1" + MASK, text)
    if b"/-/invites/" in text:
        text = _INVITATION.sub(rb"\1" + MASK, text)
    return text


def _by_form(text: bytes) -> bytes:
    """``text`` without what looks like a token."""
    if b"eyJ" in text:
        text = _JWT.sub(MASK, text)
    return _TOKEN.sub(MASK, text)


def _plainly(name: re.Match[bytes]) -> bytes:
    """Decode the name of a secret that hides by encoding, so that it stays one name; leave any other name as it is."""
    whole = name[0]
    if b"%" not in whole:
        return whole
    plain = _PARTING.sub(b"_", percent_decode(percent_decode(name[1])))
    return whole[:1] + plain if plain.lower() == b"state" or _holds_secret(plain) else whole


_PARTING = re.compile(rb"[?&;=#\s]")
_NAMES_BYTES = 256


def _holds_secret(names: bytes) -> bool:
    """Whether one of ``names``, separated by ampersands, is that of a secret."""
    return _SECRET_NAMES.search(names) is not None


_known_secret = lru_cache(1024)(_holds_secret)  # matching them costs three times as much as finding them
