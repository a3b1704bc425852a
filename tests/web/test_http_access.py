"""Which requests are refused: the token, pages of others, names of others."""

from dataclasses import replace
from http import HTTPStatus

import pytest

from gateway.web.http_access import (
    BYTES,
    Asked,
    Policy,
    is_same_origin,
    media_type,
    split_host,
    tokens_of,
)

TOKEN = "0123456789abcdef"  # noqa: S105 - nobody's
OPEN = Policy(token=None)
LOCKED = Policy(token=TOKEN)

GET = Asked("GET", host="localhost:8080")
POST = Asked("POST", host="localhost:8080", content_type="application/json", has_body=True)
SOCKET = Asked("GET", host="localhost:8080", is_websocket=True)


def status_of(policy: Policy, asked: Asked) -> HTTPStatus | None:
    refused = policy.refusal(asked)
    return None if refused is None else refused.status


def test_programs_that_send_no_origin_may_ask_for_all_without_a_token() -> None:
    assert all(status_of(OPEN, asked) is None for asked in (GET, POST, SOCKET))


def test_only_what_changes_nothing_may_be_asked_for_without_the_token() -> None:
    assert status_of(LOCKED, GET) is None
    assert status_of(LOCKED, replace(GET, method="HEAD")) is None
    for asked in (POST, SOCKET, replace(GET, method="DELETE"), replace(GET, method="BREW")):
        assert status_of(LOCKED, asked) is HTTPStatus.UNAUTHORIZED


def test_the_token_is_taken_from_the_header_and_from_the_protocols_of_a_websocket() -> None:
    assert status_of(LOCKED, replace(POST, authorization=f"Bearer {TOKEN}")) is None
    assert status_of(LOCKED, replace(POST, authorization=f"bearer  {TOKEN} ")) is None
    protocols = ("esp-gateway", f"bearer.{TOKEN}")
    assert status_of(LOCKED, replace(SOCKET, protocols=protocols)) is None


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}0", TOKEN, "Bearer \xff\u20ac", "Bearer \udcff"],
)
def test_anything_else_is_no_token(authorization: str) -> None:
    asked = replace(POST, authorization=authorization)
    assert status_of(LOCKED, asked) is HTTPStatus.UNAUTHORIZED


def test_it_is_said_whether_a_token_was_missing_or_wrong() -> None:
    missing = LOCKED.refusal(POST)
    wrong = LOCKED.refusal(replace(POST, authorization="Bearer no"))
    assert missing is not None
    assert wrong is not None
    assert missing.reason == "a token is needed (Authorization: Bearer TOKEN)"
    assert wrong.reason == "the token is not this gateway's (Authorization: Bearer TOKEN)"


def test_a_page_of_ours_may_change_something() -> None:
    asked = replace(POST, origin="http://localhost:8080", fetch_site="same-origin")
    assert status_of(OPEN, asked) is None
    assert status_of(OPEN, replace(SOCKET, origin="http://localhost:8080")) is None


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost",
        "http://localhost:8081",
        "http://localhost.evil.example:8080",
        "null",
        "file://",
        "http://localhost:port",
        "chrome-extension://localhost:8080",
    ],
)
def test_a_page_of_others_may_not(origin: str) -> None:
    assert status_of(OPEN, replace(POST, origin=origin)) is HTTPStatus.FORBIDDEN
    assert status_of(OPEN, replace(SOCKET, origin=origin)) is HTTPStatus.FORBIDDEN
    # Not even with the token, which a page may have been told.
    asked = replace(POST, origin=origin, authorization=f"Bearer {TOKEN}")
    assert status_of(LOCKED, asked) is HTTPStatus.FORBIDDEN


@pytest.mark.parametrize("site", ["cross-site", "same-site", "whatever"])
def test_what_a_browser_says_of_where_it_comes_from_is_heeded(site: str) -> None:
    assert status_of(OPEN, replace(POST, fetch_site=site)) is HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_what_a_form_of_a_page_can_send_is_no_json(content_type: str) -> None:
    asked = replace(POST, content_type=content_type)
    assert status_of(OPEN, asked) is HTTPStatus.UNSUPPORTED_MEDIA_TYPE


def test_a_resource_may_take_other_content() -> None:
    asked = replace(POST, content_type="application/octet-stream; charset=x")
    assert OPEN.refusal(asked, (BYTES,)) is None
    refused = OPEN.refusal(asked)
    assert refused is not None
    assert refused.reason == "Content-Type must be application/json"


def test_nothing_may_be_of_no_type_but_not_of_a_form_s() -> None:
    assert status_of(OPEN, replace(POST, content_type="", has_body=False)) is None
    # What aiohttp's client says of nothing.
    assert status_of(OPEN, replace(POST, content_type=BYTES, has_body=False)) is None
    asked = replace(POST, content_type="text/plain", has_body=False)
    assert status_of(OPEN, asked) is HTTPStatus.UNSUPPORTED_MEDIA_TYPE


def test_a_host_name_of_another_party_is_refused_whatever_is_asked() -> None:
    for asked in (GET, POST, SOCKET, replace(GET, method="OPTIONS"), replace(GET, method="BREW")):
        for policy in (OPEN, LOCKED):
            stolen = replace(asked, host="evil.example:8080")
            assert status_of(policy, stolen) is HTTPStatus.MISDIRECTED_REQUEST
            # A request line in absolute form names a host too, which counts more than the header.
            stolen = replace(asked, target_host="evil.example")
            assert status_of(policy, stolen) is HTTPStatus.MISDIRECTED_REQUEST


def test_the_names_of_the_host_and_of_the_configuration_are_served() -> None:
    policy = Policy(None, frozenset({"lab.example"}), frozenset({"pi", "pi.local"}))
    for host in ("lab.example", "LAB.example.:443", "pi:8080", "pi.local", "10.0.0.5:8080", ""):
        assert status_of(policy, replace(GET, host=host)) is None
    refused = policy.refusal(replace(GET, host="other.example:1"))
    assert refused is not None
    assert refused.reason == (
        "other.example:1 is not a name of this gateway: use its IP address, or add the name to"
        " http.host_names in its configuration"
    )


def test_a_host_is_split_into_name_and_port() -> None:
    assert split_host("Lab:80") == ("lab", 80)
    assert split_host("[::1]:80") == ("::1", 80)
    assert split_host("lab") == ("lab", None)
    assert split_host("lab:x") == ("", None)


def test_the_default_port_need_not_be_said() -> None:
    assert is_same_origin("https://lab.example", "lab.example:443")
    assert is_same_origin("http://lab.example:80", "lab.example")
    assert not is_same_origin("http://lab.example", "lab.example:443")
    # A proxy speaks TLS, we do not.
    assert is_same_origin("https://lab.example", "lab.example")


def test_the_parts_of_headers() -> None:
    assert media_type(" Application/JSON ; charset=utf-8") == "application/json"
    assert list(tokens_of("Bearer a", ["bearer.b", "other"])) == ["a", "b"]
