"""What services, and who runs them, agree on about the mesh's own image registry.

The registry is CNCF Distribution. A customer's image report:1 is its repository
{customer}/report with the tag 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXECUTOR_USER = "tickmesh/executor"
"""The user under which executors ask for tokens; no customer can be called so."""

ASSERTION_AUDIENCE = "tickmesh-registry-tokens"
ASSERTION_SECONDS = 60
"""How long an executor's statement of who it is may be used: it is made for one question."""

TOKEN_SERVICE = "tickmesh"
"""Whom tokens are for: the registry's `service`."""
TOKEN_ISSUER = "tickmesh"
"""Who makes them: the registry's `issuer`."""

TOKEN_PATH = "/token"
EVENTS_PATH = "/events"
"""Of the gateway's own HTTP port."""

PROGRAM = "docker-registry"
"""CNCF Distribution, as Debian calls it."""

EVENT_TIMEOUT_S = 5
EVENT_FAILURES = 3
EVENT_BACKOFF_S = 2
"""After so many failures in a row the registry waits so long before it tells of a push again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What a registry of a mesh must be told; see `document`."""

    listen: str
    """host:port."""
    storage: Path
    gateway: str = ""
    """The gateway's own HTTP port, as "http://127.0.0.1:7320". Empty: no tokens, no events."""
    token_certificate: str = ""
    """PEM file with the certificates whose keys sign tokens. Empty: it asks nobody who they are."""
    events_secret: str = ""
    """What it says to the gateway with each event."""

    def document(self) -> str:
        """Its configuration file. (JSON is YAML, and has no surprises.)"""
        told: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "delete": {"enabled": True},
                # What a push that broke left behind.
                "maintenance": {
                    "uploadpurging": {
                        "enabled": True,
                        "age": "24h",
                        "interval": "6h",
                        "dryrun": False,
                    }
                },
            },
            "http": {"addr": self.listen, "relativeurls": True},
        }
        if self.token_certificate:
            told["auth"] = {
                "token": {
                    "realm": f"{self.gateway}{TOKEN_PATH}",
                    "service": TOKEN_SERVICE,
                    "issuer": TOKEN_ISSUER,
                    "rootcertbundle": self.token_certificate,
                }
            }
        if self.gateway:
            endpoint = {
                "name": "tickmesh",
                "url": f"{self.gateway}{EVENTS_PATH}",
                "headers": {"Authorization": [f"Bearer {self.events_secret}"]},
                "timeout": f"{EVENT_TIMEOUT_S}s",
                "threshold": EVENT_FAILURES,
                "backoff": f"{EVENT_BACKOFF_S}s",
                "ignore": {"actions": ["pull", "mount", "delete"]},
            }
            told["notifications"] = {"endpoints": [endpoint]}
        return json.dumps(told, indent=2) + "\n"
