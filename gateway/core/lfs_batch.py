"""An LFS batch: whether it asks for what GitLab stores, or to store; and its answer, which says where the objects are and
with which credential one gets there.

GitLab writes the addresses by its ``external_url`` and, as ``Authorization``, a token minted for whoever asked or the very
field it was asked with (its lfs_api_controller.rb). For a brokered caller that is the gateway's credential, which nobody
may see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .asked import LIGHT_BYTES, UNKNOWN, Asked, Unread, is_plain_json, parse_json
from .catalogue import Access, Operation
from .credentials import CREDENTIAL_FIELDS
from .errors import Code, Rejection, Source
from .messages import RequestHead
from .target import Target

MEDIA_TYPE = "application/vnd.git-lfs+json"
MAX_BYTES = 4 << 20
"""git-lfs asks for a hundred objects at a time; an answer about one is some 500 octets."""

_BATCH = "/info/lfs/objects/batch"
_TYPES = frozenset({MEDIA_TYPE, "application/json"})
_DOWNLOAD = Asked(Access.READ)


def is_batch(operation: Operation) -> bool:
    """Its answer hands out credentials and addresses."""
    return operation.name.endswith(_BATCH)


def asked_in_batch(head: RequestHead, target: Target, body: bytes, *, room: int = 1) -> Asked:
    """Whether it asks for objects alone: ``"operation": "download"``, as git-lfs writes it. To Rails a parameter of the
    query goes before the body's, so a batch with a query is none.

    Raises Unread, without ``room``, for a long body.
    """
    if target.query or not is_plain_json(head, _TYPES):
        return UNKNOWN
    if len(body) > LIGHT_BYTES and not room:
        raise Unread
    try:
        asked = parse_json(body)
    except ValueError:
        return UNKNOWN
    return _DOWNLOAD if isinstance(asked, dict) and asked.get("operation") == "download" else UNKNOWN


def rewrite_batch(body: bytes, turn: Callable[[str], str | None], own: str | None, *, brokered: bool) -> bytes:
    """The answer as its caller may have it.

    Args:
        body: The whole answer.
        turn: An address as clients reach it through the gateway; None when it does not lead to GitLab.
        own: The caller's own ``Authorization``, to go on with. Without one, git-lfs looks for a credential by itself.
        brokered: Credentials in the answer are the gateway's, and none of them stays.

    Raises:
        Rejection: UPSTREAM_PROTOCOL (502) when it cannot be understood: what may hold a credential never passes unread.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise unreadable("an LFS batch that is no JSON") from error
    if not isinstance(answer, dict):
        raise unreadable("an LFS batch of another form")
    for item in _list(answer, "objects"):
        # `_links` is what `actions` was called before LFS 1.0 was settled; git-lfs still reads it.
        for name in ("actions", "_links"):
            for action in _members(item, name).values():
                if isinstance(action, dict):
                    kept = _turn(action, turn, own, brokered=brokered)
                    if not kept:
                        item.pop("authenticated", None)
    return msgspec.json.encode(answer)


def _turn(action: dict[str, Any], turn: Callable[[str], str | None], own: str | None, *, brokered: bool) -> bool:
    """False: the credential is gone, and the client must find one."""
    href = action.get("href")
    turned = turn(href) if isinstance(href, str) else None
    if turned is not None:
        action["href"] = turned
    if not brokered:
        return True
    fields = _members(action, "header")
    held = [name for name in fields if name.lower().encode("utf-8", "replace") in CREDENTIAL_FIELDS]
    for name in held:
        del fields[name]
    if held and turned is not None and own is not None:
        # Back to us, so with what it came with. Nobody else gets to see that either.
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
    """The 502 for an answer that must be understood and is not."""
    return Rejection(
        Code.UPSTREAM_PROTOCOL,
        502,
        "502 Bad Gateway",
        source=Source.UPSTREAM,
        proxy_error="http_protocol_error",
        detail=f"GitLab answered with {why}",
    )
