"""The rules of docs/architecture.md that a reviewer would have to remember otherwise."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "gateway"

#: From what all may use to what nobody may. A module imports from its own floor and those above
#: it in this list; `*` stands for any name. The simulator has rules of its own, below.
FLOORS: list[set[str]] = [
    {
        "clock",
        "errors",
        "inputs",
        "log",
        "runtime",
        "systemd",
        "turns",
    },
    {
        "protocol.serial_settings",
        "protocol.rfc2217",
        "protocol.reset",
        "protocol.line_controller",
        "protocol.telnet*",
        "protocol.board*",
        "protocol.greeting",
    },
    {"protocol.access_server"},
    {"client.*"},
    {"net.tls_context"},
    {"config.*"},
    {"tty.*"},
    {"usb.*"},
    {"devices.*"},
    {"net.*"},
    {"sessions.*"},
    {"mdns.*"},
    {"flash.*"},
    {"status", "status_socket"},
    {"labgrid_export"},
    {"ports.*"},
    {"web", "web.*"},
    {"http_front", "reload"},
    {"service"},
    {"cli.*", "__main__"},
]

#: What connects sim:// devices to the rest, and who may: everybody else knows of serial ports.
SIMULATOR_HOST = "simulator.host"
SIMULATOR_HOST_USERS = {"ports.running_port", "cli.*", "__main__"}
#: Checking a sim:// address needs no simulator.
SIMULATOR_URL = "simulator.url"

#: I/O, clocks and logging: protocol/ is told bytes and times and returns bytes and events.
NOT_IN_PROTOCOL = {"asyncio", "time", "socket", "os", "threading", "logging", "structlog"}

#: Replaced by gateway/clock.py, so that tests hold time: the loop's own and asyncio's ways to wait.
WAITS_ON_THE_LOOPS_CLOCK = re.compile(
    r"\bloop(\(\))?\.(time|call_later|call_at)\(|\basyncio\.(sleep\((?!0\))|timeout|wait_for)"
)

#: Other processes, and the clock itself.
KEEPS_ITS_OWN_TIME = {"clock", "simulator.*", "client.*"}

#: What the client, which runs inside of others' programs, may import of the package.
CLIENT_MAY_IMPORT = {"client.*", "protocol.rfc2217", "protocol.telnet_stream"}

#: Third-party packages that one room keeps to itself, so that replacing one touches one room.
ONLY_IMPORTED_BY = {
    "serial": {"tty.serial_*", "client.protocol_gateway"},
    "serial_asyncio": {"tty.serial_*"},
    "telnetlib3": {"protocol.telnet"},
    "pyudev": {"usb.hotplug"},
    "aiohttp": {"web.*"},
    "prometheus_client": {"web.metrics", "web.exposition"},
    "zeroconf": {"mdns.*"},
    "ifaddr": {"mdns.*"},
}

#: No machine's paths and no promises in what is published. In pieces, since this file is too.
NOT_IN_TRACKED_FILES = re.compile(
    "|".join(["/wor" + "k/", "/tmp/" + r"w\b", "TO" + "DO", "FIX" + "ME"])
)

#: Unchanged files of others in the package.
OF_OTHERS = "/vendor/"

PATHS = sorted((ROOT / PACKAGE).rglob("*.py"))


def name_of(path: Path) -> str:
    """A file's name inside the package, dotted: `protocol.telnet`; '' is the package itself."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PATHS}


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )


def nodes_of(tree: ast.AST, *, for_types: bool) -> Iterator[ast.AST]:
    """Every node; those below `if TYPE_CHECKING:` only if `for_types`."""
    for node in ast.iter_child_nodes(tree):
        yield node
        type_checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if for_types or not type_checking:
            yield from nodes_of(node, for_types=for_types)


def imported_names(name: str, *, for_types: bool = True) -> Iterator[str]:
    """All that a module imports, absolute and dotted, wherever in the module it does.

    `from a.b import c` gives `a.b.c`: c may be a module.
    """
    path = MODULES[name]
    for node in nodes_of(ast.parse(path.read_text()), for_types=for_types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_modules(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for imported in imported_names(name):
        package, _, inside = imported.partition(".")
        if package == PACKAGE:
            # What is imported may be a module or something in one.
            found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    # Package files are docstrings (checked below): importing from one brings nothing.
    return found - {"", name}


def outside_packages(name: str, *, for_types: bool = True) -> set[str]:
    names = imported_names(name, for_types=for_types)
    return {imported.partition(".")[0] for imported in names} - {PACKAGE}


def floor_of(name: str) -> int:
    for floor, names in enumerate(FLOORS):
        if matches(name, names):
            return floor
    raise AssertionError(f"{name} has no floor yet: give it one in {Path(__file__).name}")


def is_package_file(name: str) -> bool:
    return MODULES[name].name == "__init__.py"


WITH_FLOOR = [
    name for name in MODULES if not is_package_file(name) and not name.startswith("simulator.")
]
SIMULATOR = [name for name in MODULES if name.startswith("simulator.")]


def test_there_is_a_package_to_check() -> None:
    assert {"errors", "protocol.telnet", "protocol.reset"} <= set(MODULES)
    assert "protocol.rfc2217" in imported_modules("protocol.access_server")
    assert "telnetlib3" in outside_packages("protocol.telnet")


@pytest.mark.parametrize("name", WITH_FLOOR)
def test_imports_point_one_way(name: str) -> None:
    floor = floor_of(name)
    wrong = {
        imported
        for imported in imported_modules(name)
        if not imported.startswith("simulator") and floor_of(imported) > floor
    }
    assert not wrong


def test_no_modules_import_each_other() -> None:
    graph = {name: imported_modules(name) for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_errors_imports_nothing_of_the_package() -> None:
    assert not imported_modules("errors")


@pytest.mark.parametrize("name", WITH_FLOOR)
def test_the_simulator_is_reached_only_through_its_host_and_its_addresses(name: str) -> None:
    reached = {each for each in imported_modules(name) if each.startswith("simulator")}
    allowed = {SIMULATOR_URL}
    if matches(name, SIMULATOR_HOST_USERS):
        allowed.add(SIMULATOR_HOST)
    assert reached <= allowed


@pytest.mark.parametrize("name", SIMULATOR)
def test_the_simulator_knows_nothing_of_the_gateway(name: str) -> None:
    wrong = {
        imported
        for imported in imported_modules(name)
        if imported not in {"errors", "runtime"} and not imported.startswith("simulator")
    }
    assert not wrong


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("protocol")])
def test_protocol_does_no_io(name: str) -> None:
    # The name of a type does nothing.
    assert not outside_packages(name, for_types=False) & NOT_IN_PROTOCOL


@pytest.mark.parametrize("name", MODULES)
def test_time_is_read_and_waited_for_on_the_injected_clock(name: str) -> None:
    if not matches(name, KEEPS_ITS_OWN_TIME):
        assert not WAITS_ON_THE_LOOPS_CLOCK.findall(MODULES[name].read_text())


@pytest.mark.parametrize("name", MODULES)
def test_the_client_and_the_service_know_nothing_of_each_other(name: str) -> None:
    imported = imported_modules(name)
    if name.startswith("client."):
        assert all(matches(each, CLIENT_MAY_IMPORT) for each in imported)
        assert outside_packages(name) <= {"serial", *sys.stdlib_module_names}
    else:
        assert not any(each.startswith("client.") for each in imported)


@pytest.mark.parametrize("name", [name for name in MODULES if matches(name, CLIENT_MAY_IMPORT)])
def test_what_runs_in_others_programs_imports_relatively(name: str) -> None:
    # There it is below another name than `gateway`: packaging/esp_serial_gateway_client.py.
    tree = ast.parse(MODULES[name].read_text())
    absolute = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not {each for each in absolute if each.partition(".")[0] == PACKAGE}


@pytest.mark.parametrize("package", ONLY_IMPORTED_BY)
def test_a_third_party_package_stays_in_its_room(package: str) -> None:
    importers = {name for name in MODULES if package in outside_packages(name)}
    assert {name for name in importers if not matches(name, ONLY_IMPORTED_BY[package])} == set()


@pytest.mark.parametrize("name", [name for name in MODULES if is_package_file(name)])
def test_a_package_file_holds_no_code(name: str) -> None:
    docstring, *others = ast.parse(MODULES[name].read_text()).body
    assert isinstance(docstring, ast.Expr)
    # The whole's front door may hold constants such as a version. Not even names of its modules:
    # who imports one of them would load them all.
    assert all(isinstance(node, ast.Assign | ast.AnnAssign) for node in others)
    assert not others or not name


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))


def test_tracked_files_name_no_machine_and_promise_nothing() -> None:
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(git, capture_output=True, text=True, check=True, timeout=30)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not in a git work tree: {error}")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name and OF_OTHERS not in name]
    assert ROOT / "pyproject.toml" in paths
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        if path.is_file()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if NOT_IN_TRACKED_FILES.search(line)
    ]
    assert not found
