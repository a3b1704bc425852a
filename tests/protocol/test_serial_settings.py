import dataclasses

import pytest

from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits


def test_defaults_are_those_of_an_esp_boot_log() -> None:
    assert SerialSettings() == SerialSettings(
        115200, 8, Parity.NONE, StopBits.ONE, FlowControl.NONE
    )


def test_settings_are_values_that_compare_hash_and_do_not_change() -> None:
    settings = SerialSettings(baudrate=921600)
    assert settings == dataclasses.replace(SerialSettings(), baudrate=921600)
    assert len({settings, SerialSettings(921600)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.baudrate = 9600  # type: ignore[misc]


def test_values_are_the_words_of_the_configuration() -> None:
    assert [word.value for word in Parity] == ["none", "odd", "even", "mark", "space"]
    assert [word.value for word in StopBits] == ["1", "1.5", "2"]
    assert [word.value for word in FlowControl] == ["none", "rtscts", "xonxoff"]
