"""LFS batches: whether a request asks to download objects or to store them, and the answer, which says where the objects
are and with which credential to get them.

GitLab derives the addresses from its ``external_url``. As ``Authorization`` it puts in a token minted for the caller, or
the very field that came with the request (its lfs_api_controller.rb). For a brokered caller that is the gateway's
credential, which nobody may see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .catalogue import Access, Operation
from .credentials import CREDENTIAL_FIELDS
from .errors import Code, Rejection, Source
from .messages import RequestHead
from .request_intent import LIGHT_BYTES, UNKNOWN, ParsingDeferred, RequestIntent, is_plain_json, parse_json
from .target import Target

MEDIA_TYPE = "application/vnd.git-lfs+json"
MAX_BYTES = 4 << 20
"""The longest answer that is read. git-lfs asks for a hundred objects at a time; the answer takes some 500 octets each."""

_BATCH = "/info/lfs/objects/batch"
_TYPES = frozenset({MEDIA_TYPE, "application/json"})
_DOWNLOAD = RequestIntent(Access.READ)


def is_batch(operation: Operation) -> bool:
    """Whether this is an LFS batch, whose answer hands out credentials and addresses."""
    return operation.name.endswith(_BATCH)


def parse_batch_intent(head: RequestHead, target: Target, body: bytes, *, room: int = 1) -> RequestIntent:
    """Whether a batch only asks for objects: ``"operation": "download"``, as git-lfs writes it. In Rails a parameter in the
    query wins over one in the body, so a batch with a query does not count as a download.

    Raises ParsingDeferred for a long body if there is no ``room``.
    """
    if target.query or not is_plain_json(head, _TYPES):
        return UNKNOWN
    if len(body) > LIGHT_BYTES and not room:
        raise ParsingDeferred
    try:
        parsed = parse_json(body)
    except ValueError:
        return UNKNOWN
    return _DOWNLOAD if isinstance(parsed, dict) and parsed.get("operation") == "download" else UNKNOWN


def rewrite_batch(body: bytes, rewrite_url: Callable[[str], str | None], own: str | None, *, brokered: bool) -> bytes:
    """The answer as its caller may see it.

    Args:
        body: The whole answer.
        rewrite_url: Turns a URL into the one that clients use through the gateway; None if it doesn't lead to GitLab.
        own: The caller's own ``Authorization``, to continue with. Without one, git-lfs finds a credential by itself.
        brokered: Credentials in the answer are the gateway's, and are all removed.

    Raises:
        Rejection: UPSTREAM_PROTOCOL (502) if it can't be understood: an answer that may hold a credential never passes
            unread.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise unreadable("an LFS batch that is not JSON") from error
    if not isinstance(answer, dict):
        raise unreadable("an LFS batch of another form")
    for item in _list(answer, "objects"):
        # `_links` is what `actions` was called before LFS 1.0 was settled; git-lfs still reads it.
        for name in ("actions", "_links"):
            for action in _members(item, name).values():
                if isinstance(action, dict):
                    kept = _rewrite_action(action, rewrite_url, own, brokered=brokered)
                    if not kept:
                        item.pop("authenticated", None)
    return msgspec.json.encode(answer)


def _rewrite_action(
    action: dict[str, Any], rewrite_url: Callable[[str], str | None], own: str | None, *, brokered: bool
) -> bool:
    """Rewrite one action. False: its credential has been removed, and the client must find one."""
    href = action.get("href")
    rewritten = rewrite_url(href) if isinstance(href, str) else None
    if rewritten is not None:
        action["href"] = rewritten
    if not brokered:
        return True
    fields = _members(action, "header")
    held = [name for name in fields if name.lower().encode("utf-8", "replace") in CREDENTIAL_FIELDS]
    for name in held:
        del fields[name]
    if held and rewritten is not None and own is not None:
        # The address leads back to us, so the caller's own credential is right for it. Nobody else gets to see that either.
        fields["Authorization"] = own
        return True
    return not held


def _list(holder: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = holder.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise unreadable("an LFS batch of another form")
    return found


def _members(holder: dict[str, Any], name: str) -> dict[str, Any]:
    found = holder.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise unreadable("an LFS batch of another form")
    return found


def unreadable(why: str) -> Rejection:
    """The 502 for an answer that must be understood but can't be."""
    return Rejection(
        Code.UPSTREAM_PROTOCOL,
        502,
        "502 Bad Gateway",
        source=Source.UPSTREAM,
        proxy_error="http_protocol_error",
        detail=f"GitLab answered with {why}",
    )
