"""`tickmesh dev` as a person runs it: real processes, from the first start to the last end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

TICKMESH = (sys.executable, "-m", "tickmesh")
PATIENCE_S = 60


class Dev:
    """A running `tickmesh dev`."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [*TICKMESH, "dev", *arguments],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def started(self) -> dict[str, object]:
        """What dev.json says, once it has printed its banner."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "serves at" in line, (line, self.process.communicate())
        described: dict[str, object] = json.loads(
            (self.directory / ".tickmesh/dev.json").read_text()
        )
        return described

    def pids(self) -> dict[str, int]:
        described = json.loads((self.directory / ".tickmesh/dev.json").read_text())
        return {each["name"]: each["pid"] for each in described["processes"]}

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code and what it said on stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err


@contextlib.contextmanager
def running(directory: Path, *arguments: str) -> Iterator[Dev]:
    dev = Dev(directory, "--runtime", "inprocess", *arguments)
    try:
        yield dev
    finally:
        if dev.process.poll() is None:
            dev.end()


def tickmesh(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*TICKMESH, *arguments], cwd=directory, capture_output=True, text=True, timeout=PATIENCE_S
    )


def gone(pids: list[int]) -> None:
    """Wait until none of the processes is left."""
    deadline = time.monotonic() + PATIENCE_S
    for pid in pids:
        while Path(f"/proc/{pid}/stat").exists():
            assert time.monotonic() < deadline, f"process {pid} is left"
            time.sleep(0.01)


def test_from_the_first_start_to_the_last_end(tmp_path: Path) -> None:
    with running(tmp_path) as dev:
        address = str(dev.started()["address"])
        pids = dev.pids()
        assert set(pids) == {"gateway-0", "shard-0-0", "executor-0"}
        # Clients below the directory find it by themselves.
        assert address in tickmesh(tmp_path, "cluster").stdout
        made = tickmesh(
            tmp_path,
            *("job", "create", "hello", "--image", "hello:1", "--"),
            *("print", "hello", ";", "error", "oh", ";", "exit", "3"),
        )
        assert made.stdout == "job hello created\n", made.stderr
        run = tickmesh(tmp_path, "run", "hello", "--follow")
        assert (run.returncode, run.stdout, run.stderr) == (3, "hello\n", "oh\n")
        assert tickmesh(tmp_path, "run", "hello", "--wait").returncode == 3
        assert tickmesh(tmp_path, "run", "nobody").returncode == 3
        done = tickmesh(tmp_path, "schedule", "create", "hello/tick", "--every", "1s")
        assert done.returncode == 0, done.stderr
        watch = tickmesh(tmp_path, "execution", "watch", "--schedule", "hello/tick", "-n", "2")
        assert watch.returncode == 0 and watch.stdout.count("FAILED") == 2, watch
        second = Dev(tmp_path, "--runtime", "inprocess")
        code, err = second.ended()
        assert code == 1 and "in use" in err
        code, err = dev.end(signal.SIGINT)
        assert code == 0 and "error" not in err  # it may have said that its start was slow
    gone(list(pids.values()))
    assert not (tmp_path / ".tickmesh/dev.json").exists()
    # What was made is kept; another number of replicas is another shard.
    code, err = Dev(tmp_path, "--runtime", "inprocess", "--replicas", "3").ended()
    assert code == 2 and "a shard with 1 replica, not 3" in err
    with running(tmp_path) as dev:
        dev.started()
        assert "hello" in tickmesh(tmp_path, "job", "list").stdout
        assert tickmesh(tmp_path, "job", "delete", "hello", "--force").returncode == 0


def test_a_process_that_dies_unasked_ends_it_with_its_last_words(tmp_path: Path) -> None:
    with running(tmp_path) as dev:
        dev.started()
        pids = dev.pids()
        log = tmp_path / ".tickmesh/logs/shard-0-0.log"
        with log.open("a") as file:
            file.write("these are my last words\n")
        os.kill(pids["shard-0-0"], signal.SIGKILL)
        code, err = dev.ended()
        assert code == 1
        assert "shard-0-0 was ended by SIGKILL" in err and "these are my last words" in err
    gone(list(pids.values()))


def test_nothing_outlives_it_even_when_it_is_killed(tmp_path: Path) -> None:
    with running(tmp_path) as dev:
        dev.started()
        pids = dev.pids()
        dev.end(signal.SIGKILL)
    gone(list(pids.values()))
    with running(tmp_path) as dev:  # and dev.json, which it left, hinders nobody
        dev.started()


def test_a_first_start_that_was_killed_can_be_tried_again(tmp_path: Path) -> None:
    with running(tmp_path, "--replicas", "3") as dev:
        deadline = time.monotonic() + PATIENCE_S
        while not (tmp_path / ".tickmesh/shard-0-0/raft").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert not (tmp_path / ".tickmesh/shape.json").exists()
        dev.end(signal.SIGKILL)
    with running(tmp_path, "--replicas", "3") as dev:
        dev.started()
        assert tickmesh(tmp_path, "cluster").stdout.count("follower") == 2


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, err = Dev(tmp_path, "--runtime", "inprocess", "--port", str(port)).ended()
    assert code == 1 and f"--port {port}" in err


def test_a_host_that_cannot_run_containers_is_told_what_is_missing(tmp_path: Path) -> None:
    # In a mount namespace of its own, where containerd's program is no program.
    hide = 'mount --bind /dev/null "$(command -v containerd)" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", hide, "sh", *TICKMESH, "dev"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2, done
    assert "executor-0 ended with exit code 2" in done.stderr and "containerd" in done.stderr
    assert "Traceback" not in done.stderr
