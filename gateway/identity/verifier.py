"""Asks GitLab to whom a token belongs.

Which endpoint answers depends on the kind of token, which its text does not tell (prefixes are configurable). Personal
access tokens of every scope may read ``/personal_access_tokens/self``; an OAuth token gets 400 there, and is then known to
``/oauth/token/info``; a job token is known only to ``/job``. A token costs GitLab at most three requests, most tokens one.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from ..core.errors import Rejection
from ..core.messages import Fields
from ..core.secret import Secret
from ..ports import NotAnswering, Presentation, Upstream, UpstreamRequest, Verified

_Found = TypeVar("_Found")

_SELF = b"/api/v4/personal_access_tokens/self"
_TOKEN_INFO = b"/oauth/token/info"
_JOB = b"/api/v4/job"
_USER = b"/api/v4/user"

_MAX_ANSWER_BYTES = 256 * 1024
MAX_TOKEN_LENGTH = 8192
"""GitLab's own bound, met by job tokens that carry a JWT."""
_TOKEN = re.compile(r"[!-~]+", re.ASCII)
_NAME = re.compile(r"[!-9;-~]{1,255}", re.ASCII)  # a colon ends the name in Basic


class _PersonalToken(msgspec.Struct):
    user_id: int
    id: int | None = None
    active: bool = True
    revoked: bool = False
    scopes: tuple[str, ...] = ()
    expires_at: str | None = None


class _User(msgspec.Struct):
    username: str


class _Application(msgspec.Struct):
    uid: str = ""


class _OauthToken(msgspec.Struct):
    resource_owner_id: int | None = None
    application: _Application | None = None
    scope: tuple[str, ...] = ()
    expires_in: float | None = None


class _Pipeline(msgspec.Struct):
    project_id: int


class _Job(msgspec.Struct):
    id: int
    pipeline: _Pipeline


_decode_personal = msgspec.json.Decoder(_PersonalToken).decode
_decode_user = msgspec.json.Decoder(_User).decode
_decode_oauth = msgspec.json.Decoder(_OauthToken).decode
_decode_job = msgspec.json.Decoder(_Job).decode


def is_sendable(token: str) -> bool:
    """Whether ``token`` could be one: visible ASCII of bounded length. Anything else is never put into a header field."""
    return len(token) <= MAX_TOKEN_LENGTH and _TOKEN.fullmatch(token) is not None


class GitlabVerifier:
    """A TokenVerifier. ``prefix`` is GitLab's relative URL root (``/gitlab`` or empty); ``fields`` go with each request."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        wall: Callable[[], float],
        prefix: bytes = b"",
        fields: Fields = (),
        timeout_s: float = 5.0,
    ) -> None:
        self._upstream = upstream
        self._wall = wall
        self._prefix = prefix.rstrip(b"/")
        self._fields: Fields = (
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"gitlab-gateway"),
            *fields,
        )
        self._timeout_s = timeout_s

    async def verify(self, token: Secret, presentation: Presentation, *, may_be_job: bool = False) -> Verified | None:
        value = token.reveal()
        if not is_sendable(value):
            return None
        octets = value.encode("ascii")
        if presentation is Presentation.JOB:
            return await self._job((b"JOB-TOKEN", octets))
        if presentation is Presentation.PRIVATE:
            status, body = await self._get(_SELF, (b"PRIVATE-TOKEN", octets))
            return self._personal(status, body)
        bearer = (b"Authorization", b"Bearer " + octets)
        status, body = await self._get(_SELF, bearer)
        verified = self._personal(status, body) if status != 400 else await self._oauth(bearer)
        if verified is None and may_be_job and status in {400, 401}:
            return await self._job(bearer)
        return verified

    async def fetch_username(self, token: Secret) -> str:
        """GitLab's name for the user of a personal access token; empty if the token may not ask. Raises NotAnswering."""
        status, body = await self._get(_USER, (b"PRIVATE-TOKEN", token.reveal().encode("ascii")))
        if status in {401, 403, 404}:
            return ""
        name = _decode_reply(_decode_user, _require_200(status, body)).username
        return name if _NAME.fullmatch(name) else ""

    def _personal(self, status: int, body: bytes) -> Verified | None:
        if status in {400, 401, 403}:
            return None
        found = _decode_reply(_decode_personal, _require_200(status, body))
        if found.revoked or not found.active:
            return None
        name = f"token:{found.id}" if found.id is not None else ""
        return Verified(f"user:{found.user_id}", found.scopes, _expiry_instant(found.expires_at), name)

    async def _oauth(self, bearer: tuple[bytes, bytes]) -> Verified | None:
        status, body = await self._get(_TOKEN_INFO, bearer)
        if status in {400, 401, 403}:
            return None
        found = _decode_reply(_decode_oauth, _require_200(status, body))
        expires_at = None if found.expires_in is None else self._wall() + found.expires_in
        application = f"application:{found.application.uid}" if found.application and found.application.uid else ""
        if found.resource_owner_id is not None:
            return Verified(f"user:{found.resource_owner_id}", found.scope, expires_at, application)
        if application:
            return Verified(application, found.scope, expires_at, application)
        raise NotAnswering("GitLab named no owner of an OAuth token", offered=False)

    async def _job(self, field: tuple[bytes, bytes]) -> Verified | None:
        status, body = await self._get(_JOB, field)
        if status in {400, 401, 403, 404}:  # 404 is GitLab's way to say that the job is over
            return None
        found = _decode_reply(_decode_job, _require_200(status, body))
        # A job acts as the person who pushed, but is not that person: its traffic must not use up that person's limits.
        return Verified(f"job-project:{found.pipeline.project_id}", credential_id=f"job:{found.id}")

    async def _get(self, path: bytes, credential: tuple[bytes, bytes]) -> tuple[int, bytes]:
        request = UpstreamRequest("GET", self._prefix + path, (*self._fields, credential), 0, self._timeout_s)
        try:
            reply = await self._upstream.send(request, None)
            try:
                body = await reply.read_whole(_MAX_ANSWER_BYTES)
                if body is None:
                    raise NotAnswering("GitLab's answer about a token is too long", offered=False)
                return reply.head.status, body
            finally:
                reply.release()
        except Rejection as failed:
            raise NotAnswering(f"GitLab could not be asked: {failed.code.value}") from failed


def _require_200(status: int, body: bytes) -> bytes:
    """The body of a 200. Raises NotAnswering for everything else, which is never read as *no*."""
    if status == 200:
        return body
    raise NotAnswering(f"GitLab answered {status} about a token", offered=status == 429 or status >= 500)


def _decode_reply(decode: Callable[[bytes], _Found], body: bytes) -> _Found:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotAnswering("GitLab's answer about a token cannot be read", offered=False) from error


def _expiry_instant(date: str | None) -> float | None:
    """GitLab's expiry has day granularity: a token is dead from the first second of that day, UTC."""
    if date is None:
        return None
    try:
        day = datetime.date.fromisoformat(date[:10])
    except ValueError:
        return None
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()
