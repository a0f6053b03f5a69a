"""The operator's log: JSON lines on standard error, secrets blanked, rendered by structlog.

Everything in the package logs through the standard library's ``logging``; this module alone decides how it looks. It is
not the audit: a line here is for somebody who may have to act.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from ..core.redaction import redact
from .log_handler import PatientHandler, handler_for


def _blank_secrets(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")
    return event


def configure(level: str = "info", stream: TextIO | None = None, *, worker: int | None = None) -> None:
    """Route the root logger to ``stream`` (default: standard error) as JSON lines; a worker's lines have its number."""

    def numbered(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        if worker is not None:
            event["worker"] = worker
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            numbered,
            # After the traceback has become text: an exception's message may quote what a client sent.
            _blank_secrets,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = handler_for(stream if stream is not None else sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for previous in root.handlers:
        if isinstance(previous, PatientHandler):
            previous.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aiohttp's own loggers quote requests; the edge logs what they would say, in its own words.
    for name in ("aiohttp.server", "aiohttp.access", "aiohttp.web", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def dropped() -> int:
    """How many lines were dropped."""
    return sum(one.dropped for one in logging.getLogger().handlers if isinstance(one, PatientHandler))
