"""TLS with clients that nobody here wrote: openssl, Python's ssl, and tools behind socat."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import serial

from gateway.client.protocol_gateway import Serial
from gateway.net.tls_context import Tls
from gateway.simulator.board import pattern
from tests.end_to_end.conftest import BoardOf
from tests.end_to_end.test_esptool import ESPTOOL5, esptool
from tests.support.certificates import Authority
from tests.support.lab import Lab, LabBoard
from tests.support.peers import program
from tests.support.processes import BackgroundProcess, Service, free_tcp_port, run_tool


def keys_of(tls: Tls) -> str:
    """As it is written in the YAML."""
    keys = {
        key: value for key in ("cert", "key", "client_ca", "ca") if (value := getattr(tls, key))
    }
    return json.dumps(keys)


def options_of(authority: Authority, name: str) -> list[str]:
    """What openssl and socat are told of a client with a certificate of that name."""
    cert, key = authority.issue(name, f"{name}@lab.example", common_name=name)
    return [f"cert={cert}", f"key={key}", f"cafile={authority.path}"]


@contextmanager
def bridge(board: LabBoard, authority: Authority, folder: Path) -> Iterator[LabBoard]:
    """The board as it is seen behind a socat that does TLS for its clients."""
    local = free_tcp_port()
    far_end = ",".join([f"OPENSSL:localhost:{board.tcp_port}", *options_of(authority, "alice")])
    listen = f"TCP-LISTEN:{local},bind=127.0.0.1,reuseaddr,fork"
    with BackgroundProcess([program("socat", "socat"), listen, far_end]) as socat:
        socat.wait_until_listening(local)
        yield LabBoard(board.name, local, folder / board.name)
        socat.kill()


@pytest.mark.timeout(400)
def test_esptool_behind_socat_enters_the_bootloader_at_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with Lab(tmp_path, {"desk": ""}, keys={"tls": keys_of(authority.server())}) as lab:
        with bridge(lab.boards["desk"], authority, tmp_path) as board:
            assert "Detected flash size: 4MB" in esptool(board, "flash-id")
            assert board.wait_for_boots(3) == ["app", "download", "app"]
        lab.service.wait_for_line(r'"client": "127.0.0.1:\d+ \(alice\)".*client_disconnected')
        assert not [line for line in lab.service.log if "Traceback" in line]


def test_pyserial_behind_socat_gets_and_sends_every_byte(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    keys = {"tls": keys_of(authority.server())}
    with (
        Lab(tmp_path, {"desk": "heartbeat_s=0"}, keys=keys) as lab,
        bridge(lab.boards["desk"], authority, tmp_path) as board,
    ):
        board.wait_for_app()
        with serial.serial_for_url(board.url, baudrate=115200, timeout=60) as client:
            client.write(b"bytes 100000\r")
            assert client.read_until(pattern(100000)).endswith(pattern(100000))


def test_the_gateway_s_own_client_shows_its_certificate_and_is_told_without(
    board_of: BoardOf,
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("carol", "carol@lab.example", common_name="carol")
    keys = {"tls": keys_of(authority.server())}
    board = board_of("heartbeat_s=0", keys=keys)
    url = f"gateway://localhost:{board.tcp_port}?timeout=60"
    with_certificate = f"{url}&ca={authority.path}&cert={cert}&key={key}"
    with Serial(with_certificate, baudrate=115200, timeout=60) as client:
        client.write(b"version\r")
        assert b"simulated app" in client.read_until(b"simulated app")
    board.service.wait_for_line(r'\(carol\)".*client_disconnected')
    with pytest.raises(serial.SerialException, match="certificate required"):
        Serial(f"{url}&ca={authority.path}")
    with pytest.raises(serial.SerialException, match="desk: this port is for TLS"):
        Serial(url)


def test_openssl_s_client_talks_to_a_board_and_nobody_does_without_a_certificate(
    board_of: BoardOf,
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    keys = {"tls": keys_of(authority.server()), "protocol": "raw"}
    cert, key = authority.issue("bob", "bob@lab.example", common_name="bob")
    board = board_of("heartbeat_s=0", keys=keys)
    s_client = [
        *(program("openssl", "openssl"), "s_client", "-quiet", "-verify_return_error"),
        *("-CAfile", str(authority.path), "-connect", f"localhost:{board.tcp_port}"),
    ]
    with subprocess.Popen(
        [*s_client, "-cert", cert, "-key", key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as talks:
        assert talks.stdin is not None
        assert talks.stdout is not None
        talks.stdin.write(b"\rversion\r")
        talks.stdin.flush()
        said = b""
        while b"simulated app" not in said:
            byte = talks.stdout.read(1)
            assert byte, said
            said += byte
        talks.kill()  # as most leave: TCP is closed, TLS is told nothing
    board.service.wait_for_line(r'\(bob\)", "reason": "left".*client_disconnected')

    refused = run_tool(s_client, timeout_s=60)
    assert "alert" in refused.stderr
    board.service.wait_for_line(
        '"reason": "TLS: peer did not return a certificate".*client_rejected'
    )


def connected(board: LabBoard, context: ssl.SSLContext) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", board.tcp_port), timeout=60)
    return context.wrap_socket(connection, server_hostname="localhost")


def test_a_reload_takes_renewed_files_in_and_disturbs_nobody(
    board_of: BoardOf, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    tls = authority.server()
    keys = {"tls": keys_of(tls), "protocol": "raw", "sharing": "shared"}
    board = board_of("heartbeat_s=0", keys=keys)
    with connected(board, authority.client()) as before:
        old = before.getpeercert(binary_form=True)
        authority.server()  # issues another certificate into the same files
        board.service.send_signal(signal.SIGHUP)
        board.service.wait_for_line('"unchanged": 1.*configuration_reloaded')
        before.sendall(b"bytes 1000\r")
        with connected(board, authority.client()) as after:
            assert after.getpeercert(binary_form=True) != old
        said = b""
        while pattern(1000) not in said:
            said += before.recv(65536)

        Path(tls.key or "").write_text("no key")
        board.service.send_signal(signal.SIGHUP)
        board.service.wait_for_line(r"gateway.yaml:5: ports\[0\].tls: invalid key .*_rejected")
        with connected(board, authority.client()) as still:
            assert still.getpeercert(binary_form=True) != old


@pytest.mark.timeout(400)
def test_a_gateway_that_connects_knows_the_far_end_and_is_known_there(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    gateway_cert, gateway_key = authority.issue("gw", "gw@lab.example", common_name="gw")
    far_tcp_port, local = free_tcp_port(), free_tcp_port()
    keys = {"ca": str(authority.path), "cert": str(gateway_cert), "key": str(gateway_key)}
    config = tmp_path / "gateway.yaml"
    board = LabBoard("cabin", local, tmp_path / "cabin")
    config.write_text(
        f"ports:\n  - name: cabin\n    connect: localhost:{far_tcp_port}\n    tls:"
        f" {json.dumps(keys)}\n    device: sim://esp32?name=cabin&dir={board.folder}\n"
    )

    def far_end(*names: str) -> BackgroundProcess:
        cert, key = authority.issue("far", *names, common_name="far")
        listen = f"OPENSSL-LISTEN:{far_tcp_port},reuseaddr,verify=1,cert={cert},key={key}"
        tool = f"TCP-LISTEN:{local},bind=127.0.0.1,reuseaddr"
        return BackgroundProcess(
            [program("socat", "socat"), f"{listen},cafile={authority.path}", tool]
        )

    with Service(config) as service:
        with far_end("elsewhere.example") as impostor:
            service.wait_for_line("certificate not accepted: hostname mismatch.*dial_failed")
            impostor.kill()
        with far_end("localhost") as relay:
            relay.wait_until_listening(local)
            done = run_tool([*ESPTOOL5, "--port", board.url, "flash-id"], timeout_s=300)
            assert "Detected flash size: 4MB" in done.stdout, done.stdout + done.stderr
            service.wait_for_line(rf"127.0.0.1:{far_tcp_port} \(far\)")
            relay.kill()
        assert not [line for line in service.log if re.search("Traceback|never retrieved", line)]
