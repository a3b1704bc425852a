"""Rules that hold for every test: it leaves nothing behind, and it ends.

`async def` tests run in an event loop of their own. A fixture for them that needs the loop is an
`@asynccontextmanager` function: its context is entered and left in the test's loop. `--loop`
chooses the loop, also of services that tests start: uvloop, as people run it, or asyncio.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import os
import signal
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from gateway import clock, runtime
from tests.support import loops
from tests.support.clock import ControlledClock
from tests.support.failures import LoggedErrors
from tests.support.pty_board import PtyBoard, Served, serving

# No test is timed: on a busy machine a single example may take long.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

#: Far above what any test needs on a Raspberry Pi, or beside five others on a slow machine: a test
#: that gets here hangs.
DEFAULT_TIMEOUT_S = 300.0

#: How long a thread may take to end that has already been told to.
THREAD_GRACE_S = 5.0

#: How many loop turns a finished or cancelled task may take to get off the loop's books.
TASK_GRACE_TURNS = 5

_stderr_fd = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loop",
        choices=runtime.LOOPS,
        default="uvloop",
        help="event loop of asynchronous tests and of services that tests start",
    )


def pytest_configure(config: pytest.Config) -> None:
    loop = config.getoption("--loop")
    try:
        # With its first loop, libuv opens a pipe for the whole process.
        runtime.loop_factory({runtime.LOOP_VARIABLE: loop})().close()
    except runtime.EventLoopError as error:
        raise pytest.UsageError(f"{error} (make lint), or use --loop asyncio") from error
    config.addinivalue_line(
        "markers",
        f"timeout(seconds): ends the whole run after that time instead of {DEFAULT_TIMEOUT_S:.0f}"
        " s, with a traceback of every thread",
    )
    # Nothing named means uvloop, as for a service that an operator has installed.
    os.environ[runtime.LOOP_VARIABLE] = "" if loop == "uvloop" else loop
    # A shell's job in the background ignores it, and so would all that a test starts and ends.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # While a test runs, descriptor 2 is pytest's capture file; here it is still the real one.
    config.stash[_stderr_fd] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr_fd])


def pytest_collection_finish() -> None:
    # What importing has made stays for good; without it, the collections below take no time.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    marker = item.get_closest_marker("timeout")
    timeout_s = float(marker.args[0]) if marker else DEFAULT_TIMEOUT_S
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=item.config.stash[_stderr_fd])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    loops.run(_run_async_test(pyfuncitem, arguments))
    return True


async def _run_async_test(item: pytest.Function, arguments: dict[str, Any]) -> None:
    with clock.use(ControlledClock()):
        async with AsyncExitStack() as contexts:
            for name, value in arguments.items():
                if isinstance(value, AbstractAsyncContextManager):
                    arguments[name] = await contexts.enter_async_context(value)
            await item.obj(**arguments)
    for _ in range(TASK_GRACE_TURNS):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        pytest.fail("the test left tasks: " + ", ".join(sorted(map(repr, left))), pytrace=False)


@pytest.fixture
@asynccontextmanager
async def board(tmp_path: Path) -> AsyncIterator[PtyBoard]:
    """A board that the test plays, plugged in at `tmp_path / "tty"`."""
    with PtyBoard(tmp_path) as board:
        yield board


@pytest.fixture
@asynccontextmanager
async def desk(tmp_path: Path) -> AsyncIterator[Served]:
    """A board that the test plays (`desk.board`), behind a listener with the default settings."""
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            yield served


@pytest.fixture(autouse=True)
def no_error_is_only_logged() -> Iterator[None]:
    with LoggedErrors() as errors:
        yield
    if errors.texts:
        pytest.fail("logged and not raised:\n" + "\n".join(errors.texts), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_behind(no_error_is_only_logged: None) -> Iterator[None]:
    fds, threads, children = open_fds(), set(threading.enumerate()), child_pids()
    yield
    gc.collect()
    left = [f"thread {thread.name}" for thread in _running(set(threading.enumerate()) - threads)]
    left += [f"process {pid} ({_command(pid)})" for pid in sorted(child_pids() - children)]
    left += [
        f"descriptor {fd} ({target})" for fd, target in open_fds().items() if fds.get(fd) != target
    ]
    if left:
        pytest.fail("the test left behind: " + ", ".join(left), pytrace=False)


def open_fds() -> dict[int, str]:
    """Each open descriptor of this process and what it stands for, as /proc names it."""
    targets = {}
    folder = Path("/proc/self/fd")
    for entry in list(folder.iterdir()):
        try:
            targets[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return targets


def child_pids() -> set[int]:
    """Every child of this process, zombies included: one that nobody waits for is a leak too."""
    pids: set[int] = set()
    for task in list(Path("/proc/self/task").iterdir()):
        try:
            pids.update(map(int, (task / "children").read_text().split()))
        except FileNotFoundError:  # the thread has ended meanwhile
            continue
    return pids


def _running(threads: set[threading.Thread]) -> list[threading.Thread]:
    for thread in threads:
        thread.join(THREAD_GRACE_S)
    return [thread for thread in threads if thread.is_alive()]


def _command(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return "gone"
    return command.replace(b"\0", b" ").decode(errors="replace").strip() or "zombie"
