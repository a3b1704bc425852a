"""What an operator chooses for a port."""

from __future__ import annotations

from gateway.config.document import Recording


def test_a_log_file_may_bear_the_name_of_its_port() -> None:
    assert Recording(log_file="/log/{name}/{name}").of_port("desk").log_file == "/log/desk/desk"
    assert Recording().of_port("desk") == Recording()
