"""The operator's log: JSON lines without secrets, and without the words of aiohttp's own loggers."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from gateway.telemetry import logging as operator_log

TOKEN = "glpat-c4n4ryc4n4ryc4n4ry"
SILENCED = ("aiohttp.server", "aiohttp.access", "aiohttp.web", "asyncio")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The log as configured; afterwards logging is as it was."""
    root = logging.getLogger()
    before = root.level, list(root.handlers), {name: logging.getLogger(name).level for name in SILENCED}
    written = io.StringIO()
    operator_log.configure("info", written)
    yield written
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in before[2].items():
        logging.getLogger(name).setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json(stream: io.StringIO) -> None:
    logging.getLogger("gateway.app").warning("serving %s", "here")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("serving here", "warning", "gateway.app")
    assert line["timestamp"].endswith("Z")


def test_below_the_level_nothing_is_said(stream: io.StringIO) -> None:
    logging.getLogger("gateway.app").debug("detail")
    assert stream.getvalue() == ""


def test_secrets_are_blanked(stream: io.StringIO) -> None:
    logging.getLogger("gateway.x").error("token %s at /x?private_token=abc", TOKEN)
    assert "c4n4ry" not in stream.getvalue()
    assert "abc" not in stream.getvalue()


def test_a_trace_is_one_line_and_blanked_too(stream: io.StringIO) -> None:
    try:
        raise ValueError(f"bad header {TOKEN}")
    except ValueError:
        logging.getLogger("gateway.x").exception("fault")
    (line,) = lines(stream)
    assert "ValueError" in line["exception"]
    assert "c4n4ry" not in stream.getvalue()


def test_octets_that_are_no_text_are_written(stream: io.StringIO) -> None:
    # To the handler alone: pytest keeps what goes through a logger, and xdist can't carry such text between processes.
    (handler,) = (each for each in logging.getLogger().handlers if getattr(each, "stream", None) is stream)
    handler.handle(logging.makeLogRecord({"name": "gateway.x", "msg": "odd \udcff", "levelname": "ERROR"}))
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("name", SILENCED)
def test_aiohttp_does_not_quote_requests(stream: io.StringIO, name: str) -> None:
    logging.getLogger(name).error("GET /%s", TOKEN)
    assert stream.getvalue() == ""


def test_configured_twice_it_is_said_once(stream: io.StringIO) -> None:
    operator_log.configure("info", stream)
    logging.getLogger("gateway.x").error("once")
    assert len(lines(stream)) == 1
