"""The contexts of a running service: shared, and made anew on demand."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.net.tls_context import Tls, TlsContexts, TlsFileError
from tests.support.certificates import Authority


async def test_ports_that_say_the_same_share_a_context_until_nobody_has_it(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    contexts = TlsContexts(structlog.get_logger())
    now = await contexts.server(tls)
    assert await contexts.server(tls) is now
    assert await contexts.client(tls) is not now
    del now
    gc.collect()
    assert not contexts._in_use


async def test_a_renewal_puts_new_contexts_in_the_place_of_the_old(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    contexts = TlsContexts(structlog.get_logger())
    now = await contexts.server(authority.server())
    before = now.context
    await contexts.renew()
    assert now.context is not before


async def test_a_renewal_that_fails_is_told_and_changes_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    contexts = TlsContexts(structlog.get_logger())
    now = await contexts.server(authority.server())
    before = now.context
    authority.path.write_text("")
    with capture_logs() as logs:
        await contexts.renew()
    assert now.context is before
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        (
            "tls_not_renewed",
            f"tls: invalid client_ca '{authority.path}' (no certificate in PEM): expected a PEM"
            " file with certificates of authorities",
        )
    ]


async def test_a_file_that_can_t_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(TlsFileError):
        await TlsContexts(structlog.get_logger()).client(Tls(ca=str(tmp_path / "none")))
