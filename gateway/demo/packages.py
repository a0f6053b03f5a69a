"""Generic packages: uploads and downloads of any size, in bounded memory.

``…/packages/generic/stream/1.0.0/SIZE.bin`` always exists: SIZE octets of a fixed pattern, which may be asked for by range.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator

from .access import Surface
from .answer import Answer, as_json, framework_error, not_found
from .routing import Call, Route
from .state import Level

CHUNK_BYTES = 64 * 1024
LARGEST_BYTES = 16 * 1024**3
_PATTERN = bytes(range(256)) * (CHUNK_BYTES // 256 + 1)


def download(call: Call) -> Answer:
    project, name = call.project(), f"{call['name']}/{call['version']}/{call['file']}"
    stream = re.fullmatch(r"stream/1\.0\.0/([0-9]{1,11})\.bin", name)
    if stream is not None and int(stream[1]) <= LARGEST_BYTES:
        size = int(stream[1])
        first, last, status, headers = _range(call.request.headers.get("range"), size)
        return Answer(status, b"", headers, None if status == 416 else pattern(first, last + 1))
    content = project.packages.get(name)
    if content is None:
        raise not_found("Package")
    first, last, status, headers = _range(call.request.headers.get("range"), len(content))
    if status == 200:
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
    return Answer(status, content[first : last + 1], headers)


def upload(call: Call) -> Answer:
    """Upload a file, which is the whole body. A file larger than the demo keeps is only counted and hashed."""
    project, content = call.project(Level.DEVELOPER), call.request.content
    if content.size == len(content.octets):
        project.packages[f"{call['name']}/{call['version']}/{call['file']}"] = content.octets
    body = {"message": "201 Created", "size": content.size, "file_sha256": content.sha256}
    return as_json(body, 201)


async def pattern(start: int, end: int) -> AsyncIterator[bytes]:
    """Octets ``start`` to ``end`` of the endless 0, 1, … 255, 0, …"""
    while start < end:
        length = min(CHUNK_BYTES, end - start)
        offset = start % 256
        yield _PATTERN[offset : offset + length]
        start += length


def _range(header: str | None, size: int) -> tuple[int, int, int, dict[str, str]]:
    """One range (RFC 9110 §14.1.2) as first and last octet, with status and headers; several get the whole file."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "Content-Length": str(size)}
    wanted = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header or "")
    if wanted is None or not (wanted[1] or wanted[2]):
        return 0, size - 1, 200, headers
    if wanted[1]:
        first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
    else:
        first, last = max(0, size - int(wanted[2])), size - 1
    if first > last:
        return 0, -1, 416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
    length = {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last - first + 1)}
    return first, last, 206, headers | length


def list_packages(call: Call) -> Answer:
    project = call.project()
    if call.request.text("package_type") not in {None, "generic"}:
        raise framework_error(400, "package_type does not have a valid value")
    return as_json([{"name": name, "size": len(content)} for name, content in sorted(project.packages.items())])


_REGISTRY = Surface(job_token=True, deploy_token=True, basic=True)
_FILE = "/api/v4/projects/:id/packages/generic/:name/:version/*file"

ROUTES = (
    Route("GET", "/api/v4/projects/:id/packages", list_packages),
    Route("GET", _FILE, download, _REGISTRY),
    Route("PUT", _FILE, upload, _REGISTRY),
)
