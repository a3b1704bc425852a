"""Chromium without a window, as people drive it: pages, keys, what a screen reader is told.

Speaks the DevTools protocol to Debian's chromium over a pair of pipes, which is the debugging
interface without a TCP port: nothing is downloaded, no driver has to fit the browser's version, and
there is neither a thread nor a second process to clean up. Synchronous: whoever asks waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any, Self

import pytest

from tests.support.processes import kill_group

#: The browser's names on Debian, Ubuntu and elsewhere.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: A conversation's slowest step, a browser's start on a busy single-board computer, takes 20 s.
LIMIT_S = 90.0

#: Between two looks at a page, which can't be waited for.
_POLL_S = 0.05

_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    # As root, which CI's containers are, there is no sandbox; the pages are our own.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-breakpad",
    "--password-store=basic",
    # A page in the background is a page that somebody will look at again.
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
)

_MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}

#: DOM code, Windows key code and text of the keys that are no letters.
_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "Backspace": ("Backspace", 8, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    " ": ("Space", 32, " "),
    "]": ("BracketRight", 221, "]"),
    "/": ("Slash", 191, "/"),
}


def find_browser() -> str:
    """The browser's path; skips the test where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip("chromium is not installed (Debian package chromium)")


class Browser:
    """A browser process; a context manager. Ends with all of its pages."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []  # those that no page has taken yet
        self._path = find_browser()
        self._folder = tempfile.TemporaryDirectory(prefix="page-test-", ignore_cleanup_errors=True)
        self._unread = b""
        self._last_id = 0

    def __enter__(self) -> Self:
        commands_r, self._commands = os.pipe()
        self._answers, answers_w = os.pipe()
        # The browser wants them at 3 and 4, which Popen can't promise.
        pipes = ["bash", "-c", f'exec "$@" 3<&{commands_r} 4>&{answers_w}', "bash"]
        self._process = subprocess.Popen(
            [*pipes, self._path, *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(commands_r, answers_w),
            start_new_session=True,
            text=True,
        )
        os.close(commands_r)
        os.close(answers_w)
        try:
            self.call("Browser.getVersion")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
            self._process.wait(5)
        self._end()

    def _end(self) -> None:
        kill_group(self._process)
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._folder.cleanup()

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """What a command of the DevTools protocol answers; an error fails the test."""
        self._last_id += 1
        number = self._last_id
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + LIMIT_S
        while True:
            told = self._read(deadline, method)
            if told.get("id") != number:
                self.events.append(told)
            elif "error" in told:
                raise AssertionError(f"{method}: {told['error'].get('message')}")
            else:
                result: dict[str, Any] = told["result"]
                return result

    def _read(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._unread:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._answers], [], [], left)[0]:
                raise AssertionError(f"the browser did not answer {waiting_for}")
            chunk = os.read(self._answers, 1 << 20)
            if not chunk:
                raise AssertionError(f"the browser has ended; asked was {waiting_for}")
            self._unread += chunk
        message, _, self._unread = self._unread.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def new_page(self) -> Page:
        """A page in a profile of its own: no storage, no cookies, nothing of the page before."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        return Page(self, context, attached["sessionId"])


class Page:
    """One page of a browser; a context manager that closes it.

    `problems` are all that the page has complained of so far: exceptions, errors on its console
    and what its Content-Security-Policy forbids.
    """

    def __init__(self, browser: Browser, context: str, session: str) -> None:
        self._browser = browser
        self._context = context
        self._session = session
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(AssertionError):
            self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)
        self._browser.events = [
            e for e in self._browser.events if e.get("sessionId") != self._session
        ]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol to this page."""
        return self._browser.call(method, self._session, **parameters)

    @property
    def problems(self) -> list[str]:
        """See the class; in the order in which they came."""
        self.evaluate("0")  # what came before the answer has been read with it
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            about = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                thrown = about["exceptionDetails"]
                found.append(str(thrown.get("exception", {}).get("description", thrown["text"])))
            elif event["method"] == "Log.entryAdded" and about["entry"]["level"] == "error":
                found.append(f"{about['entry']['text']} {about['entry'].get('url', '')}".strip())
            elif event["method"] == "Runtime.consoleAPICalled" and about["type"] == "error":
                found.append(
                    " ".join(str(a.get("value", a.get("description"))) for a in about["args"])
                )
        return found

    def look_like(
        self, width: int, height: int, *, dark: bool = False, phone: bool = False
    ) -> None:
        """The window's size in CSS pixels, the colour scheme, and whether it is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Load a page; what it does then is to be waited for."""
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression or of its promise; what it throws fails the test."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"]
            raise AssertionError(thrown.get("exception", {}).get("description", thrown["text"]))
        return answer["result"].get("value")

    def wait_for(self, condition: str, limit_s: float = LIMIT_S) -> None:
        """Wait until a JavaScript expression is true, or is an element."""
        deadline = time.monotonic() + limit_s
        while True:
            # While a page loads, there may be no element to ask.
            with contextlib.suppress(AssertionError):
                if self.evaluate(f"Boolean({condition})"):
                    return
            if time.monotonic() > deadline:
                text = self.evaluate("document.body.innerText")
                pytest.fail(
                    f"did not come: {condition}\n--- problems: {self.problems}\n--- page:\n{text}",
                    pytrace=False,
                )
            time.sleep(_POLL_S)

    def wait_for_text(self, selector: str, text: str, limit_s: float = LIMIT_S) -> None:
        """Wait until an element's text has `text` in it."""
        wanted = json.dumps(text)
        self.wait_for(f"{_find(selector)}?.textContent.includes({wanted})", limit_s)

    def text(self, selector: str) -> str:
        """The text of the first element that fits."""
        return str(self.evaluate(f"{_find(selector)}.textContent"))

    def click(self, selector: str) -> None:
        """Click an element's middle, with a mouse, once it is there and can be used."""
        self.wait_for(f"{_find(selector)} && !{_find(selector)}.disabled")
        self.evaluate(f"{_find(selector)}.scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"{_find(selector)}.getBoundingClientRect().toJSON()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, *modifiers: str) -> None:
        """Press a key: a letter or one of `_KEYS`, with Control, Shift, Alt or Meta."""
        code, number, text = _KEYS.get(key, (f"Key{key.upper()}", ord(key.upper()[0]), key))
        bits = sum(_MODIFIERS[each] for each in modifiers)
        about: dict[str, Any] = {
            "key": key,
            "code": code,
            "windowsVirtualKeyCode": number,
            "modifiers": bits,
        }
        if text and not bits & ~_MODIFIERS["Shift"]:
            about["text"] = text
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        about.pop("text", None)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Type text into whatever has the focus; a newline is Enter."""
        for character in text:
            self.press("Enter" if character == "\n" else character)

    def paste(self) -> None:
        """What is on the clipboard goes into whatever has the focus."""
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", key="v", code="KeyV", modifiers=2,
            commands=["paste"],
        )  # fmt: skip
        self.call("Input.dispatchKeyEvent", type="keyUp", key="v", code="KeyV", modifiers=2)

    def accessible(self) -> list[tuple[str, str]]:
        """(role, name) of everything that a screen reader is told of, in reading order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def focused(self) -> str:
        """What the focused element is called, its label or its text."""
        return str(
            self.evaluate(
                "(document.activeElement.ariaLabel ?? document.activeElement.textContent).trim()"
            )
        )


def _find(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"
