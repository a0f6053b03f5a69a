"""GitLab's addresses of itself in JSON answers, rewritten to lead back through the gateway: opt-in, by member name.

Only the strings themselves are touched, in place: numbers keep their digits and members their order. The members are those
that GitLab's entities fill with ``expose_url`` (its related_resources_helpers.rb); text that people wrote is never looked
at.
"""

from __future__ import annotations

import re

NAMED = frozenset(
    {
        "@id",
        "artifact_uri",
        "avatar_url",
        "browser_download_url",
        "container_registry_url",
        "direct_asset_url",
        "download_url",
        "http_url_to_repo",
        "merge_request_url",
        "packageContent",
        "readme_url",
        "tarball",
        "url_to_repo",
        "web_edit_url",
        "web_url",
    }
)
"""The members that are rewritten wherever they stand (``@id`` and ``packageContent`` are NuGet's, ``tarball`` is npm's,
``artifact_uri`` MLflow's). ``url`` is not one of them: that of a hook or a mirror was written by a person."""

LINKS = frozenset({"_links", "links"})
"""The members whose own members are all addresses."""


class JsonUrlRewriter:
    """The rewriting of addresses from ``origins`` to ``public``, compiled once.

    ``origins`` are what GitLab calls itself, ``public`` is what clients call the gateway; none of them ends with a slash.
    """

    def __init__(self, origins: tuple[bytes, ...], public: bytes) -> None:
        there = b"|".join(re.escape(origin) for origin in sorted(origins, key=len, reverse=True))
        names = b"|".join(re.escape(name.encode()) for name in sorted(NAMED))
        links = b"|".join(re.escape(name.encode()) for name in sorted(LINKS))
        # A quote that follows no backslash and precedes `name":` begins a member's name: inside a string it would end that
        # string, and valid JSON never continues with letters there.
        self._member = re.compile(rb'(?<!\\)("(?:' + names + rb')"[ \t\r\n]*:[ \t\r\n]*")(?:' + there + rb')(?=[/?#"])')
        # `_links` contain no objects, so the next closing brace outside a string is theirs.
        string = rb'"(?>(?:[^"\\]++|\\.)*)"'
        self._links = re.compile(
            rb'(?<!\\)"(?:' + links + rb')"[ \t\r\n]*:[ \t\r\n]*\{(?>(?:[^{}"]++|' + string + rb")*)\}", re.DOTALL
        )
        self._linked = re.compile(rb'(:[ \t\r\n]*")(?:' + there + rb')(?=[/?#"])')
        self._public = public

    def turned(self, body: bytes) -> bytes:
        """``body`` with these addresses rewritten; the same object if there are none."""
        turned = self._member.sub(self._turn, body)
        return self._links.sub(lambda links: self._linked.sub(self._turn, links[0]), turned)

    def _turn(self, found: re.Match[bytes]) -> bytes:
        return found[1] + self._public


def is_json(content_type: bytes | None) -> bool:
    """Whether the content type is ``application/json``, with whatever parameters."""
    return content_type is not None and content_type.partition(b";")[0].strip().lower() == b"application/json"
