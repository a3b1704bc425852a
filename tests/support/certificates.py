"""A small CA, made when a test asks for it, and what it has issued as files."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import trustme

from gateway.net.tls_context import Tls


class Authority:
    """An authority whose files are in a folder, under its name."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def issue(
        self,
        file_name: str,
        *names: str,
        common_name: str | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> tuple[Path, Path]:
        """A certificate for these names or addresses, and its key; written over old ones."""
        issued = self._ca.issue_cert(
            *names, common_name=common_name, not_before=not_before, not_after=not_after
        )
        cert, key = (self._folder / f"{file_name}.{suffix}" for suffix in ("pem", "key"))
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        # Never half a file: the gateway may be reading.
        for path, content in ((cert, chain), (key, issued.private_key_pem.bytes())):
            path.with_suffix(".new").touch(mode=0o600)
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").rename(path)
        return cert, key

    def server(self) -> Tls:
        """For a gateway on loopback that wants certificates of this authority."""
        cert, key = self.issue("gateway", "localhost", "127.0.0.1", common_name="gateway")
        return Tls(str(cert), str(key), client_ca=str(self.path))

    def server_for_all(self) -> Tls:
        """The same for clients without a certificate."""
        return replace(self.server(), client_ca=None)

    def client(self, name: str | None = "alice") -> ssl.SSLContext:
        """For a client that trusts this authority; None shows no certificate."""
        context = ssl.create_default_context(cafile=str(self.path))
        if name is not None:
            cert, key = self.issue(name, f"{name}@lab.example", common_name=name)
            context.load_cert_chain(cert, key)
        return context
