"""An S3-compatible store as a process of its own: moto's server, on a loopback port."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from pathlib import Path

from tickmesh.mesh import local
from tickmesh.mesh.config import Archive

START_S = 60.0
LOOK_S = 0.05
BUCKET = "bucket"
SECRET = "not-for-any-log"


class S3Server:
    """It keeps its objects in memory: what is ended has lost them."""

    def __init__(self, directory: Path) -> None:
        """directory: for its log."""
        self._log = directory / "s3.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = local.free_ports(1)[0]

    @property
    def address(self) -> str:
        """As configurations want it."""
        return f"http://127.0.0.1:{self.port}"

    def archive(self, **more: int) -> Archive:
        """How a mesh is told of it."""
        return Archive(
            url=f"s3://{BUCKET}/some/prefix",
            endpoint=self.address,
            region="eu-central-1",
            access_key_id="tests",
            secret_access_key=SECRET,
            **more,
        )

    async def start(self) -> None:
        """Start it, with an empty bucket."""
        self._process = process = self._spawn()
        async with asyncio.timeout(START_S):
            while not await asyncio.to_thread(self._make_bucket):
                assert process.poll() is None, self._log.read_text()
                await asyncio.sleep(LOOK_S)

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _make_bucket(self) -> bool:
        location = "<LocationConstraint>eu-central-1</LocationConstraint>"
        request = urllib.request.Request(
            f"{self.address}/{BUCKET}",
            data=f"<CreateBucketConfiguration>{location}</CreateBucketConfiguration>".encode(),
            method="PUT",
        )
        try:
            with urllib.request.urlopen(request, timeout=START_S):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
