"""Whatever the file contains, parse_config returns or raises ConfigError."""

import re
from pathlib import Path

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config.document import GatewayConfig
from gateway.config.reader import parse_config
from gateway.config.schema import PORT_KEYS
from gateway.errors import ConfigError
from tests.config.documents import schema_errors

EXAMPLE = (Path(__file__).parents[2] / "config" / "gateway.yaml").read_text()


def outcome(text: str) -> GatewayConfig | ConfigError:
    """The configuration, valid for the schema too; or the error, which a terminal can show."""
    try:
        config = parse_config(text, "f.yaml")
    except ConfigError as error:
        refused = error
    else:
        assert schema_errors(text) == []
        return config
    lines = str(refused).splitlines()
    assert lines == [str(problem) for problem in refused.problems]
    assert lines
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    return refused


@given(st.text())
@example("ports: !<")
@example("? ")
@example("%YAML 1")
@example("\ufeff")
@example("a: \x85b: 1")
def test_no_text_raises_anything_but_config_error(text: str) -> None:
    # No text of hypothesis' is a valid file: that takes several keys.
    assert isinstance(outcome(text), ConfigError)


PIECES = sorted(
    set(re.findall(r"\w+|\s+|[^\w\s]+", EXAMPLE))
    | set("{}[],:#&*!|>'\"%@`\t\n\\?-<~=")
    | {"no", "null", "<<", "---", "sim://", "sim://esp32?", "sim://[", '"\\U', "0x", "1e999", "\0"}
)


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(EXAMPLE)),
            st.integers(0, 40),
            st.sampled_from(PIECES) | st.text(max_size=5),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_damage_to_a_valid_file_raises_anything_but_config_error(
    edits: list[tuple[int, int, str]],
) -> None:
    text = EXAMPLE
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    result = outcome(text)
    assert isinstance(result, ConfigError) or result.ports


KEYS = st.sampled_from([key.name for key in PORT_KEYS] + ["ports", "defaults", "<<"]) | st.text()
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.text()
    | st.sampled_from(["/dev/a", "sim://esp32", "none", "2", "::"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)
SECTIONS = st.dictionaries(KEYS, VALUES) | VALUES


@given(
    st.fixed_dictionaries({"ports": st.lists(SECTIONS, max_size=4) | VALUES, "defaults": SECTIONS}),
    st.booleans(),
)
def test_no_values_raise_anything_but_config_error(file: object, flow: bool) -> None:
    result = outcome(yaml.safe_dump(file, default_flow_style=flow))
    assert isinstance(result, ConfigError) or result.ports
