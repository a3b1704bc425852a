from __future__ import annotations

import pytest

from gateway.config.document import MdnsConfig
from gateway.config.reader import parse_config
from gateway.errors import ConfigError


def mdns(text: str) -> MdnsConfig | None:
    return parse_config(f"{text}\nports: [{{name: a, tcp: 1, device: /dev/a}}]\n", "f.yaml").mdns


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("", None),
        ("mdns: false", None),
        ("mdns: true", MdnsConfig()),
        ("mdns: {}", MdnsConfig()),
        ('mdns: {instance_name: "lab (2nd floor)"}', MdnsConfig("lab (2nd floor)")),
        ("mdns: {interfaces: [eth0, wlan0.1]}", MdnsConfig(None, ("eth0", "wlan0.1"))),
        (
            'mdns: {interfaces: [192.0.2.7, "FD00:0::1"]}',
            MdnsConfig(None, ("192.0.2.7", "fd00::1")),
        ),
    ],
)
def test_it_is_off_unless_asked_for(text: str, config: MdnsConfig | None) -> None:
    assert mdns(text) == config


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mdns: yes", "invalid mdns 'yes': expected true, false"),
        ('mdns: "true"', "invalid mdns 'true'"),
        ("mdns:", "empty mdns"),
        ("mdns: [eth0]", "invalid mdns (a list)"),
        ("mdns: {instance: x}", "mdns: unknown key 'instance'"),
        ("mdns: {instance_name: }", "mdns: empty instance_name"),
        (f"mdns: {{instance_name: {'x' * 28}}}", "mdns: invalid instance_name 'xxx"),
        ('mdns: {instance_name: "läb"}', "mdns: invalid instance_name"),
        ('mdns: {instance_name: "lab "}', "mdns: invalid instance_name"),
        ("mdns: {interfaces: eth0}", "mdns: invalid interfaces 'eth0' (not a list)"),
        ("mdns: {interfaces: []}", "mdns: invalid interfaces (an empty list)"),
        ("mdns: {interfaces: [eth0/1]}", "mdns: invalid interfaces (a list)"),
        ("mdns: {interfaces: [[eth0]]}", "mdns: invalid interfaces (a list)"),
        ('mdns: {interfaces: ["fd00::1::2"]}', "mdns: invalid interfaces (a list)"),
        ("mdns: &a true", "anchors (&a) are not supported"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        mdns(text)
    assert problem in str(error.value)
    assert str(error.value).startswith("f.yaml:1: ")
