"""What the global options say, and the one client of a command line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..sync import Client


@dataclass(slots=True)
class Settings:
    """The global options."""

    address: str | None
    customer: str | None
    timeout: timedelta
    tls: bool | None
    ca_file: Path | None
    api_key_file: Path | None
    _client: Client | None = None

    @property
    def client(self) -> Client:
        """Made at the first use."""
        if self._client is None:
            from ..sync import Client

            self._client = Client(
                self.address,
                self.customer,
                tls=self.tls,
                ca_file=self.ca_file,
                api_key=None if self.api_key_file is None else self._api_key(),
                deadline_s=self.timeout.total_seconds(),
            )
        return self._client

    def _api_key(self) -> str:
        assert self.api_key_file is not None
        text = self.api_key_file.read_text(encoding="utf-8", errors="replace").strip()
        if not text:
            raise click.UsageError(f"--api-key-file {self.api_key_file} is empty")
        return text

    def close(self) -> None:
        """Close the client, if there is one."""
        if self._client is not None:
            self._client.close()


pass_settings = click.make_pass_decorator(Settings)
