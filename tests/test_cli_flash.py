"""`esp-gateway flash` on what is typed wrong; what it does otherwise is in tests/end_to_end."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.flash.plan import Outcome
from tests.support.images import ESP32C3, image_of
from tests.support.processes import free_tcp_port


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "app.bin"
    path.write_bytes(image_of(ESP32C3))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["lab", "{image}"], "invalid board address 'lab': expected HOST:PORT"),
        (["lab:4001", "nothing.bin"], "nothing.bin: No such file"),
        (["lab:4001", "0x1000", "{image}", "0x1001", "{image}"], "overlaps"),
        (["lab:4001", "{image}", "--chip", "ESP 32"], "invalid chip 'ESP 32': expected"),
        (["lab:4001", "{image}", "--http", "ftp://lab"], "invalid HTTP address 'ftp://lab'"),
        (["lab:4001", "{image}", "--token-file", "/nothing"], "/nothing: No such file"),
        (
            ["lab:4001", "{image}", "--token-file", "{image}.empty"],
            "no token in it: expected one line",
        ),
        (["lab:4001", "{image}", "--http", "https://lab", "--ca", "/nothing"], "/nothing"),
    ],
)
def test_what_is_typed_wrong_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], image: str, arguments: list[str], reason: str
) -> None:
    Path(f"{image}.empty").touch()
    code = main(["flash", *(argument.replace("{image}", image) for argument in arguments)])
    assert code == Outcome.WRONG_INPUT.exit_code == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1


def test_what_can_t_be_meant_is_refused_before_a_gateway_is_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("This is no image.")
    assert main(["flash", "lab:4001", str(text)]) == Outcome.REFUSED.exit_code == 8
    said = capsys.readouterr().err
    assert said.startswith("esp-gateway: text.txt at 0x0 is not an image: ")
    assert said.endswith("Use --force to flash anyway.\n")


def test_a_gateway_that_does_not_answer_is_named(
    capsys: pytest.CaptureFixture[str], image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tcp_port = free_tcp_port()
    monkeypatch.setenv("ESP_GATEWAY_HTTP", f"127.0.0.1:{tcp_port}")
    assert main(["flash", "lab:4001", image]) == Outcome.UNREACHABLE.exit_code
    assert f"http://127.0.0.1:{tcp_port}: Connection refused" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["flash", "--help"])
    assert "esp-gateway flash lab:4001 build/" in capsys.readouterr().out
