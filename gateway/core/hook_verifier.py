"""Is this hook GitLab's? Judged by its secret token, in constant time, or by its signature over id, time and body.

A secret that begins with ``whsec_`` is a signing token (GitLab 19, by the Standard Webhooks scheme): base64 follows the
prefix, and ``webhook-signature`` holds ``v1,BASE64(HMAC-SHA256(id.timestamp.body))``, several of them separated by spaces.
Any other secret is what GitLab sends as ``X-Gitlab-Token``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict

from .messages import Fields, first
from .secret import Secret

TOLERANCE_S = 300.0
"""How far the time in a signature may be off, in either direction."""
_PREFIX = "whsec_"
_MOST_SIGNATURES = 8
_LEAST = 16
"""The fewest characters of a plain secret. Guessing is not slowed down, since GitLab must never be held up."""


class HookVerifier:
    """The check for one secret. Raises ValueError for a signing token that is not base64, and for a guessable secret."""

    def __init__(self, secret: Secret) -> None:
        text = secret.reveal()
        self._token = hashlib.sha256(text.encode()).digest()
        self._key: bytes | None = None
        if text.startswith(_PREFIX):
            try:
                self._key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
            except binascii.Error as error:
                raise ValueError("is not a signing token: base64 must follow `whsec_`") from error
            if len(self._key) < 16:
                raise ValueError("is too short for a signing token")
        elif len(text) < _LEAST:
            raise ValueError(
                f"can be guessed: a hook's secret must have at least {_LEAST} characters (`openssl rand -hex 32`)"
            )

    @property
    def needs_body(self) -> bool:
        """Whether the body must be read before ``is_authentic`` can tell anything."""
        return self._key is not None

    def is_authentic(self, fields: Fields, body: bytes, now: float) -> bool:
        """Whether GitLab sent this request.

        Args:
            fields: The request's fields.
            body: The whole body; not looked at where the secret is a plain token.
            now: Unix seconds.
        """
        if self._key is None:
            given = first(fields, b"x-gitlab-token") or b""
            # All hashes have the same length, so timing doesn't reveal how much of the token matches.
            return hmac.compare_digest(hashlib.sha256(given).digest(), self._token)
        number, stamp = first(fields, b"webhook-id") or b"", first(fields, b"webhook-timestamp") or b""
        if not (stamp.isdigit() and len(stamp) <= 12 and abs(now - int(stamp)) <= TOLERANCE_S and number):
            return False
        digest = hmac.new(self._key, b"%b.%b.%b" % (number, stamp, body), hashlib.sha256).digest()
        expected = b"v1," + base64.b64encode(digest)
        signatures = (first(fields, b"webhook-signature") or b"").split(b" ")[:_MOST_SIGNATURES]
        return any(hmac.compare_digest(signature, expected) for signature in signatures)


class Deliveries:
    """The deliveries seen before, by id and content. Bounded; the oldest is forgotten first."""

    def __init__(self, most: int = 8192) -> None:
        self._most = most
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    @staticmethod
    def name(fields: Fields, body: bytes) -> bytes | None:
        """What tells one delivery from all others. Not ``X-Gitlab-Event-UUID`` alone: hooks triggered by hooks share it.
        None without any id: equal bodies, such as those of a branch forced back and forth, may then well be two."""
        ids = b"\n".join(first(fields, name) or b"" for name in (b"webhook-id", b"idempotency-key", b"x-gitlab-event-uuid"))
        return hashlib.sha256(ids + b"\n\n" + body).digest() if ids.strip() else None

    def __contains__(self, name: bytes) -> bool:
        return name in self._seen

    def add(self, name: bytes) -> None:
        self._seen[name] = None
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
