"""What clients of GitLab's registries speak to: the token service, and routes of npm's, PyPI's and RubyGems' packages.

Each takes a token where GitLab does (``sent_through`` in ``lib/api/*_packages.rb``), and nowhere else.
"""

from __future__ import annotations

import base64
import email
import hashlib
import io
import json
import re
import tarfile
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from joserfc import jws
from joserfc.jwk import RSAKey

from tests.fakes.certificates import CertificatePair

ISSUER = "gitlab-issuer"
QUESTIONS = ("/api/v4/personal_access_tokens/self", "/oauth/token/info", "/api/v4/job")
_PACKAGES = re.compile(r"/api/v4/projects/1/packages/(npm|pypi|rubygems)(/.*)?")


class PackageGitLab:
    """``url`` serves until ``close``. ``tokens``: what each may do: ``pull``, ``push``, ``delete``."""

    def __init__(self, pair: CertificatePair, tokens: dict[str, set[str]]) -> None:
        self.tokens = tokens
        self.address = ""
        """What it calls itself in addresses."""
        self.heads: list[tuple[str, dict[str, str]]] = []
        """Request lines and fields, by name in lower case."""
        self.npm: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self._key = RSAKey.import_key(pair.key.read_bytes())
        certificate = x509.load_pem_x509_certificate(pair.cert.read_bytes())
        self._chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        gitlab = self

        class Handler(_Handler):
            def handle_one(self) -> None:
                gitlab._answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: _Handler) -> None:
        path, _, query = handler.path.partition("?")
        fields = {name.lower(): value for name, value in handler.headers.items()}
        self.heads.append((handler.requestline, fields))
        body = handler.rfile.read(int(fields.get("content-length", "0")))
        basic, bearer, bare = _tokens(fields.get("authorization", ""))
        if path in QUESTIONS:
            known = (fields.get("private-token") or bearer) in self.tokens and path == QUESTIONS[0]
            answer = {"id": 1, "user_id": 7, "name": "x", "active": True, "revoked": False, "scopes": ["api"]}
            handler.say(200 if known else 401, answer, {"X-Gitlab-Meta": "{}"})
        elif path == "/jwt/auth" and handler.command == "GET":
            self._give_token(handler, urllib.parse.parse_qs(query), self.tokens.get(basic))
        elif (found := _PACKAGES.fullmatch(path)) is not None:
            kind, rest = found[1], re.sub("%2f", "/", found[2] or "/", flags=re.IGNORECASE)[1:]
            may = self.tokens.get({"npm": bearer, "pypi": basic, "rubygems": bare}[kind])
            if may is None:
                handler.say(401, {"message": "401 Unauthorized"})
            elif handler.command in {"PUT", "POST"} and "push" not in may and "security" not in rest:
                handler.say(403, {"message": "403 Forbidden"})
            else:
                {"npm": self._npm, "pypi": self._pypi, "rubygems": self._rubygems}[kind](handler, rest, body)
        else:
            handler.say(404, {"error": "404 Not Found"})

    def _give_token(self, handler: _Handler, query: dict[str, list[str]], may: set[str] | None) -> None:
        """As ``Auth::ContainerRegistryAuthenticationService``: what may be done of what is requested."""
        if may is None:
            handler.say(401, {"errors": [{"code": "UNAUTHORIZED", "message": "HTTP Basic: Access denied"}]})
            return
        access = []
        for scope in " ".join(query.get("scope", [])).split():
            kind, name, actions = scope.split(":")
            granted = sorted(may if actions == "*" else may.intersection(actions.split(",")))
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": "sa", "aud": query["service"][0], "iat": now, "nbf": now - 5, "exp": now + 300}
        claims |= {"jti": str(uuid.uuid4()), "access": access}
        head = {"alg": "RS256", "typ": "JWT", "x5c": self._chain}
        handler.say(
            200, {"token": jws.serialize_compact(head, json.dumps(claims).encode(), self._key, algorithms=["RS256"])}
        )

    def _npm(self, handler: _Handler, rest: str, body: bytes) -> None:
        name, _, tag = rest.removeprefix("-/package/").partition("/dist-tags/")
        if rest.endswith("/security/advisories/bulk"):
            handler.say(200, {})
        elif rest.startswith("-/package/"):
            if handler.command == "PUT":
                self.npm[name]["dist-tags"][tag] = json.loads(body)
            handler.say(200, self.npm[name.removesuffix("/dist-tags")]["dist-tags"])
        elif "/-/" in rest:
            handler.say(200, self.files[rest])
        elif handler.command == "PUT":
            document = json.loads(body)
            for file, attached in document.pop("_attachments").items():
                self.files[f"{name}/-/{file}"] = base64.b64decode(attached["data"])
                for version in document["versions"].values():
                    version["dist"]["tarball"] = f"{self.address}/api/v4/projects/1/packages/npm/{name}/-/{file}"
            self.npm[name] = document
            handler.say(200, {})
        elif name in self.npm:
            handler.say(200, self.npm[name])
        else:
            handler.say(404, {"message": "404 Not Found", "error": "404 Not Found"})

    def _pypi(self, handler: _Handler, rest: str, body: bytes) -> None:
        name = rest.rpartition("/")[2]
        if handler.command == "POST":
            parts: Any = email.message_from_bytes(
                f"Content-Type: {handler.headers['Content-Type']}\r\n\r\n".encode() + body
            )
            for part in parts.get_payload():
                if part.get_filename():
                    self.files[part.get_filename()] = part.get_payload(decode=True)
            handler.say(201, {"message": "201 Created"})
        elif rest.startswith("files/"):
            handler.say(200, self.files[name])
        else:
            address = f"{self.address}/api/v4/projects/1/packages/pypi/files"
            links = ""
            for file, octets in self.files.items():
                digest = hashlib.sha256(octets).hexdigest()
                links += f'<a href="{address}/{digest}/{file}#sha256={digest}">{file}</a>'
            handler.say(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), {"Content-Type": "text/html"})

    def _rubygems(self, handler: _Handler, rest: str, body: bytes) -> None:
        self.files[rest] = body
        handler.say(201, {"message": "201 Created"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        raise NotImplementedError

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = lambda self: self.handle_one()  # noqa: N815 — as the library calls them

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — the library's name
        pass

    def say(self, status: int, body: bytes | object, fields: dict[str, str] | None = None) -> None:
        octets = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(octets))} | (fields or {})
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(octets)


def _tokens(authorization: str) -> tuple[str, str, str]:
    """As Basic's password, as Bearer, as the whole field."""
    scheme, _, rest = authorization.partition(" ")
    basic = base64.b64decode(rest).decode().partition(":")[2] if scheme == "Basic" else ""
    return basic, rest if scheme == "Bearer" else "", authorization if not rest else ""


def write_image(layout: Path) -> None:
    """An OCI image of one small layer, for clients to push."""
    (layout / "blobs/sha256").mkdir(parents=True)

    def add(kind: str, octets: bytes) -> dict[str, object]:
        digest = hashlib.sha256(octets).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(octets)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(octets)}

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        file = tarfile.TarInfo("hello")
        file.size = 100_000
        archive.addfile(file, io.BytesIO(bytes(100_000)))
    layer = add("layer.v1.tar", packed.getvalue())
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = add("config.v1+json", json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode())
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    named = add("manifest.v1+json", json.dumps(manifest | {"config": config, "layers": [layer]}).encode())
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
