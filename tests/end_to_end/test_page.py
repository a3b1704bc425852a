"""The status page in a real browser, over the real service with simulated boards."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.config.reader import parse_config
from tests.support.browser import Browser, Page
from tests.support.fake_sysfs import CP2102N
from tests.support.lab import Lab
from tests.support.usb_lab import usb_lab

# A browser on a busy machine takes its time; what is waited for ends long before.
pytestmark = pytest.mark.timeout(400)

#: What a screen shows of the terminal.
TERMINAL = "#console .xterm-rows"
CELLS = f"document.querySelectorAll('{TERMINAL} span')"
#: What a browser notes of each request that was refused or got no answer.
NOT_LOADED = re.compile("Failed to load resource|WebSocket connection to .* failed")
CONNECT = "#console .toolbar .primary"


#: The rules of axe-core: contrast, names, landmarks, structure.
AXE = Path(__file__).parent.parent / "vendor" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two boards that tests leave as they have found them."""
    with Lab(tmp_path_factory.mktemp("lab"), {"desk": "", "shelf": ""}, http=True) as lab:
        yield lab


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that has not complained of anything by the end of the test.

    But for what it could not load: that is told to the person, and tested as such.
    """
    with browser.new_page() as page:
        page.look_like(1280, 800)
        yield page
        assert [each for each in page.problems if not NOT_LOADED.search(each)] == []


def open_lab(page: Page, lab: Lab, path: str = "/") -> None:
    """Open the page, wait until all boards are there; cards can then be found by name."""
    page.open(f"http://{lab.http}{path}")
    page.wait_for(f"document.querySelectorAll('.card').length === {len(lab.boards)}")
    page.wait_for_text("#live-text", "Live")
    for name in lab.boards:
        page.evaluate(
            "for (const heading of document.querySelectorAll('.card h2'))"
            f" if (heading.textContent === {json.dumps(name)})"
            f" heading.closest('.card').dataset.name = {json.dumps(name)}"
        )


def in_card(name: str, selector: str) -> str:
    return f'.card[data-name="{name}"] {selector}'


def connected_client(lab: Lab, name: str) -> socket.socket:
    """Somebody who has the port."""
    client = socket.create_connection(("127.0.0.1", lab.boards[name].tcp_port))
    lab.service.wait_for_line(rf'"device": "{name}".*127.0.0.1:{client.getsockname()[1]}')
    return client


def test_boards_are_shown_with_who_has_them(page: Page, lab: Lab) -> None:
    open_lab(page, lab)
    tcp_port = lab.boards["desk"].tcp_port
    assert page.text(in_card("desk", ".address")) == f"rfc2217://127.0.0.1:{tcp_port}"
    assert page.text(in_card("desk", ".settings")) == "115200 8N1"
    assert "10c4:ea60" in page.text(in_card("desk", ".device"))
    page.wait_for_text(in_card("desk", ".state"), "free")
    with closing(connected_client(lab, "desk")) as client:
        page.wait_for_text(in_card("desk", ".state"), "in use")
        page.wait_for_text(in_card("desk", ".users"), f"127.0.0.1:{client.getsockname()[1]} since")
        # The other board's card is not touched by it.
        assert page.text(in_card("shelf", ".state")) == "free"
    page.wait_for_text(in_card("desk", ".state"), "free")


def test_a_board_goes_and_comes_and_says_what_it_does(page: Page, tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}, http=True) as lab:
        open_lab(page, lab)
        page.wait_for_text(in_card("desk", ".last"), "heartbeat")
        lab.boards["desk"].ask("unplug")
        page.wait_for_text(in_card("desk", ".state"), "absent")
        page.wait_for(f"!document.querySelector('{in_card('desk', '.reason')}').hidden")
        page.wait_for_text("#announcer", "desk: absent")
        lab.boards["desk"].ask("plug")
        page.wait_for_text(in_card("desk", ".state"), "free")
        assert page.evaluate(f"document.querySelector('{in_card('desk', '.reason')}').hidden")


async def test_usb_devices_without_a_port_are_listed(page: Page, tmp_path: Path) -> None:
    text = "ports: [{name: desk, tcp: 0, device: /dev/none}]\nhttp: 127.0.0.1:0"
    async with usb_lab(tmp_path) as lab:
        lab.usb.plug(CP2102N, "1-2", bound_to="usbfs")
        await lab.service.start(parse_config(text, "gateway.yaml"))
        await asyncio.to_thread(page.open, f"http://127.0.0.1:{lab.service.http_port}/")
        await asyncio.to_thread(page.wait_for_text, "#not-served", "no tty: claimed by")


def test_a_gateway_that_is_gone_is_not_shown_as_live(page: Page, tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}, http=True) as lab:
        open_lab(page, lab)
        lab.service.stop()
        page.wait_for_text("#live-text", "Not connected")
        page.wait_for_text("#lost", "What is shown is how it was")
        page.wait_for_text(in_card("desk", ".state"), "was free")
        assert page.evaluate(
            f"[...document.querySelectorAll('{in_card('desk', '.buttons button')}')].slice(1)"
            ".every((button) => button.disabled)"
        )


def test_a_gateway_that_falls_silent_is_noticed_and_found_again(page: Page, tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}, http=True) as lab:
        open_lab(page, lab)
        lab.service.send_signal(signal.SIGSTOP)  # connections stay, as over a cut cable
        try:
            page.wait_for_text("#lost", "the gateway does not answer")
            page.wait_for_text(in_card("desk", ".state"), "was free")
        finally:
            lab.service.send_signal(signal.SIGCONT)
        page.wait_for_text("#live-text", "Live")
        page.wait_for("document.querySelector('#lost').hidden")
        page.wait_for_text(in_card("desk", ".state"), "free")


def test_a_console_watches_without_taking_the_port(page: Page, lab: Lab) -> None:
    open_lab(page, lab, "/#/desk")
    page.wait_for_text(TERMINAL, "heartbeat")
    page.wait_for_text("#console .mode", "Watching")
    assert page.text("#console .state") == "free"


def test_what_is_typed_reaches_the_board(page: Page, lab: Lab) -> None:
    lab.boards["desk"].wait_for_app()
    open_lab(page, lab)
    page.click(in_card("desk", ".buttons .plain"))
    page.click(CONNECT)
    page.wait_for_text("#console .mode", "Connected")
    page.wait_for("document.activeElement.classList.contains('xterm-helper-textarea')")
    page.type("version\n")
    page.wait_for_text(TERMINAL, "simulated")
    page.wait_for_text(in_card("desk", ".users"), "(web)")
    # A line from the field below goes the same way; on a phone it is easier to type in.
    page.evaluate("document.querySelector('#console input[name=line]').focus()")
    page.type("nonsense\n")
    page.wait_for_text(TERMINAL, "? nonsense")
    page.click(CONNECT)
    page.wait_for_text("#console .mode", "Watching")
    page.wait_for_text(in_card("desk", ".state"), "free")


def test_a_port_that_somebody_has_is_watched_and_the_console_says_why(page: Page, lab: Lab) -> None:
    with closing(connected_client(lab, "shelf")) as client:
        open_lab(page, lab, "/#/shelf")
        # The board's past comes first, and may be longer than the terminal has rows.
        page.wait_for_text(TERMINAL, "heartbeat")
        page.click(CONNECT)
        page.wait_for_text(TERMINAL, f"in use by 127.0.0.1:{client.getsockname()[1]}")
        page.wait_for_text("#console .mode", "Watching")
        page.wait_for_text(TERMINAL, "heartbeat")


def test_a_reset_asks_first_when_somebody_has_the_board(page: Page, lab: Lab) -> None:
    board = lab.boards["shelf"]
    open_lab(page, lab)
    boots = len(board.boots())
    with closing(connected_client(lab, "shelf")) as client:
        page.wait_for_text(in_card("shelf", ".state"), "in use")
        page.click(in_card("shelf", ".buttons button:nth-of-type(2)"))
        page.wait_for_text("dialog", f"127.0.0.1:{client.getsockname()[1]}")
        # Nothing has happened, and the harmless answer has the focus.
        assert page.focused() == "Cancel"
        page.press("Enter")
        page.wait_for("!document.querySelector('dialog')")
        assert len(board.boots()) == boots
        page.click(in_card("shelf", ".buttons button:nth-of-type(2)"))
        page.click("dialog .danger")
        board.wait_for_boots(boots + 1)
        page.wait_for_text("#toasts", "shelf was reset")
    page.wait_for_text(in_card("shelf", ".state"), "free")


def test_a_free_board_enters_its_bootloader_and_leaves_it(page: Page, lab: Lab) -> None:
    board = lab.boards["shelf"]
    open_lab(page, lab)
    page.wait_for_text(in_card("shelf", ".state"), "free")
    page.click(in_card("shelf", ".buttons button:nth-of-type(3)"))
    page.wait_for_text("#toasts", "is in its bootloader")
    page.wait_for_text(in_card("shelf", ".last"), "waiting for download")
    assert board.boots()[-1] == "download"
    page.click(in_card("shelf", ".buttons button:nth-of-type(2)"))
    # The page may still be told of the visit that entered the bootloader, and asks then.
    done = "document.querySelector('#toasts').textContent.includes('shelf was reset')"
    page.wait_for(f"document.querySelector('dialog') || {done}")
    if page.evaluate("Boolean(document.querySelector('dialog'))"):
        page.click("dialog .danger")
    page.wait_for(done)
    board.wait_for(lambda log: any(e.get("mode") == "app" for e in log[-8:]))


@pytest.mark.parametrize("secure", [True, False], ids=["clipboard", "plain-http"])
def test_a_command_is_copied(page: Page, lab: Lab, secure: bool) -> None:
    open_lab(page, lab)
    if not secure:  # over http from another machine there is no navigator.clipboard
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click(in_card("desk", "summary"))
    page.click(in_card("desk", ".commands button"))
    page.wait_for_text(in_card("desk", ".commands button"), "Copied")
    page.evaluate("document.querySelector('#search').focus()")
    page.paste()
    url = f"rfc2217://127.0.0.1:{lab.boards['desk'].tcp_port}"
    copied = f"esptool --port {url} write-flash 0x10000 app.bin"
    page.wait_for(f"document.querySelector('#search').value === {json.dumps(copied)}")


def test_markup_in_what_a_board_says_stays_text(page: Page, lab: Lab) -> None:
    lab.boards["desk"].wait_for_app()
    markup = "<img/src=x/onerror=document.title='taken'>"
    with closing(connected_client(lab, "desk")) as client:
        open_lab(page, lab, "/#/desk")
        client.sendall(f"{markup}\r".encode())
        page.wait_for_text(in_card("desk", ".last"), "? <img/src=x")
        page.wait_for_text(TERMINAL, "? <img/src=x")
    assert not page.evaluate("document.querySelectorAll('img[src=x]').length")
    assert page.evaluate("document.title").startswith("desk ")


#: What a cell is written with, and its text.
COLOURS = {
    "true": "38;2;255;128;0",
    "trueback": "48;2;10;20;130",
    "p208": "38;5;208",
    "back27": "48;5;27",
    "red": "31",
    "inverse": "7",
    "inversetrue": "7;38;2;1;200;3",
    "plain": "0",
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_console_has_all_colours_and_reverse_video(
    page: Page, tmp_path: Path, dark: bool
) -> None:
    """As the browser draws them: foreground and background of each cell."""
    page.look_like(1280, 800, dark=dark)
    with Lab(tmp_path, {"desk": ""}, http=True) as lab:
        lab.boards["desk"].wait_for_app()
        written = "".join(f"\x1b[{codes}m{text}\x1b[0m," for text, codes in COLOURS.items())
        with closing(connected_client(lab, "desk")) as client:
            open_lab(page, lab, "/#/desk")
            client.sendall(f"{written}\r".encode())
            page.wait_for_text(TERMINAL, "? true,trueback,p208")
            drawn = page.evaluate(
                f"""Object.fromEntries([...{CELLS}].map((cell) => {{
                  const rgba = (text) => text.match(/[0-9.]+/g).map(Number);
                  const backOf = (element) => {{
                    const back = rgba(getComputedStyle(element).backgroundColor);
                    return back[3] === 0 ? backOf(element.parentElement) : back.slice(0, 3);
                  }};
                  return [cell.textContent, [rgba(getComputedStyle(cell).color), backOf(cell)]];
                }}))"""
            )
    cells = {text: drawn[text] for text in COLOURS if text != "plain"}
    assert cells["trueback"][1] == [10, 20, 130]
    assert cells["back27"][1] == [0, 95, 255]
    assert cells["inversetrue"][1] == [1, 200, 3]
    assert cells["inverse"][1] != cells["red"][1]
    if dark:  # on white they are darkened until they can be read
        assert cells["true"][0] == [255, 128, 0]
        assert cells["p208"][0] == [255, 135, 0]
    assert len({tuple(cells[text][0]) for text in ("true", "p208", "red", "inverse")}) == 4
    for text, (colour, back) in cells.items():
        # Behind the reverse of a colour of its own, xterm.js has the screen's colour as it is.
        least = 2.0 if text == "inversetrue" else 4.4
        assert contrast(colour, back) >= least, (text, colour, back)


def contrast(one: list[int], other: list[int]) -> float:
    """The ratio of WCAG 2, 1 to 21."""

    def luminance(rgb: list[int]) -> float:
        parts = [each / 255 for each in rgb]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_markup_in_a_name_stays_text(page: Page, lab: Lab) -> None:
    open_lab(page, lab)
    name = "<script>document.title='taken'</script>"
    shown = page.evaluate(
        f"""Promise.all([import('/static/card.js'), import('/static/port.js')]).then((modules) => {{
          const name = {json.dumps(name)};
          const told = {{name, state: name, reason: name, device: name, lines: name, connect: name,
            usb: {{ids: name, chip: name}}, settings: {{parity: name, flow_control: name}},
            clients: [{{address: name, state: name, connected_at: name}}]}};
          const card = new modules[0].Card(name, {{}});
          card.update(modules[1].portFrom(told));
          card.addOutput(name);
          card.showOutput();
          document.querySelector('#cards').append(card.element);
          return [card.element.querySelectorAll('script').length, card.element.textContent];
        }})"""
    )
    assert shown[0] == 0
    assert shown[1].count(name) >= 6
    assert page.evaluate("document.title") == "esp-gateway"


@pytest.mark.parametrize("path", ["/", "/#/desk"], ids=["boards", "console"])
def test_a_phone_needs_no_sideways_scrolling(page: Page, lab: Lab, path: str) -> None:
    page.look_like(360, 740, phone=True)
    open_lab(page, lab, path)
    if path == "/":
        page.click(in_card("desk", "summary"))
    else:
        page.wait_for_text(TERMINAL, "heartbeat")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    outside = page.evaluate(
        "[...document.querySelectorAll('button, input, select, summary')]"
        ".filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > 360).length"
    )
    assert outside == 0


def test_it_is_dark_where_the_person_wants_it_dark(page: Page, lab: Lab) -> None:
    brightness = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"
        ".reduce((sum, each) => sum + Number(each), 0) / 3"
    )
    page.look_like(1280, 800, dark=False)
    open_lab(page, lab)
    assert page.evaluate(brightness) > 200
    page.look_like(1280, 800, dark=True)
    assert page.evaluate(brightness) < 50


def test_a_keyboard_is_enough(page: Page, lab: Lab) -> None:
    lab.boards["desk"].wait_for_app()
    open_lab(page, lab)
    page.press("/")
    page.type("desk")
    page.wait_for("document.querySelectorAll('.cards > li:not([hidden])').length === 1")
    page.press("Tab")
    for _ in range(5):
        if page.focused() == "Console of desk":
            break
        page.press("Tab")
    assert page.focused() == "Console of desk"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    page.wait_for_text("#console .mode", "Watching")
    assert page.focused() == "Connect"
    page.press("Enter")
    page.wait_for_text("#console .mode", "Connected")
    page.wait_for("document.activeElement.classList.contains('xterm-helper-textarea')")
    # In the terminal these belong to the board.
    page.press("Tab")
    page.press("Escape")
    assert page.evaluate("document.activeElement.classList.contains('xterm-helper-textarea')")
    page.press("]", "Control")
    assert page.focused() == "Disconnect"
    page.press("Enter")
    page.wait_for_text("#console .mode", "Watching")
    page.press("Tab", "Shift")
    assert page.focused() == "Close the console of desk"
    page.press("Enter")
    page.wait_for("document.querySelector('#console').hidden")
    assert page.focused() == "Console of desk"


def test_a_screen_reader_finds_its_way(page: Page, lab: Lab) -> None:
    open_lab(page, lab, "/#/desk")
    page.wait_for_text(TERMINAL, "heartbeat")
    told = page.accessible()
    for wanted in [
        ("main", ""),
        ("region", "Boards"),
        ("banner", ""),
        ("search", ""),
        ("region", "desk"),
        ("article", "desk"),
        ("article", "shelf"),
        ("heading", "shelf"),
        ("button", "Reset shelf"),
        ("button", "Enter bootloader of shelf"),
        ("button", "Close the console of desk"),
        ("textbox", "Terminal of desk. Control ] leaves it."),
        ("textbox", "Line to send to desk"),
        ("searchbox", "Find a board"),
    ]:
        assert wanted in told
    # What a board says is read when somebody goes there, not whenever it comes.
    output = f"document.querySelector('{in_card('desk', '.last')}')"
    assert not page.evaluate(f"{output}.closest('[aria-live], [role=status]')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
def test_axe_finds_nothing_to_complain_of(page: Page, lab: Lab, dark: bool, phone: bool) -> None:
    width, height = (360, 740) if phone else (1280, 800)
    page.look_like(width, height, dark=dark, phone=phone)
    open_lab(page, lab)
    page.click(in_card("desk", "summary"))
    page.wait_for_text(in_card("desk", ".last"), "heartbeat")
    page.evaluate(AXE.read_text() + "; 0")
    assert complaints(page) == []
    page.click(in_card("desk", ".buttons .plain"))
    page.wait_for_text(TERMINAL, "heartbeat")
    assert complaints(page) == []


def complaints(page: Page) -> list[str]:
    """The rules that the page breaks, and where."""
    found: list[str] = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations.map("
        "(each) => `${each.id}: ${each.nodes.map((node) => node.target.join(' ')).join(', ')}`))"
    )
    return found


def test_the_token_is_asked_for_once(page: Page, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text("not-a-secret-0123456789\n")
    token_file.chmod(0o600)
    with Lab(tmp_path, {"desk": ""}, http=True, token_file=token_file) as lab:
        open_lab(page, lab)
        page.click(in_card("desk", ".buttons button:nth-of-type(2)"))
        page.wait_for_text("dialog", "requires a token")
        page.type("wrong\n")
        page.wait_for_text("dialog .problem", "not accepted")
        page.type("not-a-secret-0123456789\n")
        page.wait_for_text("#toasts", "desk was reset")
        # For the console too, and after the page was loaded again.
        open_lab(page, lab, "/?again#/desk")
        page.click(CONNECT)
        page.wait_for_text("#console .mode", "Connected")


def test_a_console_asks_for_the_token(page: Page, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text("not-a-secret-0123456789\n")
    token_file.chmod(0o600)
    with Lab(tmp_path, {"desk": ""}, http=True, token_file=token_file) as lab:
        open_lab(page, lab, "/#/desk")
        page.click(CONNECT)
        page.wait_for_text("dialog", "requires a token")
        page.type("not-a-secret-0123456789\n")
        page.wait_for_text("#console .mode", "Connected")


def test_a_flood_leaves_the_page_small_and_usable(page: Page, lab: Lab) -> None:
    lab.boards["desk"].wait_for_app()
    open_lab(page, lab, "/#/desk")
    page.click(CONNECT)
    page.wait_for_text("#console .mode", "Connected")
    before = page.evaluate("document.querySelectorAll('*').length")
    page.wait_for("document.activeElement.classList.contains('xterm-helper-textarea')")
    page.type("bytes 300000\n")
    page.wait_for_text(in_card("desk", ".received"), "KiB")
    page.press("]", "Control")
    page.press("Enter")
    page.wait_for_text("#console .mode", "Watching")
    # The screen's cells come and go, what was said before does not stay in the document.
    assert page.evaluate("document.querySelectorAll('*').length") < before + 3000
    assert (
        page.evaluate(f"document.querySelector('{in_card('desk', '.last')}').textContent.length")
        < 1000
    )


def test_commands_for_a_port_with_tls_speak_it(page: Page, lab: Lab) -> None:
    open_lab(page, lab)
    told = {"name": "vault", "tcp_port": 4009, "tls": True, "protocol": "rfc2217"}
    commands = page.evaluate(
        "Promise.all([import('/static/commands.js'), import('/static/port.js')]).then((modules) =>"
        f" modules[0].commandsFor(modules[1].portFrom({json.dumps(told)}), 'lab'))"
    )
    esptool, socat = (command for _, command in commands)
    assert esptool.startswith('esptool --port "gateway://lab:4009?ca=ca.pem" ')
    assert "OPENSSL:lab:4009,cafile=ca.pem" in socat
