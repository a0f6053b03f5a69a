"""Request heads seen before, by their octets: who polls says the same words again, and they mean the same.

    the whole head known   → the head that was made of it, with whatever the stages left in its memo
    its fields known       → a new head: the request line is read here, where it is as plain as they come
    anything else          → aiohttp's parser

Only what that parser once took as one whole request without a body, without a word behind it, is remembered; so nothing
is ever understood otherwise than the parser understood it. Heads hold credentials: they stay in this process's memory, in
bounded number, as those of open connections do.
"""

from __future__ import annotations

import re

from ..core.lately import Lately
from ..core.messages import Fields, RequestHead

MOST_HEADS = 2048
MOST_BLOCKS = 512
LONGEST = 4096
"""Octets of a head that is remembered."""

# No octet here means anything to any parser but itself: what it does not match goes to aiohttp's.
_PLAIN_LINE = re.compile(rb"(GET|HEAD) (/[A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]-]*) HTTP/1\.1\r\n")
_METHODS = {b"GET": "GET", b"HEAD": "HEAD"}


class Repeats:
    """Of one data port."""

    def __init__(self, *, target_bytes: int) -> None:
        self._heads: Lately[bytes, RequestHead] = Lately(MOST_HEADS)
        self._blocks: Lately[bytes, Fields] = Lately(MOST_BLOCKS)
        self._longest_line = target_bytes

    def __len__(self) -> int:
        return len(self._heads) + len(self._blocks)

    def head(self, octets: bytes, peer: str, *, tls: bool) -> RequestHead | None:
        """What ``octets``, a whole read at a message boundary, say; None: ask the parser."""
        found = self._heads.get(octets)
        if found is not None and found.peer == peer and found.tls is tls:
            return found
        line = _PLAIN_LINE.match(octets)
        if line is None:
            return None
        begin = line.end()
        fields = self._blocks.get(octets[begin:])
        if fields is None or begin > self._longest_line:
            return None
        method, target = line.groups()
        head = RequestHead(_METHODS[method], target, fields, tls=tls, peer=peer, memo=[])
        if len(octets) <= LONGEST:
            self._heads.put(octets, head)
        return head

    def keep(self, octets: bytes, head: RequestHead) -> RequestHead:
        """``octets`` were ``head`` and nothing else, by the parser's word; it has a memo (no body, HTTP/1.1).

        The head to go on with: what was known stays, so that what hangs on it is not made anew."""
        if len(octets) > LONGEST:
            return head
        known = self.head(octets, head.peer, tls=head.tls)
        if known is not None:
            return known
        self._heads.put(octets, head)
        # The parser lets empty lines go before a request: its first line is not always what is found first.
        line = b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), head.target)
        if octets.startswith(line):
            self._blocks.put(octets[len(line) :], head.fields)
        return head
