"""Event loop, threads, child processes and descriptors of the service's process.

asyncio has functions for the first three; each docstring here names what they lack.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar, cast

from gateway.errors import GatewayError

T = TypeVar("T")

#: Environment variable that names the event loop; empty or absent: uvloop if it is installed.
LOOP_VARIABLE: Final = "ESP_GATEWAY_EVENT_LOOP"
LOOPS: Final = ("uvloop", "asyncio")

#: What the service opens besides ports and connections: the event loop, udev, HTTP files, the
#: configuration, multicast sockets, clients of the status socket.
BASE_DESCRIPTORS: Final = 64

#: Of a port: its listening socket, tty and log file, and three pipes while it is flashed.
PORT_DESCRIPTORS: Final = 6


class EventLoopError(GatewayError):
    """The event loop that the environment names can't be used; for the operator."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on an event loop of its own, like asyncio.run. Raises EventLoopError."""
    try:
        factory = loop_factory()
        # What has been imported is never freed: a full collection would search it in vain and stop
        # every port for 18 ms of CPU.
        gc.freeze()
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)
    finally:
        main.close()


def loop_factory(
    environment: Mapping[str, str] = os.environ,
) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the constructor of the loop that the environment names. Raises EventLoopError."""
    named = environment.get(LOOP_VARIABLE, "")
    if named not in {"", *LOOPS}:
        raise EventLoopError(f"invalid {LOOP_VARIABLE} {named!r}: expected {' or '.join(LOOPS)}")
    if named == "asyncio":
        return asyncio.SelectorEventLoop
    try:
        import uvloop  # noqa: PLC0415 - slow to import, and optional
    except ImportError:
        if named:
            raise EventLoopError(
                f"{LOOP_VARIABLE} is 'uvloop', which is not installed: install the extra `fast`"
            ) from None
        return asyncio.SelectorEventLoop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def call_blocking(call: Callable[[], T], name: str) -> T:
    """Run `call` on a daemon thread called `name`; return its result or raise its exception.

    Cancelling leaves the thread behind and drops its result. asyncio.to_thread joins its threads
    when the interpreter ends: a file on a dead network mount would keep the process from exiting.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():  # cancelled
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def work() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = call()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await done


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; a cancellation meanwhile is raised only then, instead of its result.

    For work that must not be left half done, such as removing files.
    """
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        if not task.cancelled():
            task.exception()  # or asyncio logs that it was never retrieved
        raise cancellation
    return task.result()


async def start_process(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a child process, like asyncio.create_subprocess_exec. Raises OSError.

    When this call is cancelled, the process has ended; uvloop would leave it running.
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await asyncio.shield(starting)
    except OSError as error:
        error.filename = error.filename or command[0]  # uvloop does not set it
        raise
    except asyncio.CancelledError:
        await uncancelled(_end_process(starting))
        raise


async def _end_process(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    """Kill a process as soon as it has started, and wait until its pipes are closed."""
    try:
        process = await starting
    except OSError:
        return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    await process.communicate()


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open descriptors to the hard one, unless a sandbox forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def reserved_descriptors(n_ports: int) -> int:
    """Return how many descriptors a service with that many ports needs besides connections."""
    return BASE_DESCRIPTORS + PORT_DESCRIPTORS * n_ports


def may_have_descriptor(descriptor: int, n_connections: int, reserved: int) -> bool:
    """Return whether a new connection, the next after `n_connections`, may keep its descriptor.

    The kernel gives out the lowest free number, so at least as many as `descriptor` are in use:
    some of the highest always stay free, whatever else is open. Where the limit is too low for
    `reserved`, connections get an eighth of it.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_near_the_end = descriptor >= limit - min(BASE_DESCRIPTORS, limit // 4)
    return not is_near_the_end and n_connections < max(limit - reserved, limit // 8)
