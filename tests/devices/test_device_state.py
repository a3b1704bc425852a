"""The state of a device, and what waits for one."""

from __future__ import annotations

from gateway.devices.device_state import HAS_PORT, MAY_CLOSE, DeviceState, HasState


async def test_idle_is_set_exactly_while_the_device_can_be_had() -> None:
    states = HasState()
    for state in DeviceState:
        states._enter(state, "because")
        assert states.idle.is_set() == (state is DeviceState.IDLE)
        assert (states.state, states.reason) == (state, "because")
        assert states.is_open == (state in HAS_PORT)


async def test_a_stopped_device_stays_so() -> None:
    states = HasState()
    states._enter(DeviceState.STOPPED, "stopped")
    states._enter(DeviceState.IDLE)
    assert states.state is DeviceState.STOPPED
    assert not states.idle.is_set()


async def test_what_somebody_uses_is_not_closed_at_once() -> None:
    in_use = {DeviceState.IN_USE, DeviceState.AWAY, DeviceState.RELEASING}
    assert not in_use & MAY_CLOSE
    assert in_use < HAS_PORT
