"""A file that is whole at every moment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.usb.state_file import MAX_BYTES, default_folder, read_state, set_aside, write_state


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "state.json"
    assert read_state(path) is None
    for state in ({"a": [1, "\u00e4"]}, {"b": None}):
        write_state(path, state)
        assert read_state(path) == state
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaNa"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r".+"):
        read_state(path)
    set_aside(path)
    assert read_state(path) is None
    assert (tmp_path / "state.json.unreadable").read_bytes() == data


def test_a_file_that_is_too_large_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES * 1000)
    with pytest.raises(ValueError, match="more than"):
        read_state(path)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "state.json"
    write_state(path, "before")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    owner: object = os if fails == "fsync" else Path
    monkeypatch.setattr(owner, fails, no_space)
    with pytest.raises(OSError, match="No space"):
        write_state(path, "after")
    monkeypatch.undo()
    assert read_state(path) == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_written_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(fd: int) -> None:
        steps.append("folder synced" if os.path.isdir(f"/proc/self/fd/{fd}") else "file synced")  # noqa: PTH112
        fsync(fd)

    def noted_replace(old: Path, new: Path) -> Path:
        steps.append("renamed")
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_state(tmp_path / "state.json", 1)
    assert steps == ["file synced", "renamed", "folder synced"]


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/esp-gateway"}, "/var/lib/esp-gateway"),
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/home/x/state"}, "/home/x/state/esp-gateway"),
        ({"XDG_STATE_HOME": "relative"}, str(Path("~/.local/state/esp-gateway").expanduser())),
        ({}, str(Path("~/.local/state/esp-gateway").expanduser())),
    ],
)
def test_the_folder_is_systemd_s_else_the_user_s(environment: dict[str, str], folder: str) -> None:
    assert default_folder(environment) == Path(folder)
