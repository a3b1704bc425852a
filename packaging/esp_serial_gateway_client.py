"""Lets pyserial's programs open gateway:// URLs, under a name that no other program uses.

pyserial imports `serial.urlhandler.protocol_gateway` for such a URL. A .pth file installs `Finder`
behind Python's own finders when an interpreter starts, and every program of the environment pays
for that: this module imports nothing but sys until the one name is asked for.

The client's modules are in the folder of the service's package, gateway/client. They are not
imported as `gateway.client`, since a program may have a module or package of its own called
`gateway`: this module is a package whose `__path__` is that folder, so they are
`esp_serial_gateway_client.client`, and import each other relatively.
"""

import sys

TYPE_CHECKING = False  # typing takes longer to import than all else here
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NAME = "serial.urlhandler.protocol_gateway"

_HANDLER = "client/protocol_gateway.py"


class Finder:
    """A finder for `sys.meta_path` that knows one module."""

    @staticmethod
    def find_spec(
        name: str,
        path: object = None,  # noqa: ARG004 - Python's signature
        target: object = None,  # noqa: ARG004
    ) -> "ModuleSpec | None":
        """Return the handler under pyserial's name for it; None where the client is missing."""
        if name != NAME or _folder() is None:
            return None
        from importlib.util import spec_from_loader  # noqa: PLC0415

        # Importing Loader, to inherit from it, takes longer than all else here.
        return spec_from_loader(name, _Loader())  # type: ignore[arg-type]


class _Loader:
    """Makes pyserial's module out of the client's."""

    @staticmethod
    def create_module(spec: "ModuleSpec") -> "ModuleType | None":  # noqa: ARG004 - Python's
        """Let Python make an empty module."""
        return None

    @staticmethod
    def exec_module(module: "ModuleType") -> None:
        """Put in what pyserial uses: the class of a port."""
        from importlib import import_module  # noqa: PLC0415

        handler = import_module(f"{__name__}.client.protocol_gateway")
        vars(module)["Serial"] = handler.Serial


def install() -> None:
    """Answer to the handler's name after all other finders; a second call does nothing."""
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)


def __getattr__(name: str) -> list[str]:
    """Work out `__path__` when something below this module is imported."""
    if name == "__path__" and (folder := _folder()) is not None:
        return [folder]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _folder() -> "str | None":
    """The folder of the service's package: beside this file, else where Python looks.

    An editable installation has this file in site-packages and the package in the checkout.
    """
    import os  # noqa: PLC0415 - every interpreter has imported it by then

    for folder in (os.path.dirname(__file__), *sys.path):  # noqa: PTH120 - pathlib takes long
        package = os.path.join(folder, "gateway")  # noqa: PTH118
        if os.path.isfile(os.path.join(package, _HANDLER)):  # noqa: PTH113, PTH118
            return package
    return None
