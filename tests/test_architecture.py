"""The rules of docs/architecture.md that a reviewer would have to remember otherwise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gateway"

#: Packages and modules from the bottom to the top: a module imports from its own layer and those
#: above it in this list. A name stands for all modules below it; the longest one that fits counts.
LAYERS: list[set[str]] = [
    {"clock", "errors", "inputs", "log", "runtime", "systemd", "turns"},
    {"protocol"},
    {"protocol.access_server"},
    {"client"},
    {"net.tls_context"},
    {"config"},
    {"serialport"},
    {"port_document"},
    {"usb"},
    {"port"},
    {"net"},
    {"session"},
    {"mdns"},
    {"flash"},
    {"status"},
    {"labgrid_export"},
    {"running_port"},
    {"web"},
    {"service"},
    {"cli", "__main__"},
]

#: The simulator stands beside the layers: what it imports, what is imported of it, and where.
SIMULATOR_IMPORTS = {"simulator", "errors", "runtime"}
IMPORTED_OF_SIMULATOR = {
    "simulator.url": {""},
    "simulator.host": {"running_port", "service", "cli", "__main__"},
}

#: What runs inside of programs of others, below another package name, with pyserial only.
CLIENT_IMPORTS = {"client", "protocol.rfc2217", "protocol.telnet_stream"}

#: Libraries that one package or module keeps to itself, so that a replacement touches only that.
LIBRARIES = {
    "aiohttp": {"web"},
    "ifaddr": {"mdns"},
    "prometheus_client": {"web"},
    "pyudev": {"usb"},
    "serial": {"serialport", "client.protocol_gateway"},
    "serial_asyncio": {"serialport"},
    "telnetlib3": {"protocol.telnet"},
    "zeroconf": {"mdns"},
}

#: I/O, clocks and logging: protocol/ gets bytes and times, and returns bytes and events.
NOT_IN_PROTOCOL = {"asyncio", "logging", "os", "socket", "structlog", "threading", "time"}

#: Time is read and waited for through gateway/clock.py, but for other processes.
WAITS = re.compile(
    r"\bloop(\(\))?\.(time|call_later|call_at)\(|\basyncio\.(sleep\((?!0\))|timeout|wait_for)"
)
OWN_TIME = {"clock", "simulator", "client"}

#: Paths of a machine, and promises. In pieces, since this file is searched too.
NOT_PUBLISHED = re.compile("|".join(["/wor" + "k/", "/tmp/" + r"w\b", "TO" + "DO", "FIX" + "ME"]))


def name_of(path: Path) -> str:
    """A file's dotted name inside the package: `protocol.telnet`; a package has its own."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in PATHS.items()}
MODULES = [name for name, path in PATHS.items() if path.name != "__init__.py"]


def is_in(name: str, names: Iterable[str]) -> bool:
    """Whether a module is one of `names` or below it; "" stands for all."""
    return any(each in {"", name} or name.startswith(f"{each}.") for each in names)


def imports_of(name: str, *, for_types: bool = True) -> Iterator[str]:
    """Absolute names of all imports anywhere in a module: `from a.b import c` gives `a.b.c`."""

    def nodes(parent: ast.AST) -> Iterator[ast.AST]:
        for node in ast.iter_child_nodes(parent):
            yield node
            if for_types or not (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            ):
                yield from nodes(node)

    for node in nodes(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = PATHS[name].relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def modules_of(name: str, *, for_types: bool = True) -> set[str]:
    """The modules of the package that a module imports, itself excepted."""
    imports = imports_of(name, for_types=for_types)
    inside = {each[8:] for each in imports if each.startswith("gateway.")}
    return {each if each in PATHS else each.rpartition(".")[0] for each in inside} - {"", name}


def libraries_of(name: str, *, for_types: bool = True) -> set[str]:
    return {each.partition(".")[0] for each in imports_of(name, for_types=for_types)} - {"gateway"}


def layer_of(name: str) -> int:
    fits = {each: n for n, names in enumerate(LAYERS) for each in names if is_in(name, {each})}
    assert fits, f"{name} is in no layer: add it to LAYERS in {Path(__file__).name}"
    return fits[max(fits, key=len)]


def wrong_imports(allowed: Callable[[str, str], bool]) -> list[str]:
    """Imports within the package that are not allowed, as `from -> to`."""
    pairs = ((name, each) for name in MODULES for each in sorted(modules_of(name)))
    return [f"{name} -> {each}" for name, each in pairs if not allowed(name, each)]


def test_the_package_is_read_as_python_does() -> None:
    assert "protocol.rfc2217" in modules_of("protocol.access_server")
    assert "telnetlib3" in libraries_of("protocol.telnet")
    assert "errors" in modules_of("config.reader")


def test_imports_point_one_way() -> None:
    def is_allowed(name: str, imported: str) -> bool:
        beside = is_in(name, {"simulator"}) or is_in(imported, {"simulator"})
        return beside or layer_of(imported) <= layer_of(name)

    assert not wrong_imports(is_allowed)
    try:
        # A port and its claims know each other's types.
        TopologicalSorter({name: modules_of(name, for_types=False) for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_simulator_is_a_program_of_its_own() -> None:
    def is_allowed(name: str, imported: str) -> bool:
        if is_in(name, {"simulator"}):
            return is_in(imported, SIMULATOR_IMPORTS)
        return not is_in(imported, {"simulator"}) or is_in(
            name, IMPORTED_OF_SIMULATOR.get(imported, ())
        )

    assert not wrong_imports(is_allowed)


def test_the_client_and_the_service_import_nothing_of_each_other() -> None:
    def is_allowed(name: str, imported: str) -> bool:
        if is_in(name, {"client"}):
            return is_in(imported, CLIENT_IMPORTS)
        return not is_in(imported, {"client"})

    assert not wrong_imports(is_allowed)
    for name in filter(lambda name: is_in(name, CLIENT_IMPORTS), MODULES):
        libraries = libraries_of(name) - sys.stdlib_module_names
        assert libraries <= {"serial"}, name
        # There the package has another name: packaging/esp_serial_gateway_client.py.
        assert not re.search(r"^\s*(from|import) gateway\b", PATHS[name].read_text(), re.MULTILINE)


def test_protocol_does_no_io() -> None:
    # A type's name does nothing.
    found = {n: libraries_of(n, for_types=False) & NOT_IN_PROTOCOL for n in MODULES}
    assert not {n: each for n, each in found.items() if is_in(n, {"protocol"}) and each}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_in_one_place(library: str) -> None:
    importers = [name for name in PATHS if library in libraries_of(name)]
    assert [name for name in importers if not is_in(name, LIBRARIES[library])] == []


def test_time_is_read_and_waited_for_on_the_injected_clock() -> None:
    waiting = [name for name in MODULES if WAITS.search(PATHS[name].read_text())]
    assert [name for name in waiting if not is_in(name, OWN_TIME)] == []


def test_a_package_file_holds_no_code() -> None:
    # An importer of one module would load all that a package file imports. The outermost one may
    # hold constants such as the version.
    for name in PATHS.keys() - set(MODULES):
        _, *others = TREES[name].body
        assert not [
            each for each in others if name != "__init__" or not isinstance(each, ast.Assign)
        ], name


def test_tracked_files_name_no_machine_and_promise_nothing() -> None:
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(git, capture_output=True, text=True, check=True, timeout=30)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not in a git work tree: {error}")
    names = [name for name in listed.stdout.split("\0") if name and "/vendor/" not in name]
    assert "pyproject.toml" in names
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in names
        if (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1)
        if NOT_PUBLISHED.search(line)
    ]
    assert not found
