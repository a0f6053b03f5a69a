"""The audit's chain: each line carries a MAC over itself and the previous MAC, so none can be removed, changed or moved.

    {…,"chain":"<16 hex: one run of one gateway>","seq":<0, 1, 2 …>,"mac":"<64 hex: HMAC-SHA-256>"}

Lines of several gateways may be mixed in one file: each chain is followed by its own name. A chain alone cannot show that
its end is missing. Therefore it ends with a closing line, names its predecessor when it starts, and reports to the
operator's log how far it has come.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from binascii import hexlify
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

_DOMAIN = b"gitlab-gateway audit chain 1"
_TAIL = re.compile(rb'(?s)(.*,"chain":"([0-9a-f]{16})","seq":([0-9]{1,18})),"mac":"([0-9a-f]{64})"\}')
_START = bytes(32)
_BLOCK_BYTES = 64
"""The block size of SHA-256."""
_INNER = bytes(octet ^ 0x36 for octet in range(256))
_OUTER = bytes(octet ^ 0x5C for octet in range(256))

OPENED, CLOSED = "chain_opened", "chain_closed"
_NAMES_MISSING = "names an earlier line that is missing"
_REPEATS = "has the MAC of an earlier line: it was written again after a disk failure, or copied"
_BORROWS = "has the MAC of an earlier line but other content: it was forged"
_ANOTHER_KEY = "no line is proven: `secrets.audit_key` may not be the one that they were written with"
_ALONE = "is the only line left of its chain, and nothing proves it"


def chain_key(audit_key: bytes) -> bytes:
    """The key of the chain, derived from ``secrets.audit_key`` for this purpose alone: fingerprints are keyed otherwise."""
    return hmac.digest(audit_key, _DOMAIN, hashlib.sha256)


class Chain:
    """The chain of one run of one gateway. ``name`` is 16 hex digits that no other run has."""

    __slots__ = ("_inner", "_mac", "_name", "_outer", "_seq", "name")

    def __init__(self, key: bytes, name: str) -> None:
        # HMAC by its definition (RFC 2104 §2), from two hashes that have already taken in their pads: `hmac`'s own objects,
        # even copied, cost half as much again as hashing the line does. `verify` uses `hmac`.
        padded = (key if len(key) <= _BLOCK_BYTES else hashlib.sha256(key).digest()).ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(padded.translate(_INNER))
        self._outer = hashlib.sha256(padded.translate(_OUTER))
        self._mac = _START
        self._seq = 0
        self.name = name
        self._name = name.encode("ascii")

    def link(self, line: bytes) -> bytes:
        """``line``, a JSON object with at least one member, as the next line of the chain."""
        body = b'%b,"chain":"%b","seq":%d' % (line[:-1], self._name, self._seq)
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(self._mac + body)
        outer.update(inner.digest())
        self._mac = outer.digest()
        self._seq += 1
        return b'%b,"mac":"%b"}' % (body, hexlify(self._mac))

    def close(self, line: bytes) -> bytes:
        """``line`` as the last of the chain. It holds the previous MAC, so it can be proven where nothing else is left."""
        return self.link(b'%b,"before":"%b"}' % (line[:-1], hexlify(self._mac)))

    @property
    def head(self) -> str:
        """The last line so far, as ``verify`` takes it: ``NAME:SEQ:MAC``."""
        return f"{self.name}:{self._seq - 1}:{self._mac.hex()}"


class Flaw(msgspec.Struct, frozen=True):
    """What is wrong at a line, counted from 1; line 0 is the end of the file."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}" if self.line else self.what


class _ChainState:
    """How far one chain has been read, and at which line it began."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.mac = _START
        self.next_seq = 0
        self.closed = False


def verify(
    lines: Iterable[bytes], key: bytes, *, still_open: bool = False, partial: bool = False, heads: Iterable[str] = ()
) -> Iterator[Flaw]:
    """Every flaw of a file.

    Args:
        lines: The file's lines in order, without their line ends.
        key: ``chain_key``.
        still_open: A gateway is still writing, or was killed: a chain without its closing line is no flaw.
        partial: What was before the file's first line is gone. The first line seen of a chain may then be any line of it,
            and its content is not proven. That it belongs to a chain at all is proven by the next line, by a run or a head
            that names it, or, if it is a closing line, by itself. A run may name a missing line if it begins at the first
            line of the file, or if another chain that was there before it goes on after it: the writer of that chain may
            have written the file's first lines after the run had looked up the line it names.
        heads: Earlier values of ``Chain.head``, from the operator's log: each must be in the file.
    """
    chains: dict[bytes, _ChainState] = {}
    macs: dict[bytes, bytes | None] = {}
    """The MAC of each line, and the previous line's as far as that is known."""
    named: set[bytes] = set()
    alone: dict[bytes, tuple[int, bytes]] = {}
    """For each chain whose beginning is gone and of which only one line is left: that line's number and MAC."""
    unnamed: list[int] = []
    """Lines that name a missing line, not excused so far; in the order of the file."""
    proven_lines = unproven_lines = 0
    wanted = {tuple(head.encode("ascii", "replace").split(b":")) for head in heads}
    for number, line in enumerate(lines, 1):
        found = _TAIL.fullmatch(line)
        if found is None:
            yield Flaw(number, "is not a line of a chain")
            continue
        body, name, seq, mac = found[1], found[2], int(found[3]), bytes.fromhex(found[4].decode("ascii"))
        begun = name in chains
        chain = chains.setdefault(name, _ChainState(number))
        while unnamed and unnamed[-1] > chain.first:
            unnamed.pop()
        if partial and not begun and seq:
            chain.mac, chain.next_seq = mac, seq + 1
            chain.closed = _event(line) == CLOSED
            macs[mac] = before = _named(line, "before")
            proven = before is not None and hmac.compare_digest(mac, hmac.digest(key, before + body, hashlib.sha256))
            if not proven and (name, found[3], found[4]) not in wanted:
                alone[name] = (number, mac)
            wanted.discard((name, found[3], found[4]))
            continue
        if mac in macs:
            # The line after it continues from the line before it.
            follows = macs[mac]
            same = follows is None or hmac.compare_digest(mac, hmac.digest(key, follows + body, hashlib.sha256))
            yield Flaw(number, _REPEATS if same else _BORROWS)
            continue
        alone.pop(name, None)
        if seq != chain.next_seq:
            yield Flaw(number, f"is number {seq} of its chain where {chain.next_seq} belongs")
        if hmac.compare_digest(mac, hmac.digest(key, chain.mac + body, hashlib.sha256)):
            proven_lines += 1
        else:
            unproven_lines += 1
            yield Flaw(number, "was changed, or does not follow the line before it")
        if chain.closed:
            yield Flaw(number, "follows the closing line of its chain")
        event = _event(line)
        if (event == OPENED) is not (seq == 0):
            yield Flaw(number, "opens a chain but is not its line 0, or is line 0 but does not open the chain")
        after = _named(line, "after") if event == OPENED else None
        if after is not None:
            named.add(after)
        if after is not None and after not in macs and not (partial and number == 1):
            if partial:
                unnamed.append(number)
            else:
                yield Flaw(number, _NAMES_MISSING)
        chain.closed = event == CLOSED
        macs[mac] = chain.mac
        chain.mac, chain.next_seq = mac, seq + 1
        wanted.discard((name, found[3], found[4]))
    for number in unnamed:
        yield Flaw(number, _NAMES_MISSING)
    for number, mac in alone.values():
        if mac not in named:
            yield Flaw(number, _ALONE)
    for name, chain in chains.items():
        if not chain.closed and not still_open:
            yield Flaw(
                0, f"chain {name.decode('ascii')} is not closed: its gateway still runs or was killed, or lines are missing"
            )
    if not chains:
        yield Flaw(0, "no line of a chain was found")
    if unproven_lines > 1 and not proven_lines:
        yield Flaw(0, _ANOTHER_KEY)
    for head in sorted(wanted):
        yield Flaw(0, f"the line {b':'.join(head[:2]).decode('ascii', 'replace')} that the operator's log names is missing")


class _ChainedLine(msgspec.Struct):
    event: str = ""
    after: str = ""
    before: str = ""


_decode = msgspec.json.Decoder(_ChainedLine).decode


def _event(line: bytes) -> str:
    try:
        return _decode(line).event
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _named(line: bytes, member: Literal["after", "before"]) -> bytes | None:
    """The MAC of another line that ``line`` holds."""
    try:
        return bytes.fromhex(getattr(_decode(line), member)) or None
    except (ValueError, RecursionError):
        return None


def mac_of(line: bytes) -> str:
    """The MAC that ``line`` carries; empty if it carries none."""
    found = _TAIL.fullmatch(line)
    return found[4].decode("ascii") if found is not None else ""
