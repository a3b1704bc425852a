"""Access rules of requests: the token, pages of other sites, host names."""

from __future__ import annotations

import socket
from http import HTTPStatus
from pathlib import Path
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.test_utils import make_mocked_request

from gateway.web.http_access import (
    BYTES,
    AccessError,
    Policy,
    is_same_origin,
    is_served,
    own_names,
    split_host,
)

TOKEN = "0123456789abcdef"  # noqa: S105 - a test's
OPEN = Policy(token=None)
LOCKED = Policy(token=TOKEN)
HOST = "localhost:8080"

Asked = tuple[str, dict[str, str]]
GET: Asked = ("GET", {})
POST: Asked = ("POST", {"Content-Type": "application/json"})
SOCKET: Asked = ("GET", {"Upgrade": "websocket"})
CHANGES: list[Asked] = [POST, SOCKET, ("DELETE", POST[1]), ("BREW", POST[1])]


def request(
    asked: Asked,
    more: dict[str, str] | None = None,
    *,
    path: str = "/",
    has_body: bool = True,
) -> web.Request:
    method, headers = asked
    extra = more or {}
    payload = Mock() if has_body else EMPTY_PAYLOAD
    made = make_mocked_request(method, path, {"Host": HOST, **headers, **extra}, payload=payload)
    assert made.body_exists is has_body
    return made


def refused(policy: Policy, made: web.Request, *content_types: str) -> AccessError | None:
    try:
        policy.check(made, *([content_types] if content_types else []))
    except AccessError as error:
        return error
    return None


def status(policy: Policy, made: web.Request) -> HTTPStatus | None:
    error = refused(policy, made)
    return None if error is None else error.status


@pytest.mark.parametrize("asked", [GET, ("HEAD", {}), ("OPTIONS", {}), *CHANGES])
def test_only_a_request_that_changes_something_needs_the_token(asked: Asked) -> None:
    assert status(OPEN, request(asked)) is None
    needed = HTTPStatus.UNAUTHORIZED if asked in CHANGES else None
    assert status(LOCKED, request(asked)) is needed
    assert status(LOCKED, request(asked, {"Authorization": f"Bearer {TOKEN}"})) is None


def test_the_token_is_taken_from_the_header_or_a_websocket_s_protocols() -> None:
    assert status(LOCKED, request(POST, {"Authorization": f"bearer  {TOKEN} "})) is None
    offered = f"esp-gateway, bearer.{TOKEN}"
    assert status(LOCKED, request(SOCKET, {"Sec-WebSocket-Protocol": offered})) is None


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}0", TOKEN, "Bearer \xff\u20ac"],
)
def test_anything_else_is_no_token(authorization: str) -> None:
    made = request(POST, {"Authorization": authorization})
    assert status(LOCKED, made) is HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize(
    ("authorization", "cause"),
    [("", "a token is needed"), ("Bearer no", "the token is not this gateway's")],
)
def test_the_error_says_whether_the_token_is_missing_or_wrong(
    authorization: str, cause: str
) -> None:
    error = refused(LOCKED, request(POST, {"Authorization": authorization}))
    assert str(error) == f"{cause} (Authorization: Bearer TOKEN)"


@pytest.mark.parametrize("asked", [POST, SOCKET])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Origin": f"http://{HOST}"}, None),
        ({"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}, None),
        *(
            ({"Origin": origin}, HTTPStatus.FORBIDDEN)
            for origin in (
                "http://evil.example",
                "http://localhost",
                "http://localhost:8081",
                "http://localhost.evil.example:8080",
                "null",
                "file://",
                "http://localhost:port",
                "chrome-extension://localhost:8080",
            )
        ),
        *(
            ({"Sec-Fetch-Site": site}, HTTPStatus.FORBIDDEN)
            for site in ("cross-site", "same-site", "whatever")
        ),
    ],
)
def test_only_our_own_page_may_change_something(
    asked: Asked, headers: dict[str, str], expected: HTTPStatus | None
) -> None:
    assert status(OPEN, request(asked, headers)) is expected
    # A page of another site may not with the token either.
    assert (
        status(LOCKED, request(asked, {"Authorization": f"Bearer {TOKEN}", **headers})) is expected
    )


@pytest.mark.parametrize(
    ("content_type", "has_body", "is_permitted"),
    [
        (" Application/JSON ; charset=utf-8", True, True),
        ("", True, False),
        ("text/plain", True, False),
        ("application/x-www-form-urlencoded", True, False),
        ("multipart/form-data", True, False),
        ("", False, True),
        (BYTES, False, True),  # aiohttp's client says so of nothing
        ("text/plain", False, False),
    ],
)
def test_a_page_s_form_can_send_no_permitted_content(
    content_type: str, has_body: bool, is_permitted: bool
) -> None:
    made = request(("POST", {"Content-Type": content_type}), has_body=has_body)
    expected = None if is_permitted else HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert status(OPEN, made) is expected


def test_a_resource_may_take_other_content() -> None:
    made = request(("POST", {"Content-Type": f"{BYTES}; charset=x"}))
    assert refused(OPEN, made, BYTES) is None
    assert str(refused(OPEN, made)) == "Content-Type must be application/json"


@pytest.mark.parametrize("asked", [GET, ("OPTIONS", {}), *CHANGES])
@pytest.mark.parametrize("policy", [OPEN, LOCKED])
def test_a_host_name_of_another_party_is_refused(asked: Asked, policy: Policy) -> None:
    stolen = request(asked, {"Host": "evil.example:8080"})
    assert status(policy, stolen) is HTTPStatus.MISDIRECTED_REQUEST
    # A request line in absolute form names a host too, which counts more than the header.
    absolute = request(asked, path="http://evil.example/").clone(host="evil.example")
    assert status(policy, absolute) is HTTPStatus.MISDIRECTED_REQUEST


def test_the_names_of_the_host_and_of_the_configuration_are_served() -> None:
    policy = Policy(None, frozenset({"lab.example"}), frozenset({"pi", "pi.local"}))
    for host in ("lab.example", "LAB.example.:443", "pi:8080", "pi.local", "10.0.0.5:8080", ""):
        assert status(policy, request(GET, {"Host": host})) is None
    assert str(refused(policy, request(GET, {"Host": "other.example:1"}))) == (
        "other.example:1 is not a name of this gateway: use its IP address, or add the name to"
        " http.host_names in its configuration"
    )


def test_the_default_port_need_not_be_given() -> None:
    assert is_same_origin("https://lab.example", "lab.example:443")
    assert is_same_origin("http://lab.example:80", "lab.example")
    assert not is_same_origin("http://lab.example", "lab.example:443")
    # A proxy speaks TLS, we do not.
    assert is_same_origin("https://lab.example", "lab.example")


OWN = frozenset({"raspberrypi", "raspberrypi.local", "raspberrypi.lab.example", "lab.example"})


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("localhost", True),
        ("LOCALHOST.:8080", True),
        ("desk.localhost:8080", True),
        # A browser connects to an address itself, so that no DNS can point it elsewhere.
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("[fe80::1%25eth0]:8080", True),
        ("192.0.2.7", True),
        ("raspberrypi:8080", True),
        ("RaspberryPi.local.", True),
        ("raspberrypi-2.local", True),
        ("raspberrypi-esp.local:8080", True),
        ("raspberrypi.lab.example", True),
        ("lab.example", True),
        ("evil.example", False),
        ("raspberrypi.evil.example", False),
        ("raspberrypi-2.evil.example", False),
        ("raspberrypi-2", False),
        ("evil.local", False),
        ("lab-2.local", False),
        ("www.lab.example", False),
        ("localhost.evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("2130706433", False),
        ("[::1", False),
        ("lab:x", False),
        ("a b", False),
        ("\udcff", False),
        ("user@localhost", True),
        ("localhost@evil.example", False),
    ],
)
def test_names_that_no_other_party_controls_are_served(host: str, served: bool) -> None:
    assert is_served(split_host(host)[0], OWN) is served


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        (
            "Pi",
            (
                "# search no.example\nsearch lab.example. Fritz.box\nnameserver 1.1.1.1\n",
                "127.0.0.1 localhost\n127.0.1.1 pi.hosts.example pi # comment pi.no.example\n",
            ),
            {"pi", "pi.local", "pi.lab.example", "pi.fritz.box", "pi.hosts.example"},
        ),
        ("pi.lab.example", (None, None), {"pi.lab.example", "pi", "pi.local"}),
        ("localhost", ("search evil.example\n", "127.0.0.1 localhost evil\n"), set()),
    ],
)
def test_the_host_has_its_name_alone_and_in_each_domain(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    texts: tuple[str | None, str | None],
    expected: set[str],
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    files = tmp_path / "resolv.conf", tmp_path / "hosts"
    for file, text in zip(files, texts, strict=True):
        if text is not None:
            file.write_text(text)
    assert own_names(*files) == expected
