"""Requests that schemathesis makes of openapi.yaml, valid and invalid, in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.http_fuzz import http_fuzz_world

#: Of each operation and kind; the number of requests is about 500.
EXAMPLES = 8

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)

#: They last as long as the client asks for; tests/support/http_fuzz.py has them.
LASTING = ("/api/v1/events", "/api/v1/ports/{name}/wait")

LIMIT_S = 280.0


async def test_every_answer_is_as_described_and_none_an_internal_error(tmp_path: Path) -> None:
    async with http_fuzz_world(tmp_path, None) as world:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"http://127.0.0.1:{world.tcp_port}/openapi.json",
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--checks", ",".join(CHECKS)),
            *(word for path in LASTING for word in ("--exclude-path", path)),
            *("--no-color", "--generation-database", "none"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                said = (await process.stdout.read()).decode()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        world.resume()
        assert process.returncode == 0, said
        assert "Tested: 15" in said, said
