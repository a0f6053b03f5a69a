"""Certificates read again: on demand, and when a file is another one."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from gateway.app.certificates import Certificates


def test_only_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file, read = tmp_path / "cert", []
    file.write_text("one")
    certificates = Certificates([str(file), str(tmp_path / "missing")], [lambda: read.append(file.read_text())])
    certificates.check()
    assert read == []
    fresh = tmp_path / "fresh"
    fresh.write_text("two")
    os.replace(fresh, file)
    certificates.check()
    certificates.check()
    assert read == ["two"]
    certificates.reload()
    assert read == ["two", "two"]


def test_a_file_that_cannot_be_used_is_told_and_the_others_are_read(caplog: pytest.LogCaptureFixture) -> None:
    read = []

    def broken() -> None:
        raise OSError("/secret/path")

    certificates = Certificates([], [broken, lambda: read.append(1)])
    with caplog.at_level(logging.ERROR):
        certificates.reload()
    assert certificates.failing
    assert read == [1]
    assert "OSError" in caplog.text
    assert "/secret/path" not in caplog.text


async def test_watching(tmp_path: Path) -> None:
    file, seen = tmp_path / "cert", asyncio.Event()
    file.write_text("one")
    certificates = Certificates([str(file)], [seen.set])
    certificates.watch(0.001)
    file.write_text("another")
    await asyncio.wait_for(seen.wait(), 5)
    await certificates.close()


async def test_nothing_to_watch() -> None:
    certificates = Certificates([], [])
    certificates.watch()
    await certificates.close()
