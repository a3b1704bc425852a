"""What is in the wheel and in the source archive."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import run_tool

ROOT = Path(__file__).parents[2]
BUILD_LIMIT_S = 300.0


@dataclass(frozen=True)
class Built:
    """What the packages hold, and the files of the checkout that they were built from."""

    checkout: set[str]
    wheel: set[str]
    archive: dict[str, int]  # each file's mode; without the folder that all are in


def files_of_checkout() -> list[str]:
    """What git knows or would add; a build must not see what else lies around here."""
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(
            [*git, "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not in a git work tree: {error}")
    names = {name for name in listed.stdout.split("\0") if name}
    return sorted(name for name in names if (ROOT / name).is_file())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packages")
    names = files_of_checkout()
    for name in names:
        target = folder / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    # What running leaves behind.
    (folder / "checkout" / "gateway" / "__pycache__").mkdir()
    (folder / "checkout" / "gateway" / "__pycache__" / "cli.cpython-311.pyc").touch()
    # The archive from the checkout, and the wheel from the archive.
    output = str(folder / "dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", output]
    done = run_tool([*command, folder / "checkout"], BUILD_LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    [wheel] = (folder / "dist").glob("*.whl")
    [archive] = (folder / "dist").glob("*.tar.gz")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as open_wheel, tarfile.open(archive) as open_archive:
        modes = {each.name.partition("/")[2]: each.mode for each in open_archive if each.isfile()}
        return Built(set(names), set(open_wheel.namelist()), modes)


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(built: Built) -> None:
    modules = {name for name in built.checkout if name.startswith("gateway/")}
    assert {"gateway/cli/main.py", "gateway/py.typed", "gateway/simulator/loader.py"} <= modules
    about_it = {name for name in built.wheel if ".dist-info/" in name}
    # Beside the package, where the interpreter looks.
    client = {"esp_serial_gateway_client.pth", "esp_serial_gateway_client.py"}
    assert built.wheel - about_it == modules | client
    assert {name.partition(".dist-info/")[2] for name in about_it} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_source_archive_holds_the_checkout(built: Built) -> None:
    assert set(built.archive) - {"PKG-INFO"} == built.checkout
    assert {"systemd/install.sh", "tests/README.md", "docs/operations.md"} <= built.checkout


def test_scripts_of_the_source_archive_can_be_run(built: Built) -> None:
    can_be_run = {name for name, mode in built.archive.items() if mode & 0o111}
    assert {"systemd/install.sh", ".ci/run"} <= can_be_run
