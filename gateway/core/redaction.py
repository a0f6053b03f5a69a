"""The last line of defence for logs and audit: token-shaped strings and secret-bearing parameters are blanked.

Credentials that the gateway itself reads are cut from the target long before. What this catches is what GitLab's other
surfaces carry in addresses (feed, trigger, runner, static-object tokens, OAuth codes) and what a caller pastes where it
does not belong.
"""

from __future__ import annotations

import re

from .target import percent_decode

MASK = b"[redacted]"

# Names whose values are secrets wherever they stand in a query. `code` and `state` are OAuth's; GitLab's lists have states
# of their own.
_SECRET_PARAMETER = re.compile(
    rb"([?&;](?:[^=&;]*(?:token|secret|password|passwd|signature|credential|api_?key|assertion)[^=&;]*"
    rb"|code|state(?!=(?:active|all|blocked|closed|locked|merged|opened)(?:[&;#\s]|$))|key)=)[^&;#\s]*",
    re.IGNORECASE,
)
# GitLab's prefixes (an instance may put its own in front), and the gateway's own keys.
_TOKEN = re.compile(
    rb"(?:gl(?:pat|dt|cbt|ptt|ft|imt|agent|rtr?|oas|soat|ffct|wt|rct)-[0-9A-Za-z_.=-]{8,}|GR1348941[0-9A-Za-z_-]{8,}"
    rb"|ggw_[0-9A-Za-z]{8,}|eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_.-]{8,}|whsec_[0-9A-Za-z+/=]{8,})"
)

# An encoded letter, digit, dash, underscore or dot: nothing that needs encoding, so it may hide something.
_HIDING = re.compile(rb"%(?:25)*(?:2[de]|3[0-9]|[46][1-9a-f]|[57][0-9a]|5f)", re.IGNORECASE)


is_page_query = re.compile(
    rb"(?:(?:(?:page|per_page|id_after|id_before)=[0-9]{1,18}|(?:order_by|sort)=[a-z_]{1,11}"
    rb"|state=(?:active|all|blocked|closed|locked|merged|opened))(?:&(?!$)|$))+"
).fullmatch
"""What a list is asked for by its pages: no value that could hide anything."""


def is_page(path: bytes, query: bytes) -> bool:
    """Whether of ``path``, a question mark and ``query`` only ``path`` need be given to ``redact``."""
    return is_page_query(query) is not None and ends_at_mark(path)


def ends_at_mark(path: bytes) -> bool:
    """Whether a question mark ends all that is in ``path``: a parameter, which may be a secret, would go on behind it."""
    return b"&" not in path and b";" not in path


def redact(text: bytes) -> bytes:
    """``text`` (a raw target, a header value, an error's words) with secrets blanked. Returns the same object if clean."""
    if b"%" in text and _HIDING.search(text):
        # Encoding a letter, once or twice, is how a token hides from the pattern: then the decoded text is shown, blanked.
        plain = percent_decode(percent_decode(text))
        if _TOKEN.search(plain):
            text = plain
    if b"=" in text and _SECRET_PARAMETER.search(text):  # searching costs half of replacing nothing
        text = _SECRET_PARAMETER.sub(rb"\1" + MASK, text)
    return _TOKEN.sub(MASK, text)
