"""A local tool's claim to a tty."""

from __future__ import annotations

import pytest

from gateway.devices.local_use import LocalUse
from gateway.errors import ClientError


async def test_who_claims_a_tty_waits_until_it_is_closed() -> None:
    local = LocalUse()
    first, second = local.claim("for esptool"), local.claim("for picocom")
    assert local.reason == "for picocom"
    assert not first.done()
    second.cancel()
    local.tty_closed()
    await first
    assert local.reason == "for picocom"


async def test_a_claim_that_ends_before_the_tty_is_closed_fails() -> None:
    local = LocalUse()
    closed, given_up = local.claim("for esptool"), local.claim("for esptool")
    given_up.cancel()
    local.end(ClientError("resumed"))
    assert local.reason == ""
    with pytest.raises(ClientError, match="resumed"):
        await closed
    local.tty_closed()
