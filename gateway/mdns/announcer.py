"""Announces the ports by multicast DNS, for as long as the configuration asks for it.

Looks once a second at what is served and makes what is announced the same: ports that come and go,
boards, addresses of this host and the settings themselves are followed by that one rule. What is
said of a port is records.py's matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gateway import clock
from gateway.config.mdns import MdnsConfig
from gateway.mdns import network
from gateway.mdns.network import MdnsError, OwnAddresses
from gateway.mdns.records import Announcement, PortFacts, announced

if TYPE_CHECKING:
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

#: Between two looks at what is served.
LOOK_EVERY_S = 1.0

#: How long what is said of a port must be the same before it is said anew: a board with native USB
#: leaves the bus at each reset and comes back, which is no news for the whole network.
SETTLE_S = 3.0

#: When speaking is tried again that has failed, for want of a network for instance.
_RETRY_S = 10.0

#: Names that are tried for at a time; each takes a second, and the network is not to be flooded.
_AT_A_TIME = 8

#: How long the end waits for the last words; zeroconf takes 0.3 s for them.
_CLOSE_LIMIT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Said:
    """What the network has been told of a port; zeroconf may have changed the instance's name."""

    announcement: Announcement
    info: ServiceInfo


class Announcer:
    """See the module; made and used on the loop. `ports` tells what is served now."""

    def __init__(
        self, ports: Callable[[], Iterable[PortFacts]], *, settle_s: float = SETTLE_S
    ) -> None:
        self._ports = ports
        self._log = structlog.get_logger()
        self._settings: MdnsConfig | None = None
        self._settle_s = settle_s
        self._task: asyncio.Task[None] | None = None
        self._zeroconf: AsyncZeroconf | None = None
        self._speaks_as: tuple[MdnsConfig, OwnAddresses] | None = None
        self._said: dict[str, _Said] = {}
        self._news: dict[str, tuple[Announcement, float]] = {}  # with since when it is so
        self._broadcasts: set[asyncio.Future[None]] = set()
        self._kept_back: dict[str, tuple[str, ...]] = {}  # ports, where they listen
        self._looked_at: dict[str, tuple[PortFacts, Announcement | None]] = {}
        self._last_failure = ""

    def follow(self, settings: MdnsConfig | None) -> None:
        """Announce as the configuration says from now on; None: nothing."""
        self._settings = settings
        if settings is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Take all back and be silent; bounded."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._close()

    async def _run(self) -> None:
        try:
            # On a thread: the loop has boards to reset meanwhile.
            await asyncio.to_thread(network.load)
        except MdnsError as error:
            self._log.error("mdns_not_announced", reason=str(error))
            return
        while (settings := self._settings) is not None:
            wait_s = LOOK_EVERY_S
            try:
                await self._look(settings)
                self._last_failure = ""
            # zeroconf's own errors have no common base with those of its sockets.
            except Exception as error:
                self._tell_failure(error)
                await self._close()
                wait_s = _RETRY_S
            await clock.sleep(wait_s)
        await self._close()

    def _tell_failure(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if reason != self._last_failure:  # said once, however often it is tried
            self._last_failure = reason
            self._log.warning("mdns_not_announced", reason=reason)

    async def _look(self, settings: MdnsConfig) -> None:
        own = network.own_addresses(settings.interfaces)
        if self._zeroconf is not None and (settings, own) != self._speaks_as:
            await self._close()
        if self._zeroconf is None:
            self._open(settings, own)
        wanted = self._wanted(settings, own)
        left = [name for name in self._said if name not in wanted]
        await asyncio.gather(*(self._take_back(name) for name in left))
        at_a_time = asyncio.Semaphore(_AT_A_TIME)

        async def say(name: str, announcement: Announcement) -> None:
            async with at_a_time:
                await self._say(name, announcement)

        # A task for each port only when there is something to say.
        news = {name: each for name, each in wanted.items() if self._is_news(name, each)}
        await asyncio.gather(*(say(*each) for each in news.items()))

    def _open(self, settings: MdnsConfig, own: OwnAddresses) -> None:
        from zeroconf.asyncio import AsyncZeroconf  # noqa: PLC0415 - an extra

        if not own.addresses:
            which = ", ".join(settings.interfaces) or "network"
            raise MdnsError(f"no address of {which}: no such interface, or it is not up")
        self._zeroconf = AsyncZeroconf(interfaces=own.to_speak_at)
        self._speaks_as = settings, own
        self._log.info("mdns_started", gateway=_gateway(settings), addresses=own.to_speak_at)

    def _wanted(self, settings: MdnsConfig, own: OwnAddresses) -> dict[str, Announcement]:
        wanted, kept_back = {}, {}
        before, self._looked_at = self._looked_at, {}
        for facts in self._ports():
            # With a thousand ports, what has not changed should take no time.
            known = before.get(facts.name)
            if known is None or known[0] != facts:
                known = facts, announced(_gateway(settings), facts, own.addresses)
            self._looked_at[facts.name] = known
            announcement = known[1]
            if announcement is not None:
                wanted[facts.name] = announcement
            else:
                kept_back[facts.name] = facts.listens_at
        for name, listens_at in kept_back.items():
            if self._kept_back.get(name) != listens_at:
                reason = f"listens at {', '.join(listens_at)}, where nothing is announced"
                self._log.info("mdns_port_not_announced", device=name, reason=reason)
        self._kept_back = kept_back
        return wanted

    def _is_news(self, name: str, announcement: Announcement) -> bool:
        said = self._said.get(name)
        return said is None or announcement != said.announcement or name in self._news

    async def _say(self, name: str, announcement: Announcement) -> None:
        """Announce a port, or what is new of it, if it is not known already."""
        assert self._zeroconf is not None  # noqa: S101 - for the type checker
        said = self._said.get(name)
        if said is None:
            info = _info(announcement, announcement.instance)
            register = self._zeroconf.async_register_service(info, allow_name_change=True)
            self._broadcast(await register)
            self._said[name] = _Said(announcement, info)
        elif announcement == said.announcement:
            self._news.pop(name, None)
        elif self._has_settled(name, announcement):
            if (announcement.type, announcement.server) != (said.info.type, said.info.server):
                await self._take_back(name)
                await self._say(name, announcement)
                return
            info = _info(announcement, said.info.name)
            self._broadcast(await self._zeroconf.async_update_service(info))
            self._said[name] = _Said(announcement, info)

    def _has_settled(self, name: str, announcement: Announcement) -> bool:
        now = clock.time()
        known, since = self._news.get(name, (None, now))
        if known != announcement:
            since = now
        self._news[name] = (announcement, since)
        return now - since >= self._settle_s

    async def _take_back(self, name: str) -> None:
        assert self._zeroconf is not None  # noqa: S101 - for the type checker
        self._news.pop(name, None)
        info = self._said.pop(name).info
        self._broadcast(await self._zeroconf.async_unregister_service(info))

    def _broadcast(self, repeats: Awaitable[None]) -> None:
        """Let zeroconf say it three times, without waiting for it."""
        future = asyncio.ensure_future(repeats)
        self._broadcasts.add(future)
        future.add_done_callback(self._broadcasts.discard)

    async def _close(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        self._said, self._news, self._kept_back, self._looked_at = {}, {}, {}, {}
        repeats = list(self._broadcasts)
        for repeat in repeats:
            repeat.cancel()
        await asyncio.gather(*repeats, return_exceptions=True)
        if zeroconf is not None:
            with contextlib.suppress(Exception):
                async with clock.timeout(_CLOSE_LIMIT_S):
                    await zeroconf.async_close()


def _gateway(settings: MdnsConfig) -> str:
    return settings.instance_name or socket.gethostname().partition(".")[0]


def _info(announcement: Announcement, instance: str) -> ServiceInfo:
    from zeroconf import ServiceInfo  # noqa: PLC0415 - an extra

    return ServiceInfo(
        announcement.type,
        instance,
        port=announcement.tcp_port,
        properties=dict(announcement.txt),
        server=announcement.server,
        parsed_addresses=list(announcement.addresses),
    )
