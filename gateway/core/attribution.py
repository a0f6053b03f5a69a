"""Tell GitLab's own logs who asks: the caller's name goes into a field of its own and after the User-Agent."""

from __future__ import annotations

import re

from .messages import Field, Fields, lower

PRODUCT = b"gitlab-gateway"
_UNPLAIN = re.compile(r"[^A-Za-z0-9._:@/-]")
_LONGEST = 128
_NAMES_BOUND = 4096


class Attribution:
    """Names the caller in a request, compiled for one configuration.

    A field of that name from the caller itself has been removed before (``core.headers``).

    Args:
        header: The field's name; empty for none.
        user_agent: Whether to append the name to the caller's User-Agent as well.
    """

    def __init__(self, header: bytes, *, user_agent: bool = False) -> None:
        self._header = header
        self._user_agent = user_agent
        self._names: dict[str, bytes] = {}

    def applied(self, fields: Fields, caller: str) -> Fields:
        """``fields`` of a request by ``caller``, as it goes up."""
        name = self._names.get(caller)
        if name is None:
            if len(self._names) >= _NAMES_BOUND:
                self._names.clear()
            name = self._names[caller] = plain_name(caller)
        if self._user_agent:
            fields = _with_agent(fields, b"%b (%b)" % (PRODUCT, name))
        return (*fields, (self._header, name)) if self._header else fields


def plain_name(caller: str) -> bytes:
    """A principal's id, made safe for a field value and a comment: nobody may inject text into another system's logs."""
    return _UNPLAIN.sub("_", caller)[:_LONGEST].encode("ascii")


def _with_agent(fields: Fields, suffix: bytes) -> Fields:
    written: list[Field] = []
    found = False
    for field in fields:
        if lower(field[0]) != b"user-agent":
            written.append(field)
        elif not found:
            found = True
            written.append((field[0], b"%b %b" % (field[1], suffix) if field[1] else suffix))
    if not found:
        written.append((b"User-Agent", suffix))
    return tuple(written)
