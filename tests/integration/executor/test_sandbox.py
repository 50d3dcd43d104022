"""What a sandbox is allowed, seen from inside, and how its ends are told."""

import contextlib
import itertools
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tickmesh.executor import accounting, limits, logs
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.sandbox import Exit, Work

from .conftest import PYTHON_IMAGE, nothing_left, read_output

# One runtime for all of them: each only looks around in a sandbox of its own.
pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

Run = Callable[..., Awaitable[tuple[Exit, str, str]]]
MIB = limits.MIB
_numbers = itertools.count()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory, python_archive: Path
) -> AsyncIterator[ContainerdRuntime]:
    directory = tmp_path_factory.mktemp("shared")
    runtime = ContainerdRuntime("shared", directory / "executor")
    await runtime.start()
    await runtime.import_image(PYTHON_IMAGE, python_archive)
    yield runtime
    await runtime.close()
    nothing_left(directory, "shared")


@pytest.fixture
def run(shared: ContainerdRuntime) -> Run:
    """Runs a Python program to its end in a sandbox: its exit, stdout and stderr."""

    async def run_program(program: str, **work: object) -> tuple[Exit, str, str]:
        attempt = f"run-{next(_numbers)}"
        arguments = {"command": ("python3", "-c", program), **work}
        sandbox = await shared.prepare(Work(attempt, "tests", PYTHON_IMAGE, **arguments))  # type: ignore[arg-type]
        try:
            await sandbox.start()
            ended = await sandbox.wait()
            out, err = await read_output(shared, attempt)
            return ended, out.decode(), err.decode()
        finally:
            await sandbox.delete()

    return run_program


# What each of these system calls answers, by number for both architectures.
_CALLS = """
import ctypes, json, os, platform
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
numbers = {
    "unshare": (97 if arm else 272, 0x10000000), "mount": (40 if arm else 165, 0),
    "ptrace": (117 if arm else 101, 16), "setns": (268 if arm else 308, 0),
    "bpf": (280 if arm else 321, 0), "keyctl": (219 if arm else 250, 0),
    "kexec_load": (104 if arm else 246, 0), "clone3": (435, 0), "io_uring_setup": (425, 1),
    "userfaultfd": (282 if arm else 323, 0), "perf_event_open": (241 if arm else 298, 0),
    "reboot": (142 if arm else 169, 0), "getpid": (172 if arm else 39, 0),
}
answers = {}
for name, (number, argument) in numbers.items():
    result = libc.syscall(number, argument, 0, 0, 0, 0)
    answers[name] = os.strerror(ctypes.get_errno()) if result < 0 else "done"
print(json.dumps(answers))
"""


async def test_dangerous_calls_are_refused(run: Run) -> None:
    _, out, _ = await run(_CALLS)
    answers = json.loads(out)
    assert answers.pop("getpid") == "done"
    assert set(answers.values()) == {"Function not implemented"}


async def test_it_has_no_capability_and_gains_none(run: Run) -> None:
    _, out, _ = await run("print(open('/proc/self/status').read())")
    status = dict(line.split(":\t", 1) for line in out.strip().splitlines())
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].strip() == ""


async def test_even_root_has_no_capability(run: Run) -> None:
    _, out, _ = await run(
        "import os; print(os.getuid()); print(open('/proc/self/status').read())", user="0"
    )
    assert out.startswith("0\n")
    assert "CapEff:\t0000000000000000" in out


async def test_its_network_has_only_a_loopback_that_is_its_own(run: Run) -> None:
    _, out, _ = await run(
        "import socket, os\n"
        "print([name for _, name in socket.if_nameindex()])\n"
        "try: socket.create_connection(('1.1.1.1', 443), 2)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    assert out == "['lo']\nNetwork is unreachable\n"


async def test_it_sees_only_its_own_processes_and_name(run: Run) -> None:
    _, out, _ = await run(
        "import os, socket\n"
        "print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()))\n"
        "print(socket.gethostname() == os.environ['HOSTNAME'])\n"
    )
    assert out == "[1, 2]\nTrue\n"


async def test_the_root_is_read_only_and_tmp_is_not(run: Run) -> None:
    _, out, _ = await run(
        "import os\n"
        "for path in ('/x', '/etc/x', '/.tickmesh/io/x', '/sys/x', '/proc/sys/kernel/hostname', "
        "'/usr/local/bin/python3', '/tmp/x', '/dev/shm/x'):\n"
        "    try: open(path, 'w').close(); print(path)\n"
        "    except OSError as error: print(path, error.strerror)\n",
        user="0",
    )
    lines = out.splitlines()
    assert lines[-2:] == ["/tmp/x", "/dev/shm/x"]
    assert all(line.endswith(("Read-only file system", "Permission denied")) for line in lines[:-2])


async def test_tmp_has_its_size(run: Run) -> None:
    _, out, _ = await run(
        "import os\n"
        "with open('/tmp/x', 'wb') as file:\n"
        "    try:\n"
        "        while True: file.write(bytes(1 << 20)); file.flush()\n"
        "    except OSError as error: print(error.strerror)\n"
        "print(os.stat('/tmp/x').st_size >> 20)\n",
        scratch_bytes=8 * MIB,
    )
    assert out == "No space left on device\n8\n"


async def test_tmp_has_a_limit_of_files_too(run: Run) -> None:
    ended, out, err = await run(
        "import os\n"
        "try:\n"
        "    for n in range(100_000): os.mknod(f'/tmp/{n}')\n"
        "except OSError as error: print(error.strerror)\n",
        memory_bytes=512 * MIB,
    )
    assert (ended.exit_code, out, err) == (0, "No space left on device\n", "")


async def test_too_much_memory_is_told_as_such(run: Run) -> None:
    ended, out, _ = await run(
        "print('begun', flush=True); x = bytearray(256 << 20); print(len(x))",
        memory_bytes=32 * MIB,
    )
    assert out == "begun\n"
    assert (ended.exit_code, ended.signal, ended.oom) == (137, signal.SIGKILL, True)
    assert 16 * MIB < ended.peak_memory_bytes <= 33 * MIB


async def test_memory_in_tmp_counts(run: Run) -> None:
    ended, _, _ = await run(
        "f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(1 << 20)); f.flush()",
        memory_bytes=32 * MIB,
        scratch_bytes=256 * MIB,
    )
    assert ended.oom


async def test_a_fork_bomb_meets_its_limit(run: Run) -> None:
    ended, out, _ = await run(
        "import os, signal\n"
        "made = 0\n"
        "try:\n"
        "    while True:\n"
        "        if os.fork() == 0: signal.pause()\n"
        "        made += 1\n"
        "except BlockingIOError as error: print(made, error.strerror)\n",
        pids=16,
    )
    assert out == "15 Resource temporarily unavailable\n"
    assert ended.exit_code == 0


async def test_orphans_are_reaped(run: Run) -> None:
    _, out, _ = await run(
        "import os\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0: os.write(w, str(os.getpid()).encode()); os._exit(0)\n"
        "    os._exit(0)\n"
        "os.wait(); orphan = int(os.read(r, 16))\n"
        "os.close(w); os.read(r, 1)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0)\n"
        "os.wait()\n"
        "fd = None\n"
        "import select\n"
        "try: fd = os.pidfd_open(orphan)\n"
        "except OSError: pass\n"
        "if fd is not None:\n"
        "    while os.path.exists(f'/proc/{orphan}'): os.sched_yield()\n"
        "print('gone')\n"
    )
    assert out == "gone\n"


@pytest.mark.parametrize("code", [0, 1, 42, 129, 137, 192, 255])
async def test_the_exit_code_is_the_programs(run: Run, code: int) -> None:
    ended, _, _ = await run(f"exit({code})")
    assert (ended.exit_code, ended.signal, ended.oom) == (code, 0, False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
async def test_a_signal_is_told(run: Run, number: int) -> None:
    ended, _, _ = await run(f"import os; os.kill(os.getpid(), {number})")
    assert (ended.exit_code, ended.signal, ended.oom) == (128 + number, number, False)


@pytest.mark.parametrize("user", ["", "0"])
async def test_nobody_but_the_gate_tells_how_the_command_ended(run: Run, user: str) -> None:
    ended, out, _ = await run(
        "import glob, os\n"
        "denied = 0\n"
        "for way in ('maps', 'environ', *(f'fd/{n}' for n in range(3, 20))):\n"
        "    try: print(way, os.open(f'/proc/1/{way}', os.O_RDWR if '/' in way else os.O_RDONLY))\n"
        "    except PermissionError: denied += 1\n"
        "    except FileNotFoundError: pass\n"
        "print(denied >= 4, glob.glob('/.tickmesh/io/*'))\n"  # two of the descriptors are there
        "exit(137)\n",
        user=user,
    )
    assert out == "True ['/.tickmesh/io/payload']\n"
    assert (ended.exit_code, ended.signal) == (137, 0)


async def test_a_gate_that_is_killed_itself_ends_as_its_runtime_says(
    shared: ContainerdRuntime,
) -> None:
    program = "import signal; signal.pause()"
    work = Work("whole", "tests", PYTHON_IMAGE, command=("python3", "-c", program))
    sandbox = await shared.prepare(work)
    await sandbox.start()
    await sandbox.kill(signal.SIGKILL)
    ended = await sandbox.wait()
    assert (ended.exit_code, ended.signal) == (137, 9)
    assert logs.written(shared.output_directory("whole")).status is None
    await sandbox.delete()


async def test_signals_of_its_own_group_do_not_end_its_first_process(run: Run) -> None:
    ended, out, _ = await run(
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('heard', flush=True))\n"
        "os.killpg(0, signal.SIGTERM); exit(3)\n"
    )
    assert (ended.exit_code, out) == (3, "heard\n")


async def test_the_payload_comes_on_standard_input_and_as_a_file(run: Run) -> None:
    payload = bytes(range(256)) * 64
    _, out, _ = await run(
        "import os, sys\n"
        "file = open(os.environ['TICKMESH_PAYLOAD_FILE'], 'rb').read()\n"
        "stdin = sys.stdin.buffer.read()\n"
        "print(len(file), file == stdin, stdin == bytes(range(256)) * 64)\n",
        payload=payload,
    )
    assert out == f"{len(payload)} True True\n"


async def test_environment_and_arguments_come_whole(run: Run) -> None:
    strange = {"A": "", "B": "a=b=c", "C": "line\nbreak", "D": "ümlaut ☃", "E": "x" * 100_000}
    arguments = ("", " ", "--x=y", "a\nb", "☃", "z" * 100_000)
    _, out, _ = await run(
        "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))",
        env=strange,
        args=arguments,
        output_bytes_max=4 * MIB,
    )
    environment, given = json.loads(out)
    assert given == list(arguments)
    assert {name: environment[name] for name in strange} == strange
    assert environment["HOME"] == "/tmp" and environment["PYTHONUNBUFFERED"] == "1"


async def test_the_working_directory_is_the_jobs(run: Run) -> None:
    _, out, _ = await run("import os; print(os.getcwd())", working_dir="/usr/local/bin")
    assert out == "/usr/local/bin\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (65534, 65534)),
        ("1000", (1000, 0)),
        ("1000:1001", (1000, 1001)),
        ("nobody", (65534, 65534)),
        ("nobody:root", (65534, 0)),
        ("root", (0, 0)),
    ],
)
async def test_the_user_is_the_jobs(run: Run, user: str, expected: tuple[int, int]) -> None:
    _, out, _ = await run("import os; print(os.getuid(), os.getgid())", user=user)
    assert tuple(map(int, out.split())) == expected


async def test_of_output_over_its_limit_head_and_tail_are_kept_and_the_program_goes_on(
    run: Run,
) -> None:
    ended, out, err = await run(
        "import sys\n"
        "for _ in range(64): sys.stdout.write('x' * 65536)\n"
        "sys.stdout.write('y' * 40_000); sys.stdout.flush(); sys.stderr.write('end'); exit(5)\n",
        output_bytes_max=100_000,
    )
    assert (ended.exit_code, err) == (5, "end")
    assert out == "x" * 60_000 + "y" * 40_000
    assert ended.output_bytes == 64 * 65536 + 40_000 + 3


async def test_it_is_charged_for_its_time(run: Run) -> None:
    ended, _, _ = await run("import time\nwhile time.process_time() < 0.2: pass", cpu_millis=2000)
    assert 200_000_000 <= ended.cpu_ns < 5_000_000_000


def cgroup(version_1: str, name: str) -> dict[str, str]:
    """All that a sandbox's cgroup says, file by file; of version 1, in one of its hierarchies."""
    parent = accounting.ROOT if accounting.unified() else accounting.ROOT / version_1
    files = {}
    for path in (parent / "tickmesh-shared" / name).iterdir():
        with contextlib.suppress(OSError):  # some are only written, some only in the root
            files[path.name] = path.read_text().strip() if path.is_file() else ""
    return files


async def test_the_kernel_holds_it_to_its_limits(shared: ContainerdRuntime) -> None:
    program = (
        "import time\n"
        "begun = time.monotonic()\n"
        "while time.process_time() < 0.5: pass\n"
        "print(time.monotonic() - begun)\n"
    )
    work = Work(
        "limited",
        "tests",
        PYTHON_IMAGE,
        command=("python3", "-c", program),
        memory_bytes=64 * MIB,
        cpu_millis=250,
        pids=7,
    )
    sandbox = await shared.prepare(work)
    try:
        memory, cpu, pids = (cgroup(each, "limited") for each in ("memory", "cpu", "pids"))
        if accounting.unified():
            assert memory["memory.max"] == str(64 * MIB)
            assert (
                memory.get("memory.swap.max", "0") == "0"
            )  # a kernel without swap has no such file
            assert cpu["cpu.max"] == "25000 100000"
        else:
            assert memory["memory.limit_in_bytes"] == str(64 * MIB)
            if accounting.swap_accounting():
                assert memory["memory.memsw.limit_in_bytes"] == str(64 * MIB)
            assert (cpu["cpu.cfs_quota_us"], cpu["cpu.cfs_period_us"]) == ("25000", "100000")
        assert pids["pids.max"] == "8"  # the gate is one more
        await sandbox.start()
        assert (await sandbox.wait()).exit_code == 0
        # Half a second at a quarter of a core: the kernel had it wait, or others left it less.
        took_s = float((await read_output(shared, "limited"))[0])
        told = dict(line.split() for line in cgroup("cpu", "limited")["cpu.stat"].splitlines())
        assert int(told["nr_throttled"]) > 0 or took_s > 1.25
    finally:
        await sandbox.delete()


async def test_devices_are_few(run: Run) -> None:
    _, out, _ = await run("import json, os; print(json.dumps(os.listdir('/dev')))")
    assert set(json.loads(out)) <= {
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    }  # fmt: skip


async def test_no_descriptor_of_the_gate_or_the_host_is_inherited(run: Run) -> None:
    _, out, _ = await run(
        "import os\n"
        "own = os.listdir('/proc/self/fd')\n"
        "print(*sorted(n for n in own if os.path.exists(f'/proc/self/fd/{n}')))\n"
    )
    assert out == "0 1 2\n"
