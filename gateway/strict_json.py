"""JSON from the network: text that is UTF-8, and values that can be written out again."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_json(text: bytes | str) -> Any:
    """Return the value; ValueError, in one line, for everything else.

    Stricter than `json.loads`: no NaN or Infinity, no UTF-16, no half of a surrogate pair (which no
    file name, log line or argument of a process can have). The caller bounds the length.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode()
        value = json.loads(decoded, parse_constant=_reject_constant)
        # Only an escape can be half of a pair. This raises UnicodeEncodeError for one.
        if "\\u" in decoded:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
