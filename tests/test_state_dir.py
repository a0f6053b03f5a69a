from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from gateway.state_dir import SECRET_BYTES, StateRefused, open_state_dir, secret


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return open_state_dir(tmp_path / "a" / "state")


def test_the_directory_is_made_for_its_owner_alone(directory: Path) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert open_state_dir(directory) == directory


def test_a_secret_is_made_once_and_kept(directory: Path) -> None:
    first = secret(directory, "pepper")
    assert len(first) == SECRET_BYTES
    assert secret(directory, "pepper") == first
    assert secret(directory, "audit_key") != first
    assert sorted(path.name for path in directory.iterdir()) == ["audit_key", "pepper"]


def test_what_is_only_read_is_not_made(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(StateRefused, match="pepper is missing"):
        secret(directory, "pepper", make=False)
    with pytest.raises(StateRefused, match="nowhere is missing"):
        open_state_dir(tmp_path / "nowhere", make=False)
    assert list(directory.iterdir()) == []
    assert not (tmp_path / "nowhere").exists()
    assert secret(directory, "pepper") == secret(open_state_dir(directory, make=False), "pepper", make=False)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777], ids=oct)
def test_whatever_the_umask_the_file_is_for_its_owner_alone(directory: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        secret(directory, "pepper")
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "pepper").stat().st_mode) == 0o600


def test_all_who_start_together_get_the_same_secret(directory: Path) -> None:
    barrier, found = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        found.append(secret(directory, "pepper"))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in directory.iterdir()] == ["pepper"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o777], ids=oct)
def test_a_file_others_may_open_is_refused_and_left_alone(directory: Path, mode: int) -> None:
    value = secret(directory, "pepper")
    (directory / "pepper").chmod(mode)
    with pytest.raises(StateRefused, match="replace it") as refusal:
        secret(directory, "pepper")
    assert value.hex() not in str(refusal.value)
    assert stat.S_IMODE((directory / "pepper").stat().st_mode) == mode


@pytest.mark.parametrize(
    "text", [b"", b"abc", b"0" * 62, b"0" * 66, b"z" * 64, b"\xff" * 64, b"0" * 100_000], ids=lambda text: repr(text[:8])
)
def test_a_file_that_holds_no_secret_is_refused_not_replaced(directory: Path, text: bytes) -> None:
    path = directory / "pepper"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(StateRefused, match="restore it"):
        secret(directory, "pepper")
    assert path.read_bytes() == text


def test_a_link_is_not_followed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("00" * 32)
    (tmp_path / "elsewhere").chmod(0o600)
    (directory / "pepper").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateRefused):
        secret(directory, "pepper")


def test_a_pipe_is_refused_without_waiting_for_its_writer(directory: Path) -> None:
    os.mkfifo(directory / "pepper", 0o600)
    with pytest.raises(StateRefused, match="not a regular file"):
        secret(directory, "pepper")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777], ids=oct)
def test_a_directory_others_may_write_to_is_refused(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    with pytest.raises(StateRefused, match="writable by others"):
        open_state_dir(directory)


@pytest.mark.parametrize("make", [True, False])
def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path, make: bool) -> None:
    (tmp_path / "state").touch(0o600)
    with pytest.raises(StateRefused, match="state is not a directory"):
        open_state_dir(tmp_path / "state", make=make)


@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_belongs_to_another_user_is_refused(directory: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret(directory, "pepper")
    if os.geteuid() == 0:
        os.chown(directory / "pepper" if what == "file" else directory, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StateRefused, match="another user"):
        open_state_dir(directory) if what == "directory" else secret(directory, "pepper")


def test_a_directory_that_vanished_is_refused(directory: Path) -> None:
    directory.rmdir()
    with pytest.raises(StateRefused, match="No such file"):
        secret(directory, "pepper")
