"""Announces the ports by multicast DNS, for as long as the configuration asks for it.

Looks once a second at what is served and makes what is announced the same: ports that come and go,
boards, addresses of this host and the settings themselves are followed by that one rule. records.py
has what is announced of a port.

Names must be unique on the network. zeroconf probes for the names of ports before it announces
them, but not for the host's, and two hosts that probe at the same moment do not notice each other.
So each look also compares what was heard with what is announced.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from gateway import clock
from gateway.config.document import MAX_INSTANCE_CHARS, MdnsConfig
from gateway.mdns import network
from gateway.mdns.network import MdnsError, OwnAddresses
from gateway.mdns.records import (
    PROVIDER,
    Announcement,
    Host,
    PortFacts,
    announced,
    label_key,
    suffixed,
)

if TYPE_CHECKING:
    # Left out of zeroconf's __all__, as are the records below; Home Assistant imports them too.
    from zeroconf import DNSRecord, ServiceInfo  # type: ignore[attr-defined]
    from zeroconf.asyncio import AsyncZeroconf

#: Between two looks at what is served.
LOOK_EVERY_S = 1.0

#: How long what is said of a port must be the same before it is said anew: a board with native USB
#: leaves the bus at each reset and comes back, which is no news for the whole network.
SETTLE_S = 3.0

#: When speaking is tried again that has failed, for want of a network for instance; also the least
#: time between two changes of names, should another host follow each of them.
_RETRY_S = 10.0

#: Names that are tried for at a time; each takes a second, and the network is not to be flooded.
_AT_A_TIME = 8

#: A name is free when no host has answered to so many questions for it (RFC 6762, 8.1).
_PROBES = 3
_PROBE_EVERY_S = 0.25
#: Of DNS. Asked one by one: zeroconf gives no address to a question for all types.
_TYPE_A, _TYPE_AAAA, _CLASS_IN = 1, 28, 1

#: How long the end waits for the last words; zeroconf takes 0.3 s for them.
_CLOSE_LIMIT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Said:
    """What was announced of a port; `info` has the name that was free on the network."""

    announcement: Announcement
    info: ServiceInfo


@dataclass(frozen=True, slots=True)
class _Failed:
    """An announcement that zeroconf has refused, and when it is tried again."""

    announcement: Announcement
    reason: str
    retry_at_s: float


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
        self._host = Host("", "", ())
        self._rename_at_s = self._rename_ports_at_s = 0.0
        self._probed: set[str] = set()  # names of this host
        self._said: dict[str, _Said] = {}
        self._suffixes: dict[str, str] = {}  # of ports whose own name another host has
        self._failed: dict[str, _Failed] = {}
        self._news: dict[str, tuple[Announcement, float]] = {}  # with since when it is so
        self._broadcasts: set[asyncio.Future[None]] = set()
        self._kept_back: dict[str, tuple[str, ...]] = {}  # ports, where they listen
        self._looked_at: dict[str, tuple[tuple[object, ...], Announcement | None]] = {}
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
        wanted = await self._wanted_without_conflicts()
        left = [name for name in self._said if name not in wanted]
        await asyncio.gather(*(self._take_back(name) for name in left))
        self._failed = {name: each for name, each in self._failed.items() if name in wanted}
        self._suffixes = {name: each for name, each in self._suffixes.items() if name in wanted}
        at_a_time = asyncio.Semaphore(_AT_A_TIME)

        async def say(name: str, announcement: Announcement) -> None:
            async with at_a_time:
                await self._announce_or_log(name, announcement)

        # A task for each port only when there is something to say.
        news = {name: each for name, each in wanted.items() if self._is_news(name, each)}
        results = await asyncio.gather(
            *(say(*each) for each in news.items()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _open(self, settings: MdnsConfig, own: OwnAddresses) -> None:
        from zeroconf.asyncio import AsyncZeroconf  # noqa: PLC0415 - an extra

        if not own.addresses:
            which = ", ".join(settings.interfaces) or "network"
            raise MdnsError(f"no address of {which}: no such interface, or it is not up")
        self._zeroconf = AsyncZeroconf(interfaces=own.to_speak_at)
        self._speaks_as = settings, own
        self._host = Host(_gateway(settings), network.host_id(own), own.addresses)
        self._log.info("mdns_started", gateway=self._host.gateway, addresses=own.to_speak_at)

    async def _wanted_without_conflicts(self) -> dict[str, Announcement]:
        """What to announce by the port's name, no name of it in use by another host.

        As far as that is known: a host that answers late is noticed at a later look.
        """
        wanted = self._wanted()
        await self._probe(wanted.values())
        now_s = clock.time()
        used_by = self._conflicting_addresses(wanted.values())
        if used_by and now_s >= self._rename_at_s:
            self._rename_at_s = now_s + _RETRY_S
            self._host = replace(self._host, id=secrets.token_hex(3))
            name, address = next(iter(used_by.items()))
            self._log.warning("mdns_name_in_use", name=name, used_by=address, id=self._host.id)
            wanted = self._wanted()
            await self._probe(wanted.values())
        taken = [name for name, said in self._said.items() if self._is_in_conflict(said.info)]
        if not taken or now_s < self._rename_ports_at_s:
            return wanted
        self._rename_ports_at_s = now_s + _RETRY_S
        for name in taken:
            self._suffixes[name] = secrets.token_hex(3)
            self._log.warning("mdns_name_in_use", device=name, name=self._said[name].info.name)
        return self._wanted()

    async def _probe(self, wanted: Iterable[Announcement]) -> None:
        """Ask which hosts have the names of this one; the answers are in zeroconf's cache then.

        RFC 6762, 8.1: with the records that are going to be announced, by which other hosts know
        that they have to answer at once.
        """
        from zeroconf import (  # type: ignore[attr-defined] # noqa: PLC0415 - an extra
            DNSOutgoing,
            DNSQuestion,
        )

        hosts = {each.server: each for each in wanted}
        new = {server: each for server, each in hosts.items() if server not in self._probed}
        if not new:
            return
        assert self._zeroconf is not None  # noqa: S101 - for the type checker
        await self._zeroconf.zeroconf.async_wait_for_start()
        for _ in range(_PROBES):
            query = DNSOutgoing(0)
            for server, announcement in new.items():
                for kind in (_TYPE_A, _TYPE_AAAA):
                    query.add_question(DNSQuestion(server, kind, _CLASS_IN))
                addresses = _info(announcement, announcement.instance).dns_addresses()
                query.authorities += addresses  # type: ignore[arg-type] # declared for pointers
            self._zeroconf.zeroconf.async_send(query)
            await clock.sleep(_PROBE_EVERY_S)
        self._probed = set(hosts)

    def _conflicting_addresses(self, wanted: Iterable[Announcement]) -> dict[str, str]:
        """Names of this host that another one announces, with an address of that one."""
        from zeroconf import DNSAddress  # type: ignore[attr-defined] # noqa: PLC0415 - an extra

        own = {ipaddress.ip_address(each.partition("%")[0]) for each in self._host.addresses}
        found = {}
        for server in {each.server for each in wanted}:
            for record in self._cached_records(server):
                if isinstance(record, DNSAddress):
                    address = ipaddress.ip_address(record.address)
                    if address not in own:
                        found[server.rstrip(".")] = str(address)
        return found

    def _is_in_conflict(self, info: ServiceInfo) -> bool:
        """Whether another gateway or host announces a port under the same name."""
        from zeroconf import DNSService  # type: ignore[attr-defined] # noqa: PLC0415 - an extra

        return any(
            isinstance(record, DNSService)
            and (record.server.lower(), record.port) != (info.server_key, info.port)
            for record in self._cached_records(info.name)
        )

    def _cached_records(self, name: str) -> list[DNSRecord]:
        from zeroconf import current_time_millis  # noqa: PLC0415 - an extra

        assert self._zeroconf is not None  # noqa: S101 - for the type checker
        now_ms = current_time_millis()
        records = self._zeroconf.zeroconf.cache.entries_with_name(name)
        return [each for each in records if not each.is_expired(now_ms)]

    def _wanted(self) -> dict[str, Announcement]:
        wanted, kept_back = {}, {}
        before, self._looked_at = self._looked_at, {}
        numbers: Counter[str] = Counter()
        for facts in self._ports():
            key = label_key(facts.name)
            numbers[key] += 1
            # With a thousand ports, what has not changed should take no time.
            made_of = (self._host, facts, numbers[key], self._suffixes.get(facts.name))
            known = before.get(facts.name)
            if known is None or known[0] != made_of:
                known = made_of, self._announcement(facts, numbers[key])
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

    def _announcement(self, facts: PortFacts, number: int) -> Announcement | None:
        announcement = announced(self._host, facts, number)
        suffix = self._suffixes.get(facts.name)
        return (
            announcement
            if announcement is None or suffix is None
            else suffixed(announcement, suffix)
        )

    def _is_news(self, name: str, announcement: Announcement) -> bool:
        failed = self._failed.get(name)
        if failed is not None and failed.announcement == announcement:
            return clock.time() >= failed.retry_at_s
        said = self._said.get(name)
        return said is None or announcement != said.announcement or name in self._news

    async def _announce_or_log(self, name: str, announcement: Announcement) -> None:
        """Announce a port; what zeroconf has against it keeps no other port from that."""
        from zeroconf import NotRunningException  # noqa: PLC0415 - an extra

        try:
            await self._say(name, announcement)
        except (NotRunningException, OSError):  # TimeoutError is an OSError
            raise  # of the network, not of this port
        except Exception as error:
            reason = str(error) or type(error).__name__
            before = self._failed.get(name)
            if before is None or before.reason != reason:
                self._log.warning("mdns_port_not_announced", device=name, reason=reason)
            retry_at_s = clock.time() + _RETRY_S
            self._failed[name] = _Failed(announcement, reason, retry_at_s)
        else:
            self._failed.pop(name, None)

    async def _say(self, name: str, announcement: Announcement) -> None:
        """Announce a port, or what is new of it, if it is not known already."""
        assert self._zeroconf is not None  # noqa: S101 - for the type checker
        said = self._said.get(name)
        if said is not None and _has_moved(announcement, said.announcement):
            await self._take_back(name)
            said = None
        if said is None:
            info = _info(announcement, announcement.instance)
            register = self._zeroconf.async_register_service(info, allow_name_change=True)
            self._broadcast(await register)
            self._said[name] = _Said(announcement, info)
        elif announcement == said.announcement:
            self._news.pop(name, None)
        elif self._has_settled(name, announcement):
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
        self._failed, self._probed, self._suffixes = {}, set(), {}
        repeats = list(self._broadcasts)
        for repeat in repeats:
            repeat.cancel()
        await asyncio.gather(*repeats, return_exceptions=True)
        if zeroconf is not None:
            with contextlib.suppress(Exception):
                async with clock.timeout(_CLOSE_LIMIT_S):
                    await zeroconf.async_close()


def _gateway(settings: MdnsConfig) -> str:
    name = settings.instance_name or socket.gethostname().partition(".")[0]
    return name[:MAX_INSTANCE_CHARS].strip() or PROVIDER


_PLACE = ("type", "instance", "server", "tcp_port")


def _has_moved(new: Announcement, old: Announcement) -> bool:
    """Whether what was announced would stay on the network beside the new announcement."""
    return any(getattr(new, key) != getattr(old, key) for key in _PLACE)


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
