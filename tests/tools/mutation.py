"""Mutation testing: break lines of the gateway, one at a time, and see whether a test fails.

    python -m tests.tools.mutation --seed 1 protocol=50 session=50

A random sample: for each package, places are drawn over all its modules, at least one of each, and
for each place one mutation. Most are cosmic-ray's; the removal of a statement is added. Mutants
that differ in annotations only are not drawn. First the tests run once under
coverage; then each mutant gets the tests that run its statement, the package's own folder first,
quickest first, until one fails. A mutant that no test runs has survived.

A test that takes 10 times as long as without the mutant, and 20 s more, counts as failed.
Equivalent mutants are named with their reason in mutation-equivalent.toml and not counted.
Works on copies in a temporary folder; the tree is not changed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeGuard

import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT: Final = Path(__file__).parents[2]
EQUIVALENT: Final = Path(__file__).parent / "mutation-equivalent.toml"

#: Mutants by package of the core, and the folders whose tests may kill them besides the package's
#: own. Names of both layouts: only packages and folders that exist count.
CORE: Final = {
    **dict.fromkeys(("protocol", "session", "port", "net"), 50),
    **dict.fromkeys(("serialport",), 20),
}
DEFAULT: Final = [f"{name}={n}" for name, n in CORE.items() if (ROOT / "gateway" / name).is_dir()]
TEST_FOLDERS: Final = [
    name for name in (*CORE, "scenarios") if (ROOT / "tests" / name / "__init__.py").exists()
]

#: These need a variable to replace, by another that the operator draws by itself.
LEFT_OUT: Final = frozenset({"core/VariableReplacer", "core/VariableInserter"})

#: A run of pytest that takes longer is ended: a mutant may hang where no test is timed.
LIMIT_S: Final = 3600.0

NOT_COPIED: Final = shutil.ignore_patterns(".*", "*.egg-info")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module."""

    package: str
    path: str
    line: int
    column: int
    operator: str
    occurrence: int


@dataclass(frozen=True, slots=True)
class Result:
    """What the tests have said of a mutant."""

    mutant: Mutant
    before: str
    after: str
    killed_by: str
    tests: int


def main() -> None:
    """Run the command line."""
    options = _parser().parse_args()
    options.packages = dict(map(_with_count, options.packages))
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copies = [_copy(Path(folder) / str(number)) for number in range(options.jobs)]
        print(f"running the tests without a mutant in {copies[0]}", flush=True)
        tests = TestsOfLines(copies[0])
        for each in copies[1:]:
            shutil.copy(copies[0] / "times.json", each)
        chosen = [
            mutant
            for package, count in options.packages.items()
            for mutant in _draw(copies[0], package, count, options.seed)
        ]
        print(f"{len(chosen)} mutants, seed {options.seed}", flush=True)
        results = _try_all(chosen, copies, tests, options.limit_s, options.output)
    _print_table(results, options.packages)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.mutation",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "packages",
        nargs="*",
        metavar="PACKAGE[=MUTANTS]",
        default=DEFAULT,
        help=f"default: {' '.join(DEFAULT)}",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the sample (1)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    parser.add_argument(
        "--limit-s",
        type=float,
        default=60.0,
        help="tests for a mutant are chosen up to this sum of their times (60)",
    )
    parser.add_argument("--output", type=Path, help="append the results as lines of JSON")
    return parser


def _with_count(argument: str) -> tuple[str, int]:
    package, _, count = argument.partition("=")
    return package, int(count or 50)


def _copy(folder: Path) -> Path:
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    return folder


# --- the sample


def _modules(tree: Path, package: str) -> list[Path]:
    modules = sorted((tree / "gateway" / package).glob("*.py"))
    return [each for each in modules if each.name != "__init__.py"]


def _draw(tree: Path, package: str, count: int, seed: int) -> list[Mutant]:
    """Draw places over all modules, at least one of each, and one mutation for each place."""
    chooser = random.Random(f"{seed} {package}")
    drawn: list[Mutant] = []
    places = []
    for module in _modules(tree, package):
        by_place = defaultdict(list)
        path = str(module.relative_to(tree))
        for mutant in _mutants_of(package, path, module.read_text()):
            by_place[mutant.line, mutant.column, mutant.operator == REMOVAL].append(mutant)
        of_module = list(by_place.values())
        chooser.shuffle(of_module)
        if first := _first_that_changes_code(tree, of_module, chooser):
            drawn.append(first)
        places += of_module
    chooser.shuffle(places)
    while places and len(drawn) < count:
        if another := _first_that_changes_code(tree, places, chooser):
            drawn.append(another)
    return drawn


def _first_that_changes_code(
    tree: Path, places: list[list[Mutant]], chooser: random.Random
) -> Mutant | None:
    """Take places off the end until one has a mutation of more than annotations."""
    while places:
        mutant = chooser.choice(places.pop())
        source = (tree / mutant.path).read_text()
        changed = _mutated(source, mutant)
        try:
            if changed is not None and _bare(changed) != _bare(source):
                return mutant
        except SyntaxError:  # for instance 1 ++ 2 in a keyword's place: no mutant
            continue
    return None


def _mutants_of(package: str, path: str, source: str) -> Iterator[Mutant]:
    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(set(operator_names()) - LEFT_OUT):
        operator = get_operator(name)()
        positions = (at for node in nodes for at in operator.mutation_positions(node))
        for occurrence, ((line, column), _) in enumerate(positions):
            yield Mutant(package, path, line, column, name, occurrence)
    for occurrence, statement in enumerate(_removable(source)):
        yield Mutant(package, path, statement.lineno, statement.col_offset, REMOVAL, occurrence)


REMOVAL: Final = "RemoveStatement"


def _removable(source: str) -> list[ast.stmt]:
    """Statements in functions that do something: calls, assignments, raise, del, return VALUE."""
    found: list[ast.stmt] = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            found += [each for each in ast.walk(function) if _does_something(each)]
    return list(dict.fromkeys(found))


def _does_something(node: ast.AST) -> TypeGuard[ast.stmt]:
    match node:
        case ast.Expr(value=ast.Constant()):
            return False
        case ast.AnnAssign(value=value):
            return value is not None
    return isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Delete)


def _mutated(source: str, mutant: Mutant) -> str | None:
    if mutant.operator == REMOVAL:
        statement = _removable(source)[mutant.occurrence]
        lines = source.splitlines(keepends=True)
        assert statement.end_lineno is not None
        assert statement.end_col_offset is not None
        head = lines[statement.lineno - 1].encode()[: statement.col_offset].decode()
        tail = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
        lines[statement.lineno - 1 : statement.end_lineno] = [head + "pass" + tail]
        return "".join(lines)
    changed: str | None = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    return changed


def _bare(source: str) -> str:
    """Return what is left of the code without annotations, which are never evaluated."""

    class Bare(ast.NodeTransformer):
        def visit_arg(self, node: ast.arg) -> ast.arg:
            node.annotation = None
            return node

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            node.annotation = ast.Constant("")
            return self.generic_visit(node)

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            node.returns = None
            return self.generic_visit(node)

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
            node.returns = None
            return self.generic_visit(node)

    return ast.dump(Bare().visit(ast.parse(source)))


# --- the tests


class TestsOfLines:
    """Which tests run a line, and how long each takes: from one run without a mutant."""

    __test__ = False

    def __init__(self, copy: Path) -> None:
        folders = [f"tests/{each}" for each in TEST_FOLDERS]
        code, said = _pytest(copy, ["-m", "not slow", *folders], coverage_file=copy / ".coverage")
        if code:
            sys.exit(f"the tests fail without a mutant:\n{said[-5000:]}")
        self._copy = copy
        self._data = coverage.CoverageData(str(copy / ".coverage"))
        self._data.read()
        self._times: dict[str, float] = json.loads((copy / "times.json").read_text())
        # Read now: the copy has a mutant in it while others are chosen for.
        self._sources = {
            str(each.relative_to(copy)): each.read_text() for each in copy.glob("gateway/**/*.py")
        }

    def of(self, mutant: Mutant, limit_s: float) -> list[str]:
        """Return the tests for a mutant: its package's own first, the quickest of them first."""
        lines = _lines_of_statement(self._sources[mutant.path], mutant.line)
        by_line = self._data.contexts_by_lineno(str(self._copy / mutant.path))
        tests = {test for line in lines for test in by_line.get(line, ())}
        if "" in tests:  # run when the module is imported
            tests |= {test for found in by_line.values() for test in found}
        own = f"tests/{mutant.package}/"
        ordered = sorted(
            tests - {""}, key=lambda test: (not test.startswith(own), self._times.get(test, 0.0))
        )
        chosen: list[str] = []
        for test in ordered:
            limit_s -= self._times.get(test, 0.0)
            if limit_s < 0.0:
                break
            chosen.append(test)
        return chosen


def _lines_of_statement(source: str, line: int) -> range:
    """The lines of the statement there; of one with a body, the lines before it."""
    found = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno if body else (node.end_lineno or line) + 1
            lines = range(node.lineno, max(end, node.lineno + 1))
            if line in lines:
                found = lines  # walk goes from the outer to the inner ones
    return found


def _pytest(
    copy: Path, arguments: Sequence[str], *, coverage_file: Path | None = None
) -> tuple[int, str]:
    """Run pytest in a copy; return its exit code and what it has said."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "MUTATION_FOLDER": str(copy),
    }
    command = [sys.executable, "-m"]
    if coverage_file is None:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    else:
        command += ["coverage", "run", f"--data-file={coverage_file}"]
        command += [f"--source={copy / 'gateway'}", "-m"]
        environment["MUTATION_COVERAGE"] = "1"
    command += ["pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.tools.mutation_plugin"]
    running = subprocess.Popen(
        [*command, *arguments],
        cwd=copy,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,  # not a session: its leader would get a pty as its terminal
    )
    try:
        said, _ = running.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        said = ""
    finally:
        # A test that was broken off leaves the processes behind that it has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    return running.wait(), said


def _try(mutant: Mutant, copy: Path, tests: Sequence[str]) -> Result:
    path = copy / mutant.path
    source = path.read_text()
    changed = _mutated(source, mutant) or source
    before, after = _difference(source, changed)
    killed_by = ""
    if tests:
        cached = path.parent / "__pycache__"
        shutil.rmtree(cached, ignore_errors=True)  # by time and size, which may be the same
        path.write_text(changed)
        try:
            (copy / "chosen.json").write_text(json.dumps(tests))
            files = dict.fromkeys(test.partition("::")[0] for test in tests)
            code, said = _pytest(copy, ["-x", *files])
        finally:
            path.write_text(source)
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise RuntimeError(f"none of the tests is there: {said[-1000:]}")
        if code:
            failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
            # A test that hangs ends pytest, which says nothing then.
            killed_by = failed[0] if failed else f"pytest ended with {code}"
    return Result(mutant, before, after, killed_by, len(tests))


def _difference(source: str, changed: str) -> tuple[str, str]:
    """The lines that differ, without their indentation."""
    old, new = source.splitlines(), changed.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return "\n".join(map(str.strip, old)), "\n".join(map(str.strip, new))


def _try_all(
    mutants: Sequence[Mutant],
    copies: Sequence[Path],
    tests: TestsOfLines,
    limit_s: float,
    output: Path | None,
) -> list[Result]:
    free: SimpleQueue[Path] = SimpleQueue()
    for each in copies:
        free.put(each)

    def attempt(mutant: Mutant) -> Result:
        copy = free.get()
        try:
            result = _try(mutant, copy, tests.of(mutant, limit_s))
        finally:
            free.put(copy)
        if output is not None:
            with output.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
        outcome = result.killed_by.split(" - ")[0] or "SURVIVED"
        print(
            f"{mutant.path}:{mutant.line}: {result.before!r} -> {result.after!r}: {outcome}",
            flush=True,
        )
        return result

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(attempt, mutants))


def _print_table(results: Iterable[Result], packages: Iterable[str]) -> None:
    known = tomllib.loads(EQUIVALENT.read_text())["mutant"]
    equivalents = {(each["path"], each["before"], each["after"]) for each in known}
    print("\n| package | mutants | killed | survived | equivalent | score |")
    print("|---|---|---|---|---|---|")
    of_all = list(results)
    for package in packages:
        of_package = [each for each in of_all if each.mutant.package == package]
        killed = sum(bool(each.killed_by) for each in of_package)
        left = [each for each in of_package if not each.killed_by]
        equivalent = sum(
            (each.mutant.path, each.before, each.after) in equivalents for each in left
        )
        survived = len(left) - equivalent
        score = 100 * killed / max(killed + survived, 1)
        counts = f"{len(of_package)} | {killed} | {survived} | {equivalent}"
        print(f"| {package} | {counts} | {score:.0f} % |")


if __name__ == "__main__":
    main()
