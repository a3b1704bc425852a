"""The command line for esptool; that both versions take it is shown by running them."""

from dataclasses import replace

from gateway.flash.esptool_command import write_command
from gateway.flash.plan import FlashImage, FlashOptions, FlashPlan

HASH = "0" * 64
PLAN = FlashPlan(
    (FlashImage(0x1000, 1, HASH, "bootloader.bin"), FlashImage(0x10000, 1, HASH, "app.bin")),
    FlashOptions(chip="esp32", baudrate=921600, flash_size="4MB"),
)
FILES = ["0x1000.bin", "0x10000.bin"]


def test_every_word_for_esptool_5() -> None:
    assert write_command(["esptool"], 5, "/dev/ttyUSB0", PLAN, FILES) == [
        *("esptool", "--port", "/dev/ttyUSB0", "--chip", "esp32", "--baud", "921600"),
        *("--before", "default-reset", "--after", "hard-reset", "write-flash"),
        *("--flash-mode", "keep", "--flash-freq", "keep", "--flash-size", "4MB"),
        *("0x1000", "0x1000.bin", "0x10000", "0x10000.bin"),
    ]


def test_esptool_4_gets_its_own_words_and_paths_stay() -> None:
    own = ["python", "no-reset"]
    plan = replace(PLAN, options=replace(PLAN.options, before="no-reset", after="no-reset-stub"))
    assert write_command(own, 4, "hard-reset", plan, FILES) == [
        *("python", "no-reset", "--port", "hard-reset", "--chip", "esp32", "--baud", "921600"),
        *("--before", "no_reset", "--after", "no_reset_stub", "write_flash"),
        *("--flash_mode", "keep", "--flash_freq", "keep", "--flash_size", "4MB"),
        *("0x1000", "0x1000.bin", "0x10000", "0x10000.bin"),
    ]


def test_flags_are_given_where_they_are_wanted() -> None:
    options = FlashOptions(erase_all=True, compress=False, stub=False, force=True)
    command = write_command(["esptool"], 5, "tty", replace(PLAN, options=options), FILES)
    assert command.index("--no-stub") < command.index("write-flash") < command.index("--erase-all")
    assert {"--force", "--no-compress"} <= set(command)
    assert "--compress" not in command
    options = FlashOptions(compress=True)
    command = write_command(["esptool"], 5, "tty", replace(PLAN, options=options), FILES)
    assert "--compress" in command
    assert not {"--no-stub", "--erase-all", "--force", "--no-compress"} & set(command)
