"""Write the tables of keys in docs/config.md and config/gateway.schema.json.

Run by `make config-docs`; a test fails when they are not up to date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from gateway.config import schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "config.md"
SCHEMA = ROOT / "config" / "gateway.schema.json"

#: The tables of docs/config.md by the names in their markers, `<!-- keys of NAME -->`.
TABLES = {
    "the file": schema.FILE_KEYS,
    "a port": schema.PORT_KEYS,
    "http": schema.HTTP_KEYS,
    "tls": schema.TLS_KEYS,
    "connections": schema.CONNECTION_KEYS,
    "mdns": schema.MDNS_KEYS,
    "a match": schema.MATCH_KEYS,
}


def table(keys: tuple[schema.Key, ...]) -> str:
    """The keys as a table in Markdown; without the column of defaults where no key has one."""
    has_defaults = any(key.default is not schema.NoDefault.UNSET for key in keys)
    rows = [["Key", "Value", "Default", "Meaning"], ["---"] * 4]
    rows += [
        [f"`{key.name}`", key.type.expected, schema.default_text(key), key.description]
        for key in keys
    ]
    columns = [0, 1, 2, 3] if has_defaults else [0, 1, 3]
    return "".join(f"| {' | '.join(row[column] for column in columns)} |\n" for row in rows)


def docs(text: str) -> str:
    """The text of docs/config.md with its tables as they should be."""
    for name, keys in TABLES.items():
        marker = f"<!-- keys of {name} -->\n"
        before, found, after = text.partition(marker)
        if not found:
            raise ValueError(f"{DOCS.name}: expected '{marker.strip()}'")
        after = re.sub(r"\A\n(\|.*\n)*", "", after)
        text = f"{before}{marker}\n{table(keys)}{after}"
    return text


def schema_text() -> str:
    """The content of config/gateway.schema.json."""
    return json.dumps(schema.json_schema(), indent=2) + "\n"


def main() -> None:
    """Write both files."""
    DOCS.write_text(docs(DOCS.read_text()))
    SCHEMA.write_text(schema_text())


if __name__ == "__main__":
    main()
