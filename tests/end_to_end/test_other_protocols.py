"""Programs that speak other protocols, and a browser with a hostile page, at a board's ports."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from gateway.config.document import OnConnect, Sharing
from gateway.net.access import Rejection
from gateway.protocol.access_server import RawPipe
from gateway.protocol.reset import Lines
from gateway.session.requests import Conversation
from tests.scenarios.test_first_bytes import COMMANDS
from tests.support.browser import Browser
from tests.support.peers import program
from tests.support.pty_board import PtyBoard, Served, access_server, serving, until
from tests.support.tcp_client import GREETED_ACCEPTS_COM_PORT
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.world import Client

pytestmark = pytest.mark.timeout(400)

CONVERSATIONS = pytest.mark.parametrize("converse", [access_server, RawPipe])

#: A page that has come from elsewhere. It reads nothing, which it need not to do harm.
PAGE = b"<!doctype html><title>hostile</title><p>hello"

ATTACK = """
(async () => {
  const body = new Uint8Array(%s);
  const url = "http://127.0.0.1:%d/";
  const done = [];
  const note = (promise) => promise.then((r) => done.push(r.type), (e) => done.push(e.name));
  await note(fetch(url, {method: "POST", mode: "no-cors", body}));
  await note(fetch(url + "x".repeat(100000), {method: "POST", mode: "no-cors", body}));
  await note(fetch(url, {mode: "no-cors"}));
  await note(fetch(url, {method: "PUT", body}));
  await note(fetch(url, {method: "BREW", body}));
  await note(fetch("https://127.0.0.1:%d/", {method: "POST", mode: "no-cors", body}));
  navigator.sendBeacon(url, body);
  await new Promise((resolve) => {
    const socket = new WebSocket("ws://127.0.0.1:%d/");
    socket.onclose = resolve;
  });
  const peer = new RTCPeerConnection({iceServers: [{
    urls: "turn:127.0.0.1:%d?transport=tcp", username: "\\r\\nreset\\r\\n", credential: "x"}]});
  peer.createDataChannel("x");
  peer.setLocalDescription(await peer.createOffer());
  await new Promise((resolve) => { peer.onicegatheringstatechange = () => {
    if (peer.iceGatheringState === "complete") resolve(); }; });
  return done;
})()
"""


@contextmanager
def hostile_site() -> Iterator[str]:
    """The URL of a page on another origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def check_untouched(board: PtyBoard, served: Served, lines: list[Lines]) -> None:
    """Nothing has come to the board, and nobody has had it."""
    assert bytes(board.received) == b""
    assert board.lines == lines
    assert served.port.sessions == 0
    assert served.port.status.settings.baudrate == 115200


@CONVERSATIONS
@pytest.mark.parametrize(
    "options", [[], ["--http2-prior-knowledge"], ["-k"], ["--haproxy-protocol"]]
)
async def test_curl_is_told_or_closed(
    board: PtyBoard, converse: Callable[[], Conversation], options: list[str]
) -> None:
    curl = program("curl", "curl")
    async with serving(board, converse=converse) as served:
        board.start_reading()
        lines = list(board.lines)
        scheme = "https" if options == ["-k"] else "http"
        url = f"{scheme}://127.0.0.1:{served.tcp_port}/"
        command = [curl, "-sS", "-m", "60", *options, "-d", "reset", url]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert ("serial port of a board" in done.stdout) is (options == [])
        assert (done.returncode == 0) is (options == [])
        await until(lambda: served.listener.rejected[Rejection.OTHER_PROTOCOL] == 1)
        check_untouched(board, served, lines)


@CONVERSATIONS
async def test_ssh_and_tls_clients_are_closed(
    board: PtyBoard, converse: Callable[[], Conversation]
) -> None:
    def shake_hands(tcp_port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", tcp_port), 60) as connection,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(connection, server_hostname="desk")

    ssh = program("ssh", "openssh-client")
    async with serving(board, converse=converse) as served:
        board.start_reading()
        lines = list(board.lines)
        await asyncio.to_thread(shake_hands, served.tcp_port)
        command = [ssh, "-F", "/dev/null", "-v", "-p", str(served.tcp_port), "127.0.0.1"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert done.returncode == 255
        assert "serial port of a board" in done.stderr
        await until(lambda: served.listener.rejected[Rejection.OTHER_PROTOCOL] == 2)
        check_untouched(board, served, lines)


@pytest.mark.parametrize(
    ("converse", "on_connect"), [(access_server, OnConnect.NOTHING), (RawPipe, OnConnect.RESET)]
)
async def test_a_web_page_can_do_nothing_to_a_board(
    board: PtyBoard, converse: Callable[[], Conversation], on_connect: OnConnect
) -> None:
    def attack(tcp_port: int) -> list[str]:
        with hostile_site() as url, Browser() as browser, browser.new_page() as page:
            page.open(url)
            page.wait_for("document.head")
            done = page.evaluate(ATTACK % (json.dumps(list(COMMANDS)), *4 * [tcp_port]))
            answer = page.call("Page.navigate", url=f"http://127.0.0.1:{tcp_port}/")
            assert "errorText" not in answer
            page.wait_for_text("body", "serial port of a board")
            return list(done)

    async with serving(board, converse=converse, on_connect=on_connect) as served:
        board.start_reading()
        lines = list(board.lines)
        done = await asyncio.to_thread(attack, served.tcp_port)
        assert done[:3] == ["opaque", "opaque", "opaque"]
        assert set(done[3:]) == {"TypeError"}
        assert served.listener.rejected[Rejection.OTHER_PROTOCOL] >= 8
        check_untouched(board, served, lines)


async def test_a_web_page_takes_no_port_from_its_client(board: PtyBoard) -> None:
    def attack(tcp_port: int) -> None:
        with hostile_site() as url, Browser() as browser, browser.new_page() as page:
            page.open(url)
            page.wait_for("document.head")
            page.evaluate(
                f"document.head.innerHTML = '<link rel=preconnect href=http://127.0.0.1:{tcp_port}>'"
            )
            page.evaluate(
                f"fetch('http://127.0.0.1:{tcp_port}/', {{mode: 'no-cors', method: 'POST'}})"
                ".then(() => 1)"
            )

    async with serving(board, sharing=Sharing.PREEMPT) as served:
        board.start_reading()
        with await Client.connect(served.tcp_port) as owner:
            await owner.send(RFC2217_CLIENT)
            await owner.receive_wire(GREETED_ACCEPTS_COM_PORT)
            await asyncio.to_thread(attack, served.tcp_port)
            await until(lambda: len(served.sessions) == 1)
            assert served.port.arbiter.controller_names == owner.name
            assert served.port.sessions == 1
            await owner.settled()
            assert owner.data == b""
