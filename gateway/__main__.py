"""Start the command `esp-gateway` (also `python -m gateway`) before it is imported.

Importing the gateway takes half a minute on a Raspberry Pi Zero. Before the service manager has
been asked for that time, only a few modules of the standard library are imported.
"""

from __future__ import annotations

import os
import signal
import sys

#: How long the service manager waits for the event loop's first report. Longer than importing
#: takes on the slowest machine that the gateway runs on, with a slow memory card.
IMPORT_LIMIT_S = 180.0


def main() -> int:
    """Run the command; return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C ends a command silently wherever it is; commands that have to clean up handle it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    is_service = sys.argv[1:2] == ["run"]
    if is_service:
        # The default ends the process, which a manager takes for a clean end. The file is read
        # later anyway.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _open_standard_streams()
    if is_service:
        _report_to_manager()
    from gateway.cli.main import main as run_command  # noqa: PLC0415 - see the module

    return run_command()


def _open_standard_streams() -> None:
    """Open closed ones on /dev/null: the next tty or connection would get their output."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                # Both opens get the lowest free number, which is this one.
                os.open(os.devnull, os.O_RDWR)
                setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w"))  # noqa: PTH123, SIM115 - for the process
            except OSError:
                pass


def _report_to_manager() -> None:
    from gateway.systemd import Notifier  # noqa: PLC0415 - other commands do without

    notifier = Notifier()
    notifier.still_starting(IMPORT_LIMIT_S)
    notifier.status("starting")


if __name__ == "__main__":
    sys.exit(main())
