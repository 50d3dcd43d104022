"""The command line and the examples with real containers: from an archive to an exit code."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tickmesh.executor.archive import File, python_image

from .test_dev import Dev, gone, tickmesh

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a running mesh with containerd, and with the image of the examples."""
    directory = tmp_path_factory.mktemp("mesh")
    archive = directory / "hello.tar"
    program = File(b'print("hello world")\n')
    python_image(archive, {"/hello.py": program}, command=("python3", "/hello.py"))
    dev = Dev(directory)
    try:
        dev.started()
        pids = dev.pids()
        done = tickmesh(directory, "image", "import", "hello:1", str(archive))
        assert done.returncode == 0 and "sha256:" in done.stdout, done
        yield directory
    finally:
        if dev.process.poll() is None:
            code, err = dev.end()
            assert code == 0 and "error" not in err
    gone(list(pids.values()))


def create(directory: Path, name: str, program: str, *options: str) -> None:
    done = tickmesh(
        directory,
        *("job", "create", name, "--image", "hello:1", *options, "--", "python3", "-c", program),
    )
    assert done.returncode == 0, done.stderr


def test_a_container_says_hello(directory: Path) -> None:
    assert tickmesh(directory, "job", "create", "hello", "--image", "hello:1").returncode == 0
    done = tickmesh(directory, "run", "hello", "--follow")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello world\n", "")
    listed = tickmesh(directory, "image", "list", "-o", "json")
    assert [image["name"] for image in json.loads(listed.stdout)] == [
        "customers/default/images/hello:1"
    ]


def test_its_exit_code_output_payload_and_environment_are_ours(directory: Path) -> None:
    program = (
        "import os, sys; payload = open(os.environ['TICKMESH_PAYLOAD_FILE']).read(); "
        "print(os.environ['MODE'], payload); print('oh', file=sys.stderr); sys.exit(42)"
    )
    create(directory, "exits", program, "-e", "MODE=daily")
    done = tickmesh(directory, "run", "exits", "--follow", "--payload", "for it")
    assert (done.returncode, done.stdout, done.stderr) == (42, "daily for it\n", "oh\n")
    name = tickmesh(directory, "execution", "list", "exits", "-n", "1", "-o", "name").stdout.strip()
    logs = tickmesh(directory, "logs", name)
    assert (logs.stdout, logs.stderr) == ("daily for it\n", "oh\n")
    logs = tickmesh(directory, "logs", name, "--timestamps")
    line = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ (.*)\n")
    assert [line.fullmatch(text)[1] for text in (logs.stdout, logs.stderr)] == [
        "daily for it",
        "oh",
    ]
    shown = json.loads(tickmesh(directory, "execution", "get", name, "-o", "json").stdout)
    (attempt,) = shown["attempts"]
    assert (attempt["output_bytes"], attempt["dropped_output_bytes"]) == (16, 0)
    assert 0 < float(attempt["clock_uncertainty"][:-1]) < 1
    assert attempt["peak_memory_bytes"] > 2**20 and float(attempt["cpu_time"][:-1]) > 0
    table = tickmesh(directory, "execution", "get", name).stdout
    assert "PEAK MEMORY" in table and "CPU" in table and "OUTPUT" in table


def test_why_it_ended_is_told(directory: Path) -> None:
    create(directory, "hungry", "x = bytearray(2**30)", "--memory", "32Mi")
    create(directory, "slow", "import time; time.sleep(60)", "--timeout", "200ms")
    create(directory, "leaves", "exit(137)")
    create(directory, "killed", "import os; os.kill(os.getpid(), 9)")
    for job, reason, code, signal in (
        ("hungry", "OUT_OF_MEMORY", 137, 9),
        ("slow", "TIMEOUT", 143, 15),
        ("leaves", "EXIT_CODE", 137, 0),
        ("killed", "SIGNAL", 137, 9),
    ):
        done = tickmesh(directory, "run", job, "--wait", "-o", "json")
        execution = json.loads(done.stdout)
        assert (execution["state"], execution["reason"]) == ("FAILED", reason)
        assert done.returncode == execution["exit_code"] == code
        assert execution["attempts"][-1]["signal"] == signal
    done = tickmesh(directory, "job", "create", "nothing", "--image", "nothing:1")
    assert done.returncode == 0
    done = tickmesh(directory, "run", "nothing", "--wait")
    assert done.returncode == 125 and "IMAGE_NOT_FOUND" in done.stderr


def test_what_runs_is_cancelled(directory: Path) -> None:
    create(directory, "long", "import time; print('begun', flush=True); time.sleep(60)")
    name = tickmesh(directory, "run", "long").stdout.strip()
    with subprocess.Popen(
        [sys.executable, "-m", "tickmesh", "logs", "-f", name],
        cwd=directory,
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "begun\n"
        done = tickmesh(directory, "execution", "cancel", name)
        assert done.returncode == 0, done.stderr
        assert following.wait(30) == 0
    watched = tickmesh(directory, "execution", "watch", name, "-o", "json")
    assert json.loads(watched.stdout.splitlines()[-1])["state"] == "CANCELLED"


def test_a_damaged_archive_is_refused_with_its_part(directory: Path) -> None:
    bad = directory / "bad.tar"
    whole = (directory / "hello.tar").read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    done = tickmesh(directory, "image", "import", "bad:1", str(bad))
    assert done.returncode == 2 and done.stderr.startswith("error: "), done
    assert "bad:1" not in tickmesh(directory, "image", "list").stdout


@pytest.mark.parametrize(
    ("example", "said"),
    [("schedule.py", "hello world"), ("fan_out.py", "9 squared is 81")],
)
def test_the_examples_run(directory: Path, example: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example)],
        cwd=directory,
        env={key: value for key, value in os.environ.items() if not key.startswith("TICKMESH_")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and len(done.stdout.splitlines()) == 10


def test_the_example_document_describes_a_job(directory: Path) -> None:
    tickmesh(directory, "job", "delete", "hello", "--force")
    done = tickmesh(directory, "job", "create", "-f", str(EXAMPLES / "job.yaml"))
    assert done.returncode == 0, done.stderr
    assert tickmesh(directory, "run", "hello", "--follow").stdout == "hello world\n"
