"""What is only shown on a terminal: colours, spinners, progress, the live table."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.unit.sdk.fake_gateway import FakeGateway
from tickmesh.sdk import Client

DEADLINE_S = 30


class Terminal:
    """A command with a terminal as its stdin, stdout and stderr."""

    def __init__(self, address: str, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        environment = {
            **os.environ,
            "TICKMESH_ADDRESS": address,
            "TERM": "xterm-256color",
            "COLUMNS": "120",
            "LINES": "30",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tickmesh", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._ours = ours
        self.shown = ""

    def until(self, text: str) -> None:
        """Read until the terminal has shown a text, or ("") the end."""
        deadline = time.monotonic() + DEADLINE_S
        while not text or text not in self.shown:
            ready, _, _ = select.select([self._ours], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} was not shown in {DEADLINE_S} s:\n{self.shown}"
            try:
                data = os.read(self._ours, 65_536)
            except OSError:  # the other side is closed
                data = b""
            if not data:
                assert not text, f"{text!r} was not shown:\n{self.shown}"
                return
            self.shown += data.decode()

    def read_for(self, seconds: float) -> None:
        """What is shown within so long, if anything."""
        ready, _, _ = select.select([self._ours], [], [], seconds)
        if ready:
            self.shown += os.read(self._ours, 65_536).decode()

    def end(self) -> int:
        self.until("")
        os.close(self._ours)
        return self.process.wait(DEADLINE_S)


def test_a_live_table_shows_executions_as_they_change() -> None:
    gateway = FakeGateway()
    gateway.run = gateway.started
    with gateway.serving() as address, Client(address) as client:
        client.jobs.create("hello", image="hello:1")
        terminal = Terminal(address, "execution", "watch", "hello", "--limit", "1")
        terminal.until("EXECUTION")
        # The watch begins at some moment after the table is shown: executions until one is seen.
        while "RUNNING" not in terminal.shown:
            client.execute("hello")
            terminal.read_for(0.2)
        for execution in list(gateway.executions.values()):
            gateway.ended(execution, 0)
        terminal.until("SUCCEEDED")
        assert terminal.end() == 0
    assert "\x1b[36mRUNNING" in terminal.shown  # cyan
    assert "250ms" in terminal.shown


def test_waiting_shows_a_spinner_and_then_only_the_result() -> None:
    gateway = FakeGateway()
    gateway.run = gateway.started
    with gateway.serving() as address, Client(address) as client:
        client.jobs.create("hello", image="hello:1")
        terminal = Terminal(address, "run", "hello", "--wait")
        terminal.until("hello/0001: running")
        gateway.ended(gateway.executions["customers/default/jobs/hello/executions/0001"], 3)
        assert terminal.end() == 3
    assert "FAILED" in terminal.shown


def test_an_import_shows_its_progress(tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"x" * 5_000_000)
    with FakeGateway().serving() as address:
        terminal = Terminal(address, "image", "import", "big:1", str(archive))
        assert terminal.end() == 0
    assert "importing big:1" in terminal.shown
    assert "image big:1 imported" in terminal.shown
