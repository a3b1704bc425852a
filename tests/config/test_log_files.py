"""Log files are compared as the file system has them; messages are in mistakes.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.reader import load_config
from gateway.errors import ConfigError


def config(folder: Path, *log_files: Path) -> Path:
    ports = (
        f"  - {{name: p{n}, tcp: {4001 + n}, device: /dev/serial/{n}, log_file: {log_file}}}\n"
        for n, log_file in enumerate(log_files)
    )
    path = folder / "gateway.yaml"
    path.write_text("ports:\n" + "".join(ports))
    return path


def test_links_are_followed(tmp_path: Path) -> None:
    logs, link = tmp_path / "logs", tmp_path / "link"
    logs.mkdir()
    link.symlink_to(logs)
    (logs / "other.log").symlink_to(logs / "desk.log.2")
    for other in (link / "desk.log", link / "desk.log.1", logs / "other.log"):
        path = config(tmp_path, logs / "desk.log", other)
        with pytest.raises(
            ConfigError, match=r"gateway\.yaml:3: ports\[1\]: log_file .* of line 2"
        ):
            load_config(path)
    # Without looking at files, the configuration can be read by who may not read the folder.
    assert len(load_config(path, with_files=False).ports) == 2
    assert len(load_config(config(tmp_path, logs / "desk.log", logs / "b.log")).ports) == 2


def test_the_configuration_is_not_overwritten_by_what_a_board_says(tmp_path: Path) -> None:
    path = config(tmp_path, tmp_path / "link.yaml")
    (tmp_path / "link.yaml").symlink_to(path)
    with pytest.raises(ConfigError, match="is the configuration: expected another log_file"):
        load_config(path)
