"""Secrets of a one-node gateway: made once, kept in ``state_dir``, never readable by others.

A directory of mode 0700 with files of mode 0600, each one line of 64 hex digits. Two processes that start together agree:
a file appears whole or not at all, and the first one wins. What others could have read or written is refused, not repaired:
a secret that may be known must be replaced by a person who knows what it protects.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

SECRET_BYTES = 32
_MAX_FILE_BYTES = 4096

_MISSING = "is this the gateway's configuration? If so, put it back from a backup: a new one would not match stored data"


class StateRefused(Exception):  # noqa: N818 — a decision about the disk, for the operator to read
    """The directory or a file in it cannot be trusted; the message says what to do and shows no secret."""


def open_state_dir(path: Path, *, make: bool = True) -> Path:
    """``path`` as a directory of ours; if missing, and ``make`` is set, it is created: mode 0700, parents by the umask.

    Raises StateRefused when it is no directory, belongs to another user than us or root, or others may write to it.
    """
    try:
        if make:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except FileNotFoundError as error:
        raise StateRefused(f"state_dir {path} is missing: {_MISSING}") from error
    except FileExistsError as error:
        raise StateRefused(f"state_dir {path} is not a directory") from error
    except OSError as error:
        raise StateRefused(f"state_dir {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise StateRefused(f"state_dir {path} is not a directory")
    if found.st_uid not in {os.geteuid(), 0}:
        raise StateRefused(f"state_dir {path} belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o022:
        raise StateRefused(f"state_dir {path} is writable by others: chmod 0700 it")
    return path


def secret(directory: Path, name: str, *, make: bool = True) -> bytes:
    """The 32 octets kept under ``name``; made from the system's random generator the first time, if ``make`` is set.

    Raises StateRefused for a missing file that may not be made, a link, the file of another user than us or root, one that
    group or others may read or write, or one that does not hold a secret.
    """
    path = directory / name
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(path)
        if not make:
            raise StateRefused(f"{path} is missing: {_MISSING}")
        _create(path, secrets.token_bytes(SECRET_BYTES))
        return _read(path)
    except OSError as error:
        raise StateRefused(f"{path}: {error.strerror}") from error


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StateRefused(f"{path} is not a regular file")
        if found.st_uid not in {os.geteuid(), 0}:
            raise StateRefused(f"{path} belongs to another user (uid {found.st_uid})")
        if found.st_mode & 0o077:
            raise StateRefused(
                f"{path} may be read or written by others (mode {stat.S_IMODE(found.st_mode):04o}): replace it"
            )
        text = file.read(_MAX_FILE_BYTES)
    try:
        value = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        value = b""
    if len(value) != SECRET_BYTES:
        raise StateRefused(f"{path} does not hold {SECRET_BYTES} octets in hex: restore it, or remove it to have a new one")
    return value


def _create(path: Path, value: bytes) -> None:
    """Put the file there whole, unless another process was first: a hard link never overwrites."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask took away
            file.write(value.hex().encode("ascii") + b"\n")
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
