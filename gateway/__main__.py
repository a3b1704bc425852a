"""The command `esp-gateway`, and `python -m gateway`: the steps before its imports.

Importing the gateway takes half a minute on a Raspberry Pi Zero. Nothing but a few modules of the
standard library is imported here before the service manager has been asked for that time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

#: How long the service manager waits for the event loop's first report. Longer than importing
#: takes on the slowest machine that the gateway runs on, with a slow memory card.
IMPORT_LIMIT_S = 180.0


def main() -> int:
    """Run the command; returns its exit code."""
    _open_standard_streams()
    if sys.argv[1:2] == ["run"]:
        _prepare_service()
    try:
        from gateway.cli import main as run_command  # noqa: PLC0415 - see the module

        return run_command()
    except KeyboardInterrupt:  # while something was imported
        return 128 + signal.SIGINT


def _open_standard_streams() -> None:
    """Open closed ones on /dev/null: the next tty or connection would get their output."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The lowest number that is free, which is this one.
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
                setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w"))  # noqa: PTH123, SIM115 - for the process


def _prepare_service() -> None:
    from gateway.sd_notify import Notifier  # noqa: PLC0415 - other commands do without

    # Its default ends the process, which a manager takes for a clean end. The file is read later
    # anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    notifier = Notifier()
    notifier.still_starting(IMPORT_LIMIT_S)
    notifier.status("starting")


if __name__ == "__main__":
    sys.exit(main())
