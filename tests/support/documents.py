"""Documents of ports for tests of what is made of them."""

from __future__ import annotations

from gateway.port_document import (
    ClientDocument,
    ClientState,
    PortDocument,
    PortState,
    UsbDocument,
)
from gateway.protocol.reset import Lines
from gateway.protocol.serial_settings import SerialSettings

CLIENT = ClientDocument("10.0.0.5:51234", ClientState.CONTROLLER, "2026-03-01T14:03:22.500+00:00")

DESK = PortDocument(
    name="desk",
    state=PortState.IN_USE,
    device="/dev/ttyUSB0",
    protocol="rfc2217",
    sharing="exclusive",
    host="127.0.0.1",
    addresses=("127.0.0.1",),
    tcp_port=4001,
    usb=UsbDocument("10c4:ea60", "UART bridge", "CP2102N", "8a2f1c"),
    configured_baudrate=74880,
    settings=SerialSettings(),
    lines=Lines(dtr=True, rts=False),
    clients=(CLIENT,),
    received_bytes=1536,
    sent_bytes=12,
    output_dropped_bytes=1024,
    input_dropped_bytes=1024,
    sessions=3,
    rejected={
        "unavailable": 1,
        "not_allowed": 20,
        "too_many": 300,
        "not_secured": 0,
        "other_protocol": 0,
    },
)
