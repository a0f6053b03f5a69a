"""``Prefer: wait=N`` (RFC 7240 §4.3): how long a caller would rather wait than be refused."""

from __future__ import annotations

from .messages import Fields, lower

LONGEST_S = 60.0
"""The longest wait: clients and load balancers give up before a longer one is over."""
_PREFER = b"prefer"


def preferred_wait_s(fields: Fields) -> float:
    """The preferred wait in seconds; 0 without one. The first of several counts, and a malformed one is ignored (§2)."""
    for name, value in fields:
        if len(name) == 6 and lower(name) == _PREFER:
            for preference in value.split(b","):
                token, _, rest = preference.partition(b"=")
                if token.strip().lower() == b"wait":
                    digits = rest.partition(b";")[0].strip().strip(b'"')
                    return min(LONGEST_S, float(digits)) if digits.isdigit() and len(digits) <= 9 else 0.0
    return 0.0
