"""How tests let other people's programs find gateway://, whatever is installed here."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

_SITECUSTOMIZE = """\
import site
site.addsitedir({folder!r})
"""


def client_env(folder: Path) -> dict[str, str]:
    """What to add to a process's environment so that its interpreter reads our .pth file.

    An installed package has it beside itself; a checkout that is tested may be another one than
    what is installed here.
    """
    start = folder / "start"
    start.mkdir(exist_ok=True)
    (start / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(folder=str(ROOT / "packaging")))
    others = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(start), str(ROOT), *([others] if others else [])])
    return {"PYTHONPATH": path}
