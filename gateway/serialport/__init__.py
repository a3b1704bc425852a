"""One open tty: bytes, settings, lines, and the calls that may block in the kernel."""
