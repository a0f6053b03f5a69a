"""Request heads seen before, by their octets: a client that polls sends the same octets again, and they mean the same.

    the whole head known   → the head that was made of it, with whatever the stages left in its memo
    its fields known       → a new head: the request line is read here, if it is of the plainest kind
    either, except for correlation fields → the same, with this request's own correlation fields beside
    anything else          → aiohttp's parser

Only what that parser once took for exactly one whole request without a body is remembered, so nothing is ever understood
differently from how the parser understood it. Heads hold credentials: they stay in this process's memory, in bounded
number, as those of open connections do.
"""

from __future__ import annotations

import re

from ..core.correlation import FixedLines, split_correlation, without_correlation
from ..core.generation_cache import GenerationCache
from ..core.messages import Fields, RequestHead

MOST_HEADS = 8192
MOST_BLOCKS = 8192
"""Each caller has fields of its own, its credential among them. Half as many callers as that are remembered for certain."""
LONGEST = 4096
"""The most octets of a head that is remembered."""
MOST_OCTETS = 8 << 20
"""Of long heads, in one generation: anybody may send them, and a generation full of them would be four times as large."""
_LONG = 1024

# Every octet matched here stands for itself, to any parser: a line that does not match goes to aiohttp's.
_PLAIN_LINE = re.compile(rb"(GET|HEAD) (/[A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]-]*) HTTP/1\.1\r\n")
_METHODS = {b"GET": "GET", b"HEAD": "HEAD"}


class HeadCache:
    """The memory of one data port.

    Args:
        target_bytes: The longest request line that is read here.
        marked_bytes: The longest head whose correlation fields (``core.correlation``) are set aside. At most as long as a
            field may be: in later requests these fields are not judged again.
    """

    def __init__(self, *, target_bytes: int, marked_bytes: int = LONGEST) -> None:
        # Keyed by octets, or by the pieces that remain of them where correlation fields are set aside. Heads also by their
        # peer: what their memos hold depends on it, and a client may come by several proxies in turn.
        self._heads: GenerationCache[tuple[object, ...], RequestHead] = GenerationCache(MOST_HEADS)
        self._blocks: GenerationCache[bytes | FixedLines, Fields] = GenerationCache(MOST_BLOCKS)
        self._octets = 0
        """Of the long heads since the generation began."""
        self._longest_line = target_bytes
        self._longest_marked = min(marked_bytes, LONGEST)

    def __len__(self) -> int:
        return len(self._heads) + len(self._blocks)

    def head(self, octets: bytes, peer: str, *, tls: bool) -> RequestHead | None:
        """The head in ``octets``, which are all of one read at a message boundary; None: ask the parser."""
        found = self._heads.get((octets, peer, tls))
        if found is not None:
            return found
        line = _PLAIN_LINE.match(octets)
        if line is None:
            return None
        begin = line.end()
        if begin > self._longest_line:
            return None
        fields = self._blocks.get(octets[begin:])
        if fields is None:
            return self._match_beside_correlation(octets, line, peer, tls=tls)
        method, target = line.groups()
        head = RequestHead(_METHODS[method], target, fields, tls=tls, peer=peer, memo=[])
        if len(octets) <= LONGEST:
            self._heads.put((octets, peer, tls), head)
            if len(octets) > _LONG:
                self._count_long_head(len(octets))
        return head

    def _count_long_head(self, octets: int) -> None:
        self._octets += octets
        if self._octets > MOST_OCTETS:
            self._octets = 0
            self._heads.age()
            self._blocks.age()

    def _match_beside_correlation(
        self, octets: bytes, line: re.Match[bytes], peer: str, *, tls: bool
    ) -> RequestHead | None:
        """As ``head``, for a request that differs from an earlier one in its correlation fields alone."""
        if len(octets) > self._longest_marked:
            return None
        rest, correlation = split_correlation(octets[line.end() - 2 :])
        if not correlation:
            return None
        whole = (peer, tls, line[0], *rest)
        known = self._heads.get(whole)
        if known is None:
            fields = self._blocks.get(rest)
            if fields is None:
                return None
            method, target = line.groups()
            known = RequestHead(_METHODS[method], target, fields, tls=tls, peer=peer, memo=[])
            self._heads.put(whole, known)
            if len(octets) > _LONG:
                self._count_long_head(len(octets))
        return RequestHead(
            known.method, known.target, known.fields, tls=tls, peer=peer, memo=known.memo, correlation=correlation
        )

    def keep(self, octets: bytes, head: RequestHead) -> RequestHead:
        """Remember that ``octets`` are ``head`` and nothing else, as the parser found; it has a memo (no body, HTTP/1.1).

        Returns:
            The head to go on with: the one already known, if there is one, so that what hangs on it is not made anew.
        """
        if len(octets) > LONGEST:
            return head
        known = self.head(octets, head.peer, tls=head.tls)
        if known is not None:
            return known
        if len(octets) > _LONG:
            self._count_long_head(len(octets))
        # The parser skips empty lines in front of a request: the octets need not begin with the request line.
        line = b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), head.target)
        if octets.startswith(line):
            marked = len(octets) <= self._longest_marked
            rest, correlation = split_correlation(octets[len(line) - 2 :]) if marked else ((), ())
            fields = without_correlation(head.fields, correlation) if correlation else None
            block = octets[len(line) :] if fields is None else rest
            if self._blocks.get(block) is None:  # or a DELETE would end what was learnt of the same client's fields
                self._blocks.put(block, head.fields if fields is None else fields)
            if fields is not None:
                return self.head(octets, head.peer, tls=head.tls) or head
        self._heads.put((octets, head.peer, head.tls), head)
        return head
