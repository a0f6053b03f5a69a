"""Certificates read again: on demand, and when a file is another one."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.app.certificates import Certificates, Reader


@asynccontextmanager
async def watching(files: Sequence[Path], *readers: Reader, interval_s: float = 60) -> AsyncIterator[Certificates]:
    named = {f"setting {number}": reader for number, reader in enumerate(readers)}
    certificates = Certificates([str(file) for file in files], named)
    certificates.watch(interval_s)
    try:
        yield certificates
    finally:
        await certificates.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


def reading(file: Path, into: list[str]) -> Reader:
    def read() -> Callable[[], None]:
        text = file.read_text()
        return lambda: into.append(text)

    return read


def put_by(file: Path, text: str) -> None:
    fresh = file.with_name("fresh")
    fresh.write_text(text)
    os.replace(fresh, file)


async def test_only_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file, there = tmp_path / "cert", list[str]()
    file.write_text("one")
    async with watching([file, tmp_path / "missing"], reading(file, there), interval_s=0.001):
        await asyncio.sleep(0.02)
        assert there == []
        put_by(file, "two")
        await until(lambda: there == ["two"])
        await asyncio.sleep(0.02)
        assert there == ["two"]


async def test_on_demand_whether_anything_changed_or_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, there = tmp_path / "cert", list[str]()
    file.write_text("one")
    with caplog.at_level(logging.INFO):
        async with watching([], reading(file, there)) as certificates:
            for times in (1, 2):
                certificates.reload()
                await until(lambda: len(there) == times)  # noqa: B023 — called at once
    assert there == ["one", "one"]
    assert caplog.text.count("certificates reloaded") == 2


async def test_a_file_that_cannot_be_used_is_reported_and_the_others_are_read(caplog: pytest.LogCaptureFixture) -> None:
    there = []
    broken = [OSError("/secret/path")]

    def read() -> Callable[[], None]:
        if broken:
            raise broken[0]
        return lambda: there.append("mended")

    async with watching([], read, lambda: lambda: there.append("other")) as certificates:
        certificates.reload()
        await until(lambda: certificates.failing)
        assert there == ["other"]
        assert "the previous one stays in use: setting 0: OSError" in caplog.text
        assert "/secret/path" not in caplog.text
        broken.clear()
        certificates.reload()
        await until(lambda: not certificates.failing)
    assert there == ["other", "mended", "other"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FileNotFoundError(2, "No such file or directory", "/etc/tls.key"), "/etc/tls.key: No such file or directory"),
        (ssl.SSLError(1, "the key k.pem is not the key of the certificate c.pem"), "the key k.pem is not the key of"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_the_log_says_which_setting_and_why(error: OSError, why: str, caplog: pytest.LogCaptureFixture) -> None:
    def read() -> Callable[[], None]:
        raise error

    async with watching([], lambda: lambda: None, read) as certificates:
        certificates.reload()
        await until(lambda: certificates.failing)
    assert f"the previous one stays in use: setting 1: {why}" in caplog.text


async def test_what_cannot_be_put_in_place_is_reported_too(caplog: pytest.LogCaptureFixture) -> None:
    """The pair that was read fitted; by then another is there."""

    def put() -> None:
        raise ssl.SSLError

    async with watching([], lambda: put) as certificates:
        certificates.reload()
        await until(lambda: certificates.failing)
    assert "SSLError" in caplog.text


async def test_nobody_waits_for_a_slow_reading() -> None:
    threads, go = list[int](), threading.Event()

    def read() -> Callable[[], None]:
        threads.append(threading.get_ident())
        go.wait(30)
        return lambda: threads.append(threading.get_ident())

    async with watching([], read) as certificates:
        certificates.reload()
        await until(lambda: len(threads) == 1)
        go.set()
        await until(lambda: len(threads) == 2)
    assert threads[0] != threading.get_ident() == threads[1]


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is the process's elsewhere")
async def test_the_thread_steps_back_and_the_others_do_not() -> None:
    own, its = os.getpriority(os.PRIO_PROCESS, 0), list[int]()

    def read() -> Callable[[], None]:
        its.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return lambda: None

    async with watching([], read) as certificates:
        certificates.reload()
        await until(lambda: len(its) == 1)
    assert its[0] > own == os.getpriority(os.PRIO_PROCESS, 0)


async def test_what_is_asked_for_meanwhile_is_read_once_more_and_comes_last(tmp_path: Path) -> None:
    file, there, begun, go = tmp_path / "cert", list[str](), list[str](), threading.Event()
    file.write_text("one")

    def read() -> Callable[[], None]:
        text = file.read_text()
        begun.append(text)
        go.wait(30)
        return lambda: there.append(text)

    async with watching([], read) as certificates:
        certificates.reload()
        await until(lambda: begun == ["one"])
        file.write_text("two")
        for _ in range(3):
            certificates.reload()
        await asyncio.sleep(0.01)
        assert begun == ["one"], "two are never under way"
        go.set()
        await until(lambda: len(there) == 2)
        await asyncio.sleep(0.01)
    assert there == ["one", "two"]


async def test_a_change_while_it_is_read_is_found(tmp_path: Path) -> None:
    file, there = tmp_path / "cert", list[str]()
    file.write_text("one")

    def read() -> Callable[[], None]:
        text = file.read_text()
        if text == "two":
            put_by(file, "three")
        return lambda: there.append(text)

    async with watching([file], read, interval_s=0.001):
        put_by(file, "two")
        await until(lambda: there == ["two", "three"])


async def test_what_is_being_read_at_the_end_is_not_put_in_place() -> None:
    there, begun, go = list[int](), threading.Event(), threading.Event()

    def read() -> Callable[[], None]:
        begun.set()
        go.wait(30)
        return lambda: there.append(1)

    async with watching([], read) as certificates:
        certificates.reload()
        await until(begun.is_set)
    go.set()
    await asyncio.sleep(0.01)
    assert there == []


async def test_it_need_not_have_begun() -> None:
    await Certificates([], {}).close()
