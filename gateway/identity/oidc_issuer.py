"""An issuer's signing keys: found by discovery, remembered, and fetched again when a token names one not seen yet.

Keys are believed for an hour, and for a day while the issuer is silent. A hostile flood of key ids costs the issuer one
request in ten seconds; a silent issuer is asked again after five seconds.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from joserfc import jwk, jws
from joserfc._rfc7515.model import JWSAlgModel
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from ..ports import Documents, NotAnswering
from .lookups import Lookups

log = logging.getLogger("gateway.identity")

FRESH_S = 3600.0
STALE_S = 86_400.0
REFETCH_S = 10.0
"""The least time between two fetches because of a key id not seen yet."""
RETRY_S = 5.0
"""The least time between two attempts to ask an issuer that failed."""
_MAX_KEYS = 64
_SMALLEST_RSA = 2048
_DISCOVERY = "/.well-known/openid-configuration"

ALGORITHMS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519"), "OKP"),
}
"""The algorithms that may ever sign a token → the type of key each takes. Never ``none``, nor one with a shared secret."""

_Key = RSAKey | ECKey | OKPKey


class _Registry(jws.JWSRegistry):
    """joserfc's registry, without its warning about the name ``EdDSA``: RFC 9864 renamed it, issuers have not."""

    max_header_length = 4096

    def get_alg(self, name: str) -> JWSAlgModel:
        return self.algorithms[name]

    def check_header(self, header: dict[str, Any]) -> None:
        """Check nothing: ``core.workload_token`` has refused ``crit``; ``jwk``, ``jku``, ``x5c`` and the like are never
        read."""


class _SigningKey(msgspec.Struct, frozen=True):
    key_id: str | None
    kind: str
    algorithm: str | None
    key: Any


class Issuer:
    """One issuer. ``algorithms`` are some of ``ALGORITHMS``; without a ``jwks_uri`` the issuer is asked for it;
    ``monotonic`` is in seconds."""

    def __init__(
        self,
        url: str,
        documents: Documents,
        *,
        monotonic: Callable[[], float],
        jwks_uri: str = "",
        algorithms: Iterable[str] = tuple(ALGORITHMS),
    ) -> None:
        self.url = url
        self._documents = documents
        self._monotonic = monotonic
        self._configured = jwks_uri
        self._algorithms = frozenset(algorithms) & frozenset(ALGORITHMS)
        self._registry = _Registry(algorithms=sorted(self._algorithms))
        self._keys: tuple[_SigningKey, ...] = ()
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._failed = ""
        self._flights: Lookups[str, None] = Lookups()

    async def close(self) -> None:
        await self._flights.close()

    async def has_signed(self, token: str, algorithm: str, key_id: str | None) -> bool:
        """Whether the issuer has signed ``token``. Raises NotAnswering if it is silent and its known keys cannot tell."""
        if algorithm not in self._algorithms:
            return False
        now = self._monotonic()
        if self._fetched_at is None or now - self._fetched_at >= FRESH_S:
            await self._fetch(must=self._fetched_at is None or now - self._fetched_at >= STALE_S)
        keys = self._candidates(algorithm, key_id)
        # A fetch under way is waited for: the first token of a new key starts it, and others come at the same moment.
        if not keys and (self._is_refetch_due() or self._flights):
            await self._fetch(must=True)
            keys = self._candidates(algorithm, key_id)
        elif not keys and self._failed:
            raise NotAnswering(self._failed)  # the key may be a new one
        return any(self._verifies(token, listed) for listed in keys)

    def _verifies(self, token: str, listed: _SigningKey) -> bool:
        try:
            jws.deserialize_compact(token, listed.key, registry=self._registry)
        except (JoseError, ValueError, TypeError):
            return False
        return True

    def _candidates(self, algorithm: str, key_id: str | None) -> list[_SigningKey]:
        """The keys that may have signed a token. A token without a key id is believed only if there is just one."""
        suited = [
            listed
            for listed in self._keys
            if listed.kind == ALGORITHMS[algorithm]
            and listed.algorithm in {None, algorithm}
            and (key_id is None or listed.key_id == key_id)
        ]
        return suited if key_id is not None or len(suited) == 1 else []

    # Fetching

    def _is_refetch_due(self) -> bool:
        wait_s = RETRY_S if self._failed else REFETCH_S
        return self._tried_at is None or self._monotonic() - self._tried_at >= wait_s

    async def _fetch(self, *, must: bool) -> None:
        """Fetch the keys. Raises NotAnswering if there ``must`` be an answer and is none; if there need not be, an issuer
        that failed is asked in the background."""
        if self._failed and not self._is_refetch_due():
            if must:
                raise NotAnswering(self._failed)
            return
        if self._failed and not must:
            # Not waited for: each try may take its whole timeout, and tokens of known keys would queue behind them all.
            self._flights.start("keys", self._load)
            return
        try:
            await self._flights.share("keys", self._load)
        except NotAnswering:
            if must:
                raise

    async def _load(self) -> None:
        self._tried_at = self._monotonic()
        try:
            keys = _parse_keys(await self._documents.get(await self._jwks_uri()))
        except NotAnswering as failure:
            if not self._failed:
                log.error(
                    "the keys of issuer %s can't be fetched: %s. Those known are trusted for a day", self.url, failure
                )
            self._failed = str(failure)
            raise
        if self._failed:
            log.warning("the keys of issuer %s are fetched again", self.url)
        # What the issuer no longer lists is no longer believed.
        self._keys, self._fetched_at, self._failed = keys, self._monotonic(), ""

    async def _jwks_uri(self) -> str:
        if self._configured:
            return self._configured
        found = _parse_object(await self._documents.get(self.url.rstrip("/") + _DISCOVERY))
        # OpenID Connect Discovery §4.3: the document must speak of the very issuer it was asked of.
        if found.get("issuer") != self.url:
            raise NotAnswering("the issuer's discovery document names another issuer", offered=False)
        uri = found.get("jwks_uri")
        if not isinstance(uri, str) or not (uri.startswith("https://") or self.url.startswith("http://")):
            raise NotAnswering("the issuer's discovery document has no usable jwks_uri", offered=False)
        return uri


def _parse_object(document: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnswering("the issuer's answer cannot be read", offered=False) from error
    if not isinstance(found, dict):
        raise NotAnswering("the issuer's answer cannot be read", offered=False)
    return found


def _parse_keys(document: bytes) -> tuple[_SigningKey, ...]:
    listed = _parse_object(document).get("keys")
    if not isinstance(listed, list):
        raise NotAnswering("the issuer's answer holds no keys", offered=False)
    found = [_import_key(entry) for entry in listed[:_MAX_KEYS] if isinstance(entry, dict)]
    return tuple(key for key in found if key is not None)


def _import_key(entry: dict[str, Any]) -> _SigningKey | None:
    """One key; None if it signs nothing here: it is of another use or type, too small, or unreadable (RFC 7517 §5)."""
    kind, key_id, algorithm = entry.get("kty"), entry.get("kid"), entry.get("alg")
    # A tuple: what the issuer wrote may not be hashable, which a set would need.
    if kind not in ("RSA", "EC", "OKP") or entry.get("use", "sig") != "sig":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # about small keys, which the next line refuses
            key = jwk.import_key({name: value for name, value in entry.items() if name in _MEMBERS}, kind)
        if isinstance(key, RSAKey) and key.public_key.key_size < _SMALLEST_RSA:
            return None
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return _SigningKey(
        key_id if isinstance(key_id, str) else None, kind, algorithm if isinstance(algorithm, str) else None, key
    )


_MEMBERS = frozenset({"kty", "n", "e", "crv", "x", "y"})
