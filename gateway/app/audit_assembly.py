"""Wires the audit: its sink, its spool, its chain, and what a process that died left of these."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from ..config import Config
from ..config.vocabulary import Durability, OnAudit
from ..core.audit_chain import Chain, chain_key
from ..state_dir import StateRefused, open_state_dir
from ..telemetry.audit import AuditLog
from ..telemetry.audit_writer import AuditWriter
from ..telemetry.sinks import Sink, Tail, open_sink, path_of, read_tail
from ..telemetry.spool import Spool
from ..telemetry.turns import TurnSink

log = logging.getLogger("gateway.audit")


def open_audit(config: Config, audit_key: Callable[[], bytes], *, where: str = "", turns: int | None = None) -> AuditLog:
    """Open the audit, ready to write. Raises OSError when the sink can't be opened.

    Args:
        config: The configuration, which says how.
        audit_key: Returns the audit key; called only where lines are chained.
        where: A sink to use instead of the configured one; lines spooled for the configured one are left where they are.
        turns: Where several processes write to the sink, the file whose lock says whose turn it is (``telemetry.turns``).
    """
    audit = config.audit
    where = where or audit.sink
    tail = read_tail(where)
    if turns is not None:
        tail = _without_torn(
            tail
        )  # what looks torn may be a line that another process is writing; the turns see to a torn one
    rotate, durable = audit.rotate, audit.durability is Durability.BEFORE_WRITE
    spool = None
    if audit.on_failure is not OnAudit.DROP:
        spool = Spool(_directory(config), audit.spool, inherits=where == audit.sink)
    sink: Sink = open_sink(
        where,
        rotate_bytes=rotate.size if rotate is not None else 0,
        keep=rotate.keep if rotate is not None else 1,
        torn_in=tail.torn_in,
        # What is spooled may be another's, which may have promised it.
        durable=lambda: durable or (spool is not None and spool.used_bytes > 0),
    )
    if turns is not None:
        sink = TurnSink(sink, turns, path=path_of(where))
    torn, after = b"\n" if tail.torn else b"", tail.mac
    if spool is not None:
        try:
            spool.claim()
        except OSError as error:
            log.warning("audit lines that wait on disk cannot be taken over: %s", error)
        with contextlib.suppress(OSError):
            torn, after = spool.resume(tail), spool.last_mac or after
    elif where == audit.sink and (held := _held(config)):
        log.warning("the audit's spools hold %d octets: with `on_failure: drop` they stay where they are", held)
    if spool is not None and spool.waiting_bytes:
        log.warning("the audit's spool holds %d octets of an earlier process: they are written first", spool.waiting_bytes)
    return AuditLog(
        AuditWriter(
            sink, spool, partial_line=tail.torn, torn=torn, tail=lambda: _without_torn(read_tail(where)), durable=durable
        ),
        chain=Chain(chain_key(audit_key()), secrets.token_hex(8)) if audit.chain else None,
        after=after,
        before_write=durable,
        blocks_reads=audit.on_failure is OnAudit.SPOOL_THEN_BLOCK_ALL,
    )


def _without_torn(tail: Tail) -> Tail:
    return Tail(tail.line, before=tail.before)


def _held(config: Config) -> int:
    """How many octets wait on disk, in the spools of other processes."""
    try:
        return sum(path.lstat().st_size for path in Path(config.state_dir).glob("audit-*.spool"))
    except OSError:  # another process has just taken one up
        return 0


def _directory(config: Config) -> Path | None:
    try:
        return open_state_dir(Path(config.state_dir))
    except StateRefused as refused:
        log.warning("the audit has no spool, so requests are refused as soon as the sink fails: %s", refused)
        return None
