"""A GitLab of repositories: ``git http-backend`` behind Basic credentials, with LFS beside it, over plain asyncio.

It records each request's head, refuses strangers as GitLab does, and speaks of itself by ``external_url``, where nobody
can get: a client that leaves the gateway fails.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 256 * 1024
_LFS = "application/vnd.git-lfs+json"


@dataclass(frozen=True)
class Head:
    """A request's head as it came."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]

    def value(self, name: str) -> str | None:
        found = [value for field, value in self.fields if field.lower() == name.lower()]
        assert len(found) <= 1, f"{name} twice"
        return found[0] if found else None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def password(self) -> str | None:
        """Of Basic credentials."""
        scheme, _, rest = (self.value("Authorization") or "").partition(" ")
        return base64.b64decode(rest).decode().partition(":")[2] if scheme.lower() == "basic" else None


class GitGitLab:
    """Serves bare repositories under ``root`` to whoever brings one of ``tokens``. Prefix is its relative URL root."""

    def __init__(self, root: Path, external_url: str, tokens: set[str], *, prefix: str = "") -> None:
        self.root = root
        self.external_url = external_url
        self.tokens = tokens
        self.prefix = prefix
        self.requests: list[Head] = []
        self.objects = root / "lfs-objects"
        self.locks: list[dict[str, Any]] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._served: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    async def start(self) -> None:
        self.objects.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._served):
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served.add(task)
        try:
            while True:
                octets = await reader.readuntil(b"\r\n\r\n")
                line, *rest = octets.decode("latin-1").split("\r\n")[:-2]
                method, target, _ = line.split(" ")
                split = (one.partition(":") for one in rest)
                head = Head(method, target, tuple((name, value.strip()) for name, _, value in split))
                self.requests.append(head)
                await self._answer(head, _body(head, reader), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._served.discard(task)
            writer.close()

    async def _answer(self, head: Head, body: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
        path = head.path.removeprefix(self.prefix)
        if path == "/api/v4/personal_access_tokens/self":
            known = head.value("PRIVATE-TOKEN") in self.tokens
            found = {"id": 1, "user_id": 7, "active": True, "revoked": False, "scopes": ["api"], "expires_at": None}
            await _reply(writer, 200 if known else 401, json.dumps(found if known else {"message": "401 Unauthorized"}))
        elif path.endswith("/info/refs") and not path.removesuffix("/info/refs").endswith(".git"):
            place = path.removesuffix("/info/refs")
            location = f"{self.external_url}{place}.git/info/refs?{head.query}"
            await _reply(writer, 301, "moved", ("Location", location), media="text/html")
        elif head.query == "go-get=1":
            await _reply(writer, 200, self._for_go(head, path), media="text/html")
        elif head.password not in self.tokens:
            await _drain(body)
            challenge = ("Www-Authenticate", 'Basic realm="GitLab"')
            await _reply(writer, 401, "HTTP Basic: Access denied.", challenge, media="text/plain")
        elif "/info/lfs/" in path or "/gitlab-lfs/" in path:
            await self._lfs(head, path, body, writer)
        else:
            await self._backend(head, path, body, writer)

    def _for_go(self, head: Head, path: str) -> str:
        """As ``Gitlab::Middleware::Go``: whoever may not see the project gets the first two words of the path."""
        words = path.strip("/").split("/")
        found = ["/".join(words[:end]) for end in range(len(words), 1, -1)]
        seen = [name for name in found if head.password in self.tokens and (self.root / f"{name}.git").is_dir()]
        name, host = (seen or found[-1:])[0], self.external_url.partition("://")[2]
        meta = f'<meta name="go-import" content="{host}/{name} git {self.external_url}/{name}.git" />'
        return f"<html><head>{meta}</head><body>go get {self.external_url}/{name}</body></html>"

    # Git

    async def _backend(self, head: Head, path: str, body: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.receivepack",
            "GIT_CONFIG_VALUE_0": "true",
            "REMOTE_USER": "somebody",
            "REQUEST_METHOD": head.method,
            "PATH_INFO": path,
            "QUERY_STRING": head.query,
            "CONTENT_TYPE": head.value("Content-Type") or "",
            "HTTP_CONTENT_ENCODING": head.value("Content-Encoding") or "",
            "HTTP_GIT_PROTOCOL": head.value("Git-Protocol") or "",
            "GIT_PROTOCOL": head.value("Git-Protocol") or "",
        }
        program = shutil.which("git")
        assert program is not None
        child = await asyncio.create_subprocess_exec(
            program, "http-backend", env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdin is not None
        assert child.stdout is not None
        feeding = asyncio.ensure_future(_feed(body, child.stdin))
        try:
            octets = await child.stdout.readuntil(b"\r\n\r\n")
            fields = [line.partition(":") for line in octets.decode().split("\r\n")[:-2]]
            status = next((value.strip() for name, _, value in fields if name == "Status"), "200 OK")
            lines = [f"{name}: {value.strip()}" for name, _, value in fields if name != "Status"]
            top = [f"HTTP/1.1 {status}", *lines, "Transfer-Encoding: chunked", "", ""]
            writer.write("\r\n".join(top).encode())
            while chunk := await child.stdout.read(_CHUNK):
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            await feeding
        finally:
            feeding.cancel()
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            await child.wait()

    # LFS

    async def _lfs(self, head: Head, path: str, body: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
        if path.endswith("/objects/batch"):
            wanted = json.loads(await _whole(body))
            repository = path.removesuffix("/info/lfs/objects/batch")
            objects = [self._object(each, wanted["operation"], repository, head) for each in wanted["objects"]]
            await _reply(writer, 200, json.dumps({"transfer": "basic", "objects": objects}), media=_LFS)
        elif path.endswith("/locks/verify"):
            await _whole(body)
            await _reply(writer, 200, json.dumps({"ours": self.locks, "theirs": []}), media=_LFS)
        elif path.endswith("/unlock"):
            await _whole(body)
            number = path.split("/")[-2]
            lock = next(lock for lock in self.locks if lock["id"] == number)
            self.locks.remove(lock)
            await _reply(writer, 200, json.dumps({"lock": lock}), media=_LFS)
        elif path.endswith("/locks") and head.method == "POST":
            wanted = json.loads(await _whole(body))
            lock = {
                "id": str(len(self.locks) + 1),
                "path": wanted["path"],
                "locked_at": "2026-01-01T00:00:00Z",
                "owner": {"name": "bot"},
            }
            self.locks.append(lock)
            await _reply(writer, 201, json.dumps({"lock": lock}), media=_LFS)
        elif path.endswith("/locks"):
            await _reply(writer, 200, json.dumps({"locks": self.locks}), media=_LFS)
        elif head.method == "PUT":
            name = path.split("/")[-2]
            digest = hashlib.sha256()
            with (self.objects / name).open("wb") as file:
                async for chunk in body:
                    digest.update(chunk)
                    file.write(chunk)
            assert digest.hexdigest() == name
            await _reply(writer, 200, "")
        else:
            data = (self.objects / path.split("/")[-1]).read_bytes()
            await _reply(writer, 200, data, media="application/octet-stream")

    def _object(self, wanted: dict[str, Any], operation: str, repository: str, head: Head) -> dict[str, Any]:
        """As GitLab writes it: an address by ``external_url``, and the very credential of the request."""
        name, size = wanted["oid"], wanted["size"]
        href = f"{self.external_url}{repository}/gitlab-lfs/objects/{name}"
        fields = {"Authorization": head.value("Authorization")}
        if operation == "upload":
            if (self.objects / name).exists():
                return wanted
            fields |= {"Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked"}
            return wanted | {"actions": {"upload": {"href": f"{href}/{size}", "header": fields}}, "authenticated": True}
        return wanted | {"actions": {"download": {"href": href, "header": fields}}, "authenticated": True}


async def _feed(body: AsyncIterator[bytes], stdin: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for chunk in body:
            stdin.write(chunk)
            await stdin.drain()
    stdin.close()


async def _body(head: Head, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    if (head.value("Transfer-Encoding") or "").lower() == "chunked":
        while size := int(await reader.readline(), 16):
            left = size
            while left:
                chunk = await reader.read(min(left, _CHUNK))
                if not chunk:
                    raise ConnectionError("the body ended early")
                left -= len(chunk)
                yield chunk
            await reader.readline()
        await reader.readline()
    else:
        left = int(head.value("Content-Length") or 0)
        while left:
            chunk = await reader.read(min(left, _CHUNK))
            if not chunk:
                raise ConnectionError("the body ended early")
            left -= len(chunk)
            yield chunk


async def _whole(body: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in body])


async def _drain(body: AsyncIterator[bytes]) -> None:
    async for _ in body:
        pass


async def _reply(
    writer: asyncio.StreamWriter, status: int, body: str | bytes, *fields: tuple[str, str], media: str = "application/json"
) -> None:
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in fields)]
    lines += [f"Content-Type: {media}", f"Content-Length: {len(data)}", "", ""]
    writer.write("\r\n".join(lines).encode() + data)
    await writer.drain()


def peak_rss_bytes(pid: int) -> int:
    """The most memory a process ever held."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
