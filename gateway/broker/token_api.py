"""GitLab's own calls for tokens: describe one, make one, revoke one, let one replace itself. Nothing is repeated here.

Two failures are told apart, because what may follow them differs: after ``CallRefused`` nothing has changed at GitLab;
after ``OutcomeUnknown`` something may have, and nobody knows.
"""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from ..core.errors import Code, Rejection
from ..core.messages import Fields
from ..core.secret import Secret
from ..ports import Upstream, UpstreamRequest

_Found = TypeVar("_Found")

_TIMEOUT_S = 15.0
_MAX_ANSWER_BYTES = 1 << 20
_PAGES = 20
_TOKEN = re.compile(r"[!-~]{8,8192}", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_.~/-]+", re.ASCII)

_NEVER_SENT = frozenset(
    {
        Code.UPSTREAM_DNS,
        Code.UPSTREAM_REFUSED,
        Code.UPSTREAM_CONNECT_TIMEOUT,
        Code.UPSTREAM_BREAKER_OPEN,
        Code.UPSTREAM_BUSY,
    }
)


class CallRefused(Exception):  # noqa: N818 — a decision of GitLab's, told to the operator
    """GitLab said no, or was never reached. The message holds no secret."""


class OutcomeUnknown(Exception):  # noqa: N818 — a state of the world the caller acts on
    """It may or may not have happened. The message holds no secret."""


class TokenFacts(msgspec.Struct, frozen=True):
    """What GitLab says of a personal access token."""

    id: int
    user_id: int
    name: str = ""
    scopes: tuple[str, ...] = ()
    active: bool = True
    revoked: bool = False
    expires_at: str | None = None
    granular: bool = False

    @property
    def ends_at(self) -> float | None:
        """When it ends, in Unix seconds: GitLab gives a day, and a token is dead from the first second of that day, UTC."""
        if self.expires_at is None:
            return None
        try:
            day = datetime.date.fromisoformat(self.expires_at[:10])
        except ValueError:
            return None
        return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()


class NewToken(msgspec.Struct, frozen=True):
    """A new token, and what GitLab says of it."""

    token: Secret
    facts: TokenFacts


class TokenOwner(msgspec.Struct, frozen=True):
    """The user whose tokens a manager looks after."""

    user_id: int
    group: str = ""
    """The group that the service account belongs to; empty: the manager acts as an administrator."""


class _Value(msgspec.Struct):
    token: str


_decode_facts = msgspec.json.Decoder(TokenFacts).decode
_decode_list = msgspec.json.Decoder(list[TokenFacts]).decode
_decode_value = msgspec.json.Decoder(_Value).decode


class _Octets:
    """A small request body."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.content_length: int | None = len(octets)

    async def read(self) -> bytes:
        octets, self._octets = self._octets, b""
        return octets


class TokenApi:
    """Makes the calls. ``prefix`` is GitLab's relative URL root; ``fields`` go with each request. A call takes 15 s at
    most."""

    def __init__(self, upstream: Upstream, *, prefix: bytes = b"", fields: Fields = ()) -> None:
        self._upstream = upstream
        self._root = prefix.rstrip(b"/") + b"/api/v4"
        self._fields: Fields = (
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"gitlab-gateway"),
            *fields,
        )

    async def describe(self, token: Secret) -> TokenFacts | None:
        """What GitLab says of ``token``; None: GitLab does not take it. Asking is harmless, whatever became of it."""
        status, _, body = await self._call("GET", b"/personal_access_tokens/self", token)
        if status in {401, 403}:
            return None
        facts = _decode_reply(_decode_facts, _require_200(status, body))
        return facts if facts.active and not facts.revoked else None

    async def create(
        self, manager: Secret, owner: TokenOwner, name: str, scopes: tuple[str, ...], ends_on: str
    ) -> NewToken:
        """Make another token for the owner, in addition to those that exist."""
        attributes: dict[str, object] = {"name": name, "scopes": list(scopes), "expires_at": ends_on}
        return await self._mint(_tokens_path(owner), manager, attributes)

    async def rotate_self(self, token: Secret, ends_on: str) -> NewToken:
        """Replace ``token`` by its successor, which is returned; ``token`` itself is then dead. If it asks twice, GitLab
        revokes both."""
        return await self._mint(b"/personal_access_tokens/self/rotate", token, {"expires_at": ends_on})

    async def active(self, manager: Secret, owner: TokenOwner) -> list[TokenFacts]:
        """The owner's tokens that work."""
        found: list[TokenFacts] = []
        path = _tokens_path(owner)
        query = b"?state=active&per_page=100"
        if not owner.group:
            path, query = b"/personal_access_tokens", query + b"&user_id=%d" % owner.user_id
        for page in range(1, _PAGES + 1):
            status, fields, body = await self._call("GET", b"%b%b&page=%d" % (path, query, page), manager)
            found += _decode_reply(_decode_list, _require_200(status, body))
            if not any(name.lower() == b"x-next-page" and value.strip() for name, value in fields):
                return [facts for facts in found if facts.active and not facts.revoked and facts.user_id == owner.user_id]
        raise CallRefused("the user has too many tokens to look through")

    async def revoke(self, manager: Secret, owner: TokenOwner, token_id: int) -> None:
        """Revoke a token; harmless to repeat."""
        path = _tokens_path(owner) if owner.group else b"/personal_access_tokens"
        status, _, _ = await self._call("DELETE", b"%b/%d" % (path, token_id), manager)
        if status not in {200, 202, 204, 404}:
            raise CallRefused(f"GitLab answered {status}")

    async def _mint(self, path: bytes, token: Secret, attributes: dict[str, object]) -> NewToken:
        status, _, body = await self._call("POST", path, token, msgspec.json.encode(attributes))
        if status not in {200, 201}:
            if 400 <= status < 500:
                raise CallRefused(f"GitLab answered {status}")
            raise OutcomeUnknown(f"GitLab answered {status}")
        try:
            value, facts = _decode_value(body).token, _decode_facts(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise OutcomeUnknown("GitLab's answer can't be read") from None
        if _TOKEN.fullmatch(value) is None:
            raise OutcomeUnknown("GitLab's answer holds no token")
        return NewToken(Secret(value), facts)

    async def _call(self, method: str, path: bytes, token: Secret, body: bytes | None = None) -> tuple[int, Fields, bytes]:
        sent: Fields = (*self._fields, (b"PRIVATE-TOKEN", token.reveal().encode("ascii")))
        if body is not None:
            sent = (*sent, (b"Content-Type", b"application/json"))
        request = UpstreamRequest(method, self._root + path, sent, len(body or b""), _TIMEOUT_S)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reply = await self._upstream.send(request, None if body is None else _Octets(body))
                try:
                    answer = await reply.read_whole(_MAX_ANSWER_BYTES)
                    if answer is None:
                        raise OutcomeUnknown("GitLab's answer is too long")
                    return reply.head.status, reply.head.fields, answer
                finally:
                    reply.release()
        except Rejection as failed:
            words = f"GitLab could not be asked: {failed.code.value}"
            raise CallRefused(words) if failed.code in _NEVER_SENT else OutcomeUnknown(words) from failed
        except TimeoutError:
            raise OutcomeUnknown("GitLab did not answer in time") from None


def _tokens_path(owner: TokenOwner) -> bytes:
    if not owner.group:
        return b"/users/%d/personal_access_tokens" % owner.user_id
    if _PATH.fullmatch(owner.group) is None:
        raise CallRefused("the group's path can't be used in a URL")
    group = owner.group.replace("/", "%2F").encode("ascii")
    return b"/groups/%b/service_accounts/%d/personal_access_tokens" % (group, owner.user_id)


def _require_200(status: int, body: bytes) -> bytes:
    if status != 200:
        raise CallRefused(f"GitLab answered {status}")
    return body


def _decode_reply(decode: Callable[[bytes], _Found], body: bytes) -> _Found:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CallRefused("GitLab's answer can't be read") from None
