"""An OIDC issuer: signs whatever it is told to, publishes its keys, counts who asks, fails when told to."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from aiohttp import web
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

ALGORITHMS = ["RS256", "RS384", "PS256", "ES256", "ES384", "Ed25519", "HS256", "none"]
_RSA = {kid: RSAKey.generate_key(2048, {"kid": kid}) for kid in ("one", "two")}


def segment(value: Any) -> str:
    """Base64url of JSON, or of octets as they are."""
    octets = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


class FakeIssuer:
    """Its documents at once (``get``, as ``ports.Documents``), or from a real server (``start``)."""

    def __init__(self, url: str = "https://issuer.example.com") -> None:
        self.url = url
        self.keys: dict[str, Any] = {"one": _RSA["one"]}
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        """While it is not set, nobody is answered."""
        self.gate.set()
        self.documents: dict[str, bytes] = {}
        """Answers other than its own, by path."""
        self._runner: web.AppRunner | None = None

    def rotate(self, *, keep: bool = False) -> None:
        """Sign with key ``two`` from now on."""
        self.keys = {**(self.keys if keep else {}), "two": _RSA["two"]}

    def add(self, kid: str, algorithm: str) -> None:
        self.keys[kid] = (
            OKPKey.generate_key("Ed25519", {"kid": kid})
            if algorithm == "Ed25519"
            else ECKey.generate_key({"ES256": "P-256", "ES384": "P-384"}[algorithm], {"kid": kid})
        )

    def sign(self, claims: dict[str, Any], *, kid: str | None = None, alg: str = "RS256", **header: Any) -> str:
        """A token; ``header`` members beside ``alg`` and ``kid`` as given."""
        key = self.keys[kid or list(self.keys)[-1]]
        named = {"alg": alg, "kid": key.kid, **header}
        registry = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        return jws.serialize_compact(named, json.dumps(claims), key, registry=registry)

    def sign_raw(self, payload: bytes) -> str:
        """A good signature over a payload of any octets."""
        key = list(self.keys.values())[-1]
        return jws.serialize_compact({"alg": "RS256", "kid": key.kid}, payload, key, algorithms=["RS256"])

    # What it publishes

    def document(self, path: str) -> bytes:
        if path in self.documents:
            return self.documents[path]
        if path == "/.well-known/openid-configuration":
            return json.dumps({"issuer": self.url, "jwks_uri": self.url + "/oauth/discovery/keys"}).encode()
        if path == "/oauth/discovery/keys":
            return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys.values()]}).encode()
        raise LookupError(path)

    async def get(self, url: str) -> bytes:
        assert url.startswith(self.url)
        asked = url.removeprefix(self.url)
        self.asked.append(asked)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return self.document(asked)

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def start(self) -> None:
        """On a port of its own, on the loopback; ``url`` becomes its address."""

        async def answer(request: web.Request) -> web.Response:
            self.asked.append(request.path)
            if self.failure is not None:
                return web.Response(status=503)
            return web.Response(body=self.document(request.path), content_type="application/json")

        self._runner = web.AppRunner(web.Application())
        self._runner.app.router.add_get("/{path:.*}", answer)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
