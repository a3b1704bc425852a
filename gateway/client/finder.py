"""Lets pyserial find the handler of gateway:// in programs that know nothing of this package.

pyserial imports `serial.urlhandler.protocol_gateway` for such a URL. A .pth file beside this
package puts `Finder` behind Python's own finders when an interpreter starts; it answers to that
one name. Imports nothing until asked: every Python program of the environment pays for it.
docs/remote-flashing.md says what else was tried.
"""

import sys

NAME = "serial.urlhandler.protocol_gateway"


class Finder:
    """A finder for `sys.meta_path` that knows one module."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]  # noqa: ARG004
        """The handler, under the name by which pyserial asks for it."""
        if name != NAME:
            return None
        from importlib.util import find_spec, spec_from_file_location  # noqa: PLC0415

        found = find_spec("gateway.client.protocol_gateway")
        if found is None or found.origin is None:
            return None
        return spec_from_file_location(name, found.origin)


def install() -> None:
    """Be asked for what nobody else has found."""
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)
