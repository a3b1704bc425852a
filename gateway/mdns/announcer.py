"""Announce the ports by multicast DNS, for as long as the configuration asks for it.

Once a second the served ports are compared with what is announced: that one rule follows ports,
boards, addresses of this host and the settings.

Names must be unique in the network. zeroconf probes for the names of ports before it announces
them, but not for the host's, and two hosts that probe at the same moment do not notice each other.
So received records are compared with what is announced as well.
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
from typing import TYPE_CHECKING, Final

import structlog

from gateway import clock
from gateway.config.document import MAX_INSTANCE_CHARS, MdnsConfig
from gateway.mdns import dns_sd
from gateway.mdns.dns_sd import (
    PROVIDER,
    Announcement,
    Host,
    MdnsError,
    OwnAddresses,
    PortFacts,
    announced,
    label_key,
    suffixed,
)

if TYPE_CHECKING:
    # Left out of zeroconf's __all__, as are the records below; Home Assistant imports them too.
    from zeroconf import DNSRecord, ServiceInfo  # type: ignore[attr-defined]

#: Between two comparisons.
LOOK_EVERY_S: Final = 1.0

#: How long a change of a port must last before it is announced: a board with native USB leaves the
#: bus at each reset and returns.
SETTLE_S: Final = 3.0

#: Wait before a failed announcement is tried again, and the least time between two changes of
#: names: another host may follow each of them.
RETRY_S: Final = 10.0

#: Names probed for at a time; each takes a second, and the network must not be flooded.
_AT_A_TIME: Final = 8

#: A name is free if no host has answered to so many questions for it (RFC 6762 section 8.1).
_PROBES: Final = 3
_PROBE_EVERY_S: Final = 0.25
#: Of DNS. One question each: zeroconf gives no address to a question for all types.
_TYPE_A, _TYPE_AAAA, _CLASS_IN = 1, 28, 1

#: How long the end waits for the goodbyes; zeroconf takes 0.3 s for them.
_CLOSE_LIMIT_S: Final = 1.0


class Announcer:
    """Announce the ports that `ports` returns; made and used on the loop."""

    def __init__(
        self, ports: Callable[[], Iterable[PortFacts]], *, settle_s: float = SETTLE_S
    ) -> None:
        self._ports = ports
        self._settle_s = settle_s
        self._log = structlog.get_logger()
        self._settings: MdnsConfig | None = None
        self._task: asyncio.Task[None] | None = None
        self._session: _Session | None = None

    def follow(self, settings: MdnsConfig | None) -> None:
        """Announce according to `settings` from now on; None: nothing."""
        self._settings = settings
        if settings is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Withdraw all announcements; bounded."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._close()

    async def _run(self) -> None:
        try:
            await asyncio.to_thread(dns_sd.load)  # the loop resets boards meanwhile
        except MdnsError as error:
            self._log.error("mdns_not_announced", reason=str(error))
            return
        last_failure = ""
        while (settings := self._settings) is not None:
            wait_s = LOOK_EVERY_S
            try:
                await self._look(settings)
                last_failure = ""
            # zeroconf's own errors have no common base with those of its sockets.
            except Exception as error:
                reason = _reason_of(error)
                if reason != last_failure:
                    self._log.warning("mdns_not_announced", reason=reason)
                last_failure = reason
                await self._close()
                wait_s = RETRY_S
            await clock.sleep(wait_s)
        await self._close()

    async def _look(self, settings: MdnsConfig) -> None:
        own = dns_sd.own_addresses(settings.interfaces)
        if self._session is not None and (settings, own) != self._session.made_for:
            await self._close()
        if self._session is None:
            if not own.addresses:
                which = ", ".join(settings.interfaces) or "network"
                raise MdnsError(f"no address of {which}: no such interface, or it is not up")
            self._session = _Session(settings, own, self._settle_s, self._log)
        await self._session.announce(list(self._ports()))

    async def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


@dataclass(slots=True)
class _Published:
    """An announced port; `info` has the name that was free in the network."""

    announcement: Announcement
    info: ServiceInfo


@dataclass(slots=True)
class _Port:
    """A port to announce."""

    published: _Published | None = None
    suffix: str = ""  # if another host has its own name
    pending: tuple[Announcement, float] | None = None  # a change, with its time
    refused: Announcement | None = None  # by zeroconf, and why
    reason: str = ""
    retry_at_s: float = 0.0


class _Session:
    """Announcements at some addresses of this host, until these or the settings change."""

    def __init__(
        self,
        settings: MdnsConfig,
        own: OwnAddresses,
        settle_s: float,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        from zeroconf.asyncio import AsyncZeroconf  # noqa: PLC0415 - an extra

        self.made_for = settings, own
        self._settle_s = settle_s
        self._log = log
        self._zeroconf = AsyncZeroconf(interfaces=own.to_speak_at)
        name = settings.instance_name or socket.gethostname().partition(".")[0]
        gateway = name[:MAX_INSTANCE_CHARS].strip() or PROVIDER
        self._host = Host(gateway, own.host_id, own.addresses)
        self._ports: dict[str, _Port] = {}
        self._unreachable: dict[str, tuple[str, ...]] = {}  # ports, and where they listen
        self._probed: set[str] = set()  # names of this host
        self._rename_at_s = self._rename_ports_at_s = 0.0
        self._broadcasts: set[asyncio.Future[None]] = set()
        log.info("mdns_started", gateway=gateway, addresses=own.to_speak_at)

    async def announce(self, facts: list[PortFacts]) -> None:
        """Make the announcements those of these ports."""
        wanted = await self._wanted_without_conflicts(facts)
        left = [self._ports.pop(name) for name in self._ports.keys() - wanted.keys()]
        await asyncio.gather(*(self._withdraw(port) for port in left))
        at_a_time = asyncio.Semaphore(_AT_A_TIME)

        async def publish(name: str, announcement: Announcement) -> None:
            async with at_a_time:
                await self._publish_or_log(name, announcement)

        # A task only for each port with a change: there may be a thousand ports.
        news = {name: each for name, each in wanted.items() if self._is_new(name, each)}
        tasks = (publish(*each) for each in news.items())
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def close(self) -> None:
        """Withdraw all announcements; bounded."""
        repeats = list(self._broadcasts)
        for repeat in repeats:
            repeat.cancel()
        await asyncio.gather(*repeats, return_exceptions=True)
        with contextlib.suppress(Exception):
            async with clock.timeout(_CLOSE_LIMIT_S):
                await self._zeroconf.async_close()

    # --- what to announce, under which names

    def _wanted(self, ports: list[PortFacts]) -> dict[str, Announcement]:
        wanted, unreachable = {}, {}
        numbers: Counter[str] = Counter()
        for facts in ports:
            key = label_key(facts.name)
            numbers[key] += 1
            announcement = announced(self._host, facts, numbers[key])
            if announcement is None:
                unreachable[facts.name] = facts.addresses
                continue
            port = self._ports.setdefault(facts.name, _Port())
            wanted[facts.name] = (
                suffixed(announcement, port.suffix) if port.suffix else announcement
            )
        for name, listens_at in unreachable.items():
            if self._unreachable.get(name) != listens_at:
                reason = f"listens at {', '.join(listens_at)}, where nothing is announced"
                self._log.info("mdns_port_not_announced", device=name, reason=reason)
        self._unreachable = unreachable
        return wanted

    async def _wanted_without_conflicts(self, ports: list[PortFacts]) -> dict[str, Announcement]:
        """Return the announcements by port, without names that are known to be in use.

        A host that answers late is noticed at a later look.
        """
        wanted = self._wanted(ports)
        await self._probe(wanted.values())
        now_s = clock.time()
        used_by = self._conflicting_addresses(wanted.values())
        if used_by and now_s >= self._rename_at_s:
            self._rename_at_s = now_s + RETRY_S
            self._host = replace(self._host, id=secrets.token_hex(3))
            name, address = next(iter(used_by.items()))
            self._log.warning("mdns_name_in_use", name=name, used_by=address, id=self._host.id)
            wanted = self._wanted(ports)
            await self._probe(wanted.values())
        published = {name: self._ports[name].published for name in wanted}
        taken = {name: each.info for name, each in published.items() if each is not None}
        taken = {name: info for name, info in taken.items() if self._is_in_conflict(info)}
        if not taken or now_s < self._rename_ports_at_s:
            return wanted
        self._rename_ports_at_s = now_s + RETRY_S
        for name, info in taken.items():
            self._ports[name].suffix = secrets.token_hex(3)
            self._log.warning("mdns_name_in_use", device=name, name=info.name)
        return self._wanted(ports)

    async def _probe(self, wanted: Iterable[Announcement]) -> None:
        """Ask for hosts with the names of this one; the answers are in zeroconf's cache then.

        With the records that are to be announced (RFC 6762 section 8.1): by them other hosts know
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
        """Return the names of this host that another one announces, with an address of that one."""
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
        """Return whether another gateway or host announces a port under the same name."""
        from zeroconf import DNSService  # type: ignore[attr-defined] # noqa: PLC0415 - an extra

        return any(
            isinstance(record, DNSService)
            and (record.server.lower(), record.port) != (info.server_key, info.port)
            for record in self._cached_records(info.name)
        )

    def _cached_records(self, name: str) -> list[DNSRecord]:
        from zeroconf import current_time_millis  # noqa: PLC0415 - an extra

        now_ms = current_time_millis()
        records = self._zeroconf.zeroconf.cache.entries_with_name(name)
        return [each for each in records if not each.is_expired(now_ms)]

    # --- announcing

    def _is_new(self, name: str, announcement: Announcement) -> bool:
        port = self._ports[name]
        if announcement == port.refused:
            return clock.time() >= port.retry_at_s
        if port.published is not None and announcement == port.published.announcement:
            port.pending = None
            return False
        return True

    async def _publish_or_log(self, name: str, announcement: Announcement) -> None:
        """Announce a port; an error of zeroconf's concerns no other port."""
        from zeroconf import NotRunningException  # noqa: PLC0415 - an extra

        port = self._ports[name]
        try:
            await self._publish(port, announcement)
        except (NotRunningException, OSError):  # TimeoutError is an OSError
            raise  # of the network, not of this port
        except Exception as error:
            reason = _reason_of(error)
            if port.reason != reason:
                self._log.warning("mdns_port_not_announced", device=name, reason=reason)
            port.refused, port.reason = announcement, reason
            port.retry_at_s = clock.time() + RETRY_S
        else:
            port.refused, port.reason = None, ""

    async def _publish(self, port: _Port, announcement: Announcement) -> None:
        if port.published is not None and _has_moved(announcement, port.published.announcement):
            await self._withdraw(port)
        if port.published is None:
            info = _info(announcement, announcement.instance)
            register = self._zeroconf.async_register_service(info, allow_name_change=True)
            self._broadcast(await register)
            port.published = _Published(announcement, info)
        elif self._has_settled(port, announcement):
            info = _info(announcement, port.published.info.name)
            self._broadcast(await self._zeroconf.async_update_service(info))
            port.published = _Published(announcement, info)

    def _has_settled(self, port: _Port, announcement: Announcement) -> bool:
        now_s = clock.time()
        if port.pending is None or port.pending[0] != announcement:
            port.pending = announcement, now_s
        return now_s - port.pending[1] >= self._settle_s

    async def _withdraw(self, port: _Port) -> None:
        published, port.published, port.pending = port.published, None, None
        if published is not None:
            self._broadcast(await self._zeroconf.async_unregister_service(published.info))

    def _broadcast(self, repeats: Awaitable[None]) -> None:
        """Have zeroconf send it three times, without waiting."""
        future = asyncio.ensure_future(repeats)
        self._broadcasts.add(future)
        future.add_done_callback(self._broadcasts.discard)


def _reason_of(error: Exception) -> str:
    return str(error) or type(error).__name__


_PLACE: Final = ("type", "instance", "server", "tcp_port")


def _has_moved(new: Announcement, old: Announcement) -> bool:
    """Return whether the old announcement would remain in the network beside the new one."""
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
