"""The command line with which esptool carries out a plan; which esptool is `esptool_process`'s."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.flash.plan import FlashOptions, FlashPlan

#: The first version that writes its words with dashes, and warns of underscores.
_DASHES_FROM = 5


def write_command(
    esptool: Sequence[str], major: int, tty: str, plan: FlashPlan, files: Sequence[str]
) -> list[str]:
    """Writes the images, which are in `files` in the order of the plan, to the board at `tty`.

    `major` is the first number of esptool's version.
    """
    command = [
        *esptool,
        *("--port", tty),
        *_global_options(plan.options),
        "write-flash",
        *_write_options(plan.options),
    ]
    for image, file in zip(plan.images, files, strict=True):
        command += [f"{image.offset:#x}", file]
    return command if major >= _DASHES_FROM else _in_words_of_4(command, len(esptool), tty)


def _global_options(options: FlashOptions) -> list[str]:
    words = ["--chip", options.chip, "--baud", str(options.baudrate)]
    words += ["--before", options.before, "--after", options.after]
    return words if options.stub else [*words, "--no-stub"]


def _write_options(options: FlashOptions) -> list[str]:
    words = ["--flash-mode", options.flash_mode, "--flash-freq", options.flash_freq]
    words += ["--flash-size", options.flash_size]
    flags = {
        "--erase-all": options.erase_all,
        "--force": options.force,
        "--compress": options.compress is True,
        "--no-compress": options.compress is False,
    }
    return words + [flag for flag, wanted in flags.items() if wanted]


#: What esptool 4 writes otherwise; its options of more than one word mix both ways.
_WORDS_OF_4 = {
    "write-flash": "write_flash",
    "--flash-mode": "--flash_mode",
    "--flash-freq": "--flash_freq",
    "--flash-size": "--flash_size",
    "default-reset": "default_reset",
    "usb-reset": "usb_reset",
    "no-reset": "no_reset",
    "no-reset-no-sync": "no_reset_no_sync",
    "no-reset-stub": "no_reset_stub",
    "hard-reset": "hard_reset",
    "soft-reset": "soft_reset",
    "watchdog-reset": "watchdog_reset",
}


def _in_words_of_4(command: list[str], own: int, tty: str) -> list[str]:
    """The same for esptool 4; its own path and the tty's may be anything."""
    rest = [word if word == tty else _WORDS_OF_4.get(word, word) for word in command[own:]]
    return [*command[:own], *rest]
