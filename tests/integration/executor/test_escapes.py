"""Every way out of a sandbox that we know, tried from inside as the job's user and as its root.

`pytest tests/integration/executor/test_escapes.py -s` prints what was tried and what came of it.
Each attempt is a Python program run in a sandbox; it prints what it reached, and the test says what
it may reach.
"""

import ast
import asyncio
import hashlib
import io
import itertools
import json
import signal
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tickmesh.executor import accounting, archive, limits, logs
from tickmesh.executor.containerd.runtime import ContainerdRuntime
from tickmesh.executor.sandbox import Exit, Sandbox, Work
from tickmesh.executor.watch import Watcher
from tickmesh.mesh.plans import CAPABILITIES

from .conftest import nothing_left, read_output

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

MIB = limits.MIB
OWNER = "escapes"
EVIL_IMAGE = "tests/evil:1"
DEADLINE_S = 60.0
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")

each_user = pytest.mark.parametrize(
    "who",
    [{"user": ""}, {"user": "0"}, {"user": "0", "capabilities": tuple(sorted(CAPABILITIES))}],
    ids=["nobody", "root", "root with all that a plan grants"],
)

Try = Callable[..., Awaitable[tuple[Exit, str]]]
_numbers = itertools.count()

# What every program may use: system calls by name, and an attempt that says how it went.
PRELUDE = """
import ctypes, os, platform, resource, signal, socket, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
calls = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "fsopen": (430, 430), "move_mount": (429, 429),
    "mount_setattr": (442, 442), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435), "clone": (56, 220),
    "bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282), "kexec_load": (246, 104), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "swapon": (167, 224), "sethostname": (170, 161), "setdomainname": (171, 162),
    "clock_settime": (227, 112), "settimeofday": (164, 170), "acct": (163, 89),
    "quotactl": (179, 60), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "syslog": (103, 116), "fanotify_init": (300, 262), "lookup_dcookie": (212, 18),
    "move_pages": (279, 239), "mbind": (237, 235), "vhangup": (153, 58),
    "memfd_secret": (447, 447), "landlock_create_ruleset": (444, 444), "setuid": (105, 146),
}
def call(name, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(calls[name][arm], *arguments)
    return f"DONE {result}" if result >= 0 else os.strerror(ctypes.get_errno())
def attempt(what, action):
    try:
        result = action()
        print(f"{what}: DONE {result if result is not None else ''}".rstrip(), flush=True)
    except (OSError, ValueError) as error:
        print(f"{what}: {getattr(error, 'strerror', error)}", flush=True)
def write(path, data):
    return os.write(os.open(path, os.O_WRONLY), data)
"""


def read(path: str) -> str:
    return Path(path).read_text()


def status(path: str) -> tuple[int, int, int]:
    found = Path(path).stat()
    return found.st_uid, found.st_gid, found.st_mode


def link(path: str) -> Path:
    return Path(path).readlink()


async def says(runtime: ContainerdRuntime, sandbox: Sandbox) -> None:
    """Returns once it has printed something."""
    directory = runtime.output_directory(sandbox.attempt_id)
    watcher = Watcher()
    try:
        async with asyncio.timeout(DEADLINE_S):
            async for _ in logs.read(directory, "", True, watcher):
                return
    finally:
        watcher.close()


def say(what: str, result: str) -> None:
    """One line of the list of attempts, for `-s`."""
    print(f"  {what:<44} {' | '.join(result.split(chr(10)))[:180]}")


@pytest.fixture(scope="module")
def evil_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that tries what an image can: links out of it, set-user-id, odd owners."""
    directory = tmp_path_factory.mktemp("evil")
    path, layer = directory / "python.tar", directory / "evil.tar"
    archive.python_image(path)
    evil_layer(layer)
    evil = directory / "image.tar"
    add_layer(path, layer, evil)
    return evil


def evil_layer(path: Path) -> None:
    import tarfile

    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, link, mode, owner in (
            ("evil", tarfile.DIRTYPE, "", 0o755, 0),
            ("evil/out", tarfile.SYMTYPE, "/../../../../../../etc/shadow", 0o777, 0),
            ("evil/proc", tarfile.SYMTYPE, "/proc/1/root", 0o777, 0),
            (".tickmesh", tarfile.SYMTYPE, "/evil", 0o777, 0),
            ("sys", tarfile.SYMTYPE, "/evil", 0o777, 0),
            ("tmp", tarfile.SYMTYPE, "../../../../../etc", 0o777, 0),
            ("evil/disk", tarfile.BLKTYPE, "", 0o666, 0),
            ("evil/memory", tarfile.CHRTYPE, "", 0o666, 0),
            ("evil/private", tarfile.DIRTYPE, "", 0o700, 1000),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, link, mode
            entry.uid = entry.gid = owner
            entry.devmajor, entry.devminor = (1, 1) if kind == tarfile.CHRTYPE else (254, 0)
            tar.addfile(entry)
        for name, mode, owner in (("evil/setuid", 0o4755, 0), ("evil/private/mine", 0o600, 1000)):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.uid, entry.gid = mode, owner, owner
            tar.addfile(entry)


def add_layer(source: Path, layer: Path, target: Path) -> None:
    """An archive with one layer more."""
    with tarfile.open(source) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        blobs = {name: file.read() for name, file in files.items() if file is not None}
    index = json.loads(blobs["index.json"])
    name = "blobs/" + index["manifests"][0]["digest"].replace(":", "/")
    manifest = json.loads(blobs.pop(name))
    config = json.loads(blobs.pop("blobs/" + manifest["config"]["digest"].replace(":", "/")))

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    added = put(layer.read_bytes(), "application/vnd.oci.image.layer.v1.tar")
    config["rootfs"]["diff_ids"].append(added["digest"])
    manifest["layers"].append(added)
    manifest["config"] = put(json.dumps(config).encode(), manifest["config"]["mediaType"])
    descriptor = index["manifests"][0]
    descriptor |= put(json.dumps(manifest).encode(), descriptor["mediaType"])
    blobs["index.json"] = json.dumps(index).encode()
    with tarfile.open(target, "w") as tar:
        for name, data in blobs.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory, evil_archive: Path
) -> AsyncIterator[ContainerdRuntime]:
    directory = tmp_path_factory.mktemp("escapes")
    runtime = ContainerdRuntime(OWNER, directory / "executor", user_namespaces="required")
    await runtime.start()
    await runtime.import_image(EVIL_IMAGE, evil_archive)
    yield runtime
    await runtime.close()
    nothing_left(directory, OWNER)


async def prepare(runtime: ContainerdRuntime, program: str, **work: object) -> Sandbox:
    command = ("python3", "-c", PRELUDE + program)
    arguments = {"command": command, **work}
    return await runtime.prepare(Work(f"try-{next(_numbers)}", "tests", EVIL_IMAGE, **arguments))  # type: ignore[arg-type]


@pytest.fixture
def attempt(shared: ContainerdRuntime) -> Try:
    """Runs a program to its end: its exit and what it printed, errors too."""

    async def run(what: str, program: str, **work: object) -> tuple[Exit, str]:
        sandbox = await prepare(shared, program, **work)
        try:
            await sandbox.start()
            async with asyncio.timeout(DEADLINE_S):
                ended = await sandbox.wait()
            out, err = await read_output(shared, sandbox.attempt_id)
            text = (out + err).decode(errors="replace").strip()
            say(what, text or f"exit {ended.exit_code}")
            return ended, text
        finally:
            await sandbox.delete()

    return run


CALLS = {
    "mounting": "mount umount2 pivot_root chroot open_tree fsopen move_mount mount_setattr",
    "looking into processes": "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp",
    "keyrings": "add_key request_key keyctl",
    "namespaces": "setns clone3",
    "kernel surfaces": "bpf perf_event_open io_uring_setup userfaultfd fanotify_init "
    "lookup_dcookie",
    "modules and kernels": "kexec_load init_module finit_module delete_module reboot swapon",
    "clocks, names, accounting": "clock_settime settimeofday acct quotactl sethostname "
    "setdomainname syslog vhangup",
    "file handles": "open_by_handle_at name_to_handle_at",
}


@each_user
@pytest.mark.parametrize("what", CALLS)
async def test_system_calls_that_reach_the_kernel_are_refused(
    attempt: Try, what: str, who: dict[str, Any]
) -> None:
    program = f"for name in {CALLS[what].split()!r}: print(name, call(name, 0, 0, 0, 0, 0))"
    _, out = await attempt(f"{what}, as {who}", program, **who)
    assert out and "DONE" not in out
    for line in out.splitlines():
        assert line.endswith(("Function not implemented", "Operation not permitted")), line


@each_user
async def test_no_new_namespace_is_made(attempt: Try, who: dict[str, Any]) -> None:
    _, out = await attempt(
        f"unshare and clone of namespaces, as {who}",
        "flags = (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x4000000, 0x8000000, 0x2000000)\n"
        "print({call('unshare', flag) for flag in flags})\n"
        "for flag in flags:\n"
        "    result = call('clone', flag | 17, 0, 0, 0, 0)\n"
        "    if result == 'DONE 0': os._exit(0)\n"
        "    print(hex(flag), result)\n",
        **who,
    )
    assert "DONE" not in out


async def test_its_root_is_nobody_on_the_host(shared: ContainerdRuntime, attempt: Try) -> None:
    sandbox = await prepare(shared, "print('up', flush=True); signal.pause()", user="0")
    await sandbox.start()
    task = await shared._client.get_task(sandbox.attempt_id)
    status = read(f"/proc/{task.pid}/status")
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    say("root, seen from the host", f"uid {uids[0]}")
    assert uids == [str(limits.ID_BASE)] * 4
    for name in NAMESPACES:
        assert link(f"/proc/{task.pid}/ns/{name}") != link(f"/proc/self/ns/{name}"), name
    await sandbox.delete()
    _, out = await attempt(
        "id mapping, becoming other users",
        "print(open('/proc/self/uid_map').read().split(), open('/proc/self/setgroups').read())\n"
        "attempt('write uid_map', lambda: write('/proc/self/uid_map', b'0 0 1'))\n"
        "attempt('setuid 5', lambda: os.setuid(5))\n"
        "attempt('setgroups', lambda: os.setgroups([0]))\n",
        user="0",
    )
    assert out.startswith(f"['0', '{limits.ID_BASE}', '65536']")
    assert "DONE" not in out


async def test_sockets_that_see_or_forge_packets_are_refused(attempt: Try) -> None:
    _, out = await attempt(
        "raw, packet, vsock, bluetooth, alg sockets",
        "kinds = (2, 3), (10, 3), (17, 3), (17, 2), (40, 1), (31, 3), (38, 5), (16, 3)\n"
        "for family, kind in kinds:\n"
        "    attempt(f'{family}/{kind}', lambda: socket.socket(family, kind, 0).close())\n",
        user="0",
    )
    lines = dict(line.split(": ") for line in out.splitlines())
    # A netlink socket (16) is a request to one's own network namespace: empty, without capability.
    assert lines.pop("16/3").startswith("DONE")
    assert not [line for line in lines.values() if line.startswith("DONE")]


@each_user
async def test_the_kernels_own_files_cannot_be_written(attempt: Try, who: dict[str, Any]) -> None:
    _, out = await attempt(
        f"/proc, /sys and cgroup writes, as {who}",
        "paths = ['/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', "
        "'/proc/sys/vm/overcommit_memory', '/proc/sys/net/ipv4/ip_forward', "
        "'/proc/sys/user/max_user_namespaces', '/proc/sysrq-trigger', "
        "'/proc/irq/default_smp_affinity', "
        "'/proc/1/oom_score_adj', '/proc/kcore', '/proc/keys', '/proc/timer_list', "
        "'/sys/kernel/uevent_helper', '/sys/kernel/mm/transparent_hugepage/enabled', "
        "'/sys/fs/cgroup/cgroup.procs', '/sys/fs/cgroup/memory/memory.limit_in_bytes', "
        "'/sys/fs/cgroup/release_agent']\n"
        "for path in paths:\n"
        "    attempt(path, lambda: write(path, b'1'))\n"
        "    attempt('make there', lambda: open(os.path.dirname(path) + '/new', 'x'))\n"
        "print('remount', call('mount', 0, b'/proc/sys', 0, 0x1020, 0))\n"
        "attempt('read kcore', lambda: open('/proc/kcore', 'rb').read(9) and 'CONTENT')\n",
        **who,
    )
    done = [line for line in out.splitlines() if "DONE" in line]
    # Its own first process may be made likelier to be killed; what is masked is an empty device.
    masked = ("/proc/kcore", "/proc/keys", "/proc/timer_list")
    assert all(line.startswith(("/proc/1/oom_score_adj", *masked, "read kcore")) for line in done)
    assert "CONTENT" not in out


async def test_a_worse_oom_score_cannot_be_made_a_better_one(attempt: Try) -> None:
    _, out = await attempt(
        "oom_score_adj lowered",
        "attempt('-1000', lambda: write('/proc/self/oom_score_adj', b'-1000'))\n"
        "print(open('/proc/self/oom_score_adj').read())",
        user="0",
    )
    assert out.endswith("500")


async def test_devices_cannot_be_made_nor_found_in_the_image(attempt: Try) -> None:
    _, out = await attempt(
        "device nodes: mknod, the image's own, /dev",
        "for name in ('/tmp/d', '/dev/shm/d', '/dev/d'):\n"
        "    device = os.makedev(254, 0)\n"
        "    attempt('mknod ' + name, lambda: os.mknod(name, 0o666 | stat.S_IFBLK, device))\n"
        "print(sorted(os.listdir('/evil')))\n"
        "for root, _, files in os.walk('/dev'):\n"
        "    for name in files:\n"
        "        path = os.path.join(root, name)\n"
        "        if stat.S_ISBLK(os.lstat(path).st_mode): print('block', path, 'DONE')\n"
        "attempt('mem', lambda: os.open('/dev/mem', os.O_RDONLY))\n"
        "attempt('kmsg', lambda: os.open('/dev/kmsg', os.O_RDONLY))\n",
        user="0",
    )
    assert "DONE" not in out
    assert "disk" not in out and "memory" not in out


@each_user
async def test_the_hosts_devices_stay_the_hosts(attempt: Try, who: dict[str, Any]) -> None:
    """They are the host's own inodes: whose they are, and who may open them, is seen by all."""
    names = ("null", "zero", "full", "urandom")
    before = {name: status(f"/dev/{name}") for name in names}
    _, out = await attempt(
        f"the host's devices: chmod, chown, utime, setxattr, as {who}",
        "for path in ('/dev/null', '/dev/zero', '/dev/full', '/dev/urandom', '/proc/kcore'):\n"
        "    attempt('chmod ' + path, lambda: os.chmod(path, 0o666))\n"
        "    attempt('chown ' + path, lambda: os.chown(path, os.getuid(), os.getgid()))\n"
        "    attempt('utime ' + path, lambda: os.utime(path, (0, 0)))\n"
        "    attempt('setxattr ' + path, lambda: os.setxattr(path, 'user.a', b'1'))\n"
        "for number in range(3):\n"
        "    attempt(f'fchmod {number}', lambda: os.fchmod(number, 0o666)"
        " if stat.S_ISCHR(os.fstat(number).st_mode) else 'no device')\n"
        "open('/dev/null', 'wb').write(b'1')\n",
        **who,
    )
    done = [line for line in out.splitlines() if "DONE" in line]
    assert not [line for line in done if "no device" not in line]
    assert {name: status(f"/dev/{name}") for name in names} == before


async def test_links_in_the_image_lead_nowhere_outside(attempt: Try) -> None:
    _, out = await attempt(
        "symbolic links of the image, over mount points too",
        "attempt('shadow', lambda: open('/evil/out').read())\n"
        "print(os.listdir('/.tickmesh'), os.path.islink('/.tickmesh'), os.path.islink('/tmp'))\n"
        "print('x' in os.listdir('/etc'), open('/tmp/x', 'w').close(), os.path.exists('/etc/x'))\n",
    )
    assert out.splitlines() == [
        "shadow: No such file or directory",
        "['gate', 'io'] False False",
        "False None False",
    ]


async def test_a_private_file_of_the_image_is_its_owners(attempt: Try) -> None:
    program = "attempt('read', lambda: open('/evil/private/mine').read() == '')\n"
    program += "print(os.stat('/evil/private').st_uid)"
    _, out = await attempt("a private file, as its owner", program, user="1000")
    assert out == "read: DONE True\n1000"
    _, out = await attempt("a private file, as another", program, user="1001")
    assert out == "read: Permission denied\n1000"


async def test_setuid_files_give_nothing(attempt: Try) -> None:
    _, out = await attempt(
        "set-user-id: the image's, and one made",
        "print(oct(os.stat('/evil/setuid').st_mode))\n"
        "import shutil; shutil.copy('/usr/local/bin/python3', '/tmp/p')\n"
        "os.chmod('/tmp/p', 0o6755)\n"
        "print(open('/proc/self/status').read().split('NoNewPrivs:')[1].split()[0])\n"
        "print('nosuid' in next(l for l in open('/proc/mounts') if l.split()[1] == '/tmp'))",
    )
    assert out == "0o100755\n1\nTrue"


async def test_the_hosts_files_and_other_roots_are_out_of_reach(
    shared: ContainerdRuntime, attempt: Try
) -> None:
    secret = shared._data_directory / "secret"
    secret.write_text("the host's")
    _, out = await attempt(
        "/proc/1/root, the executor's files, `..`",
        f"secret = {str(secret)!r}\n"
        "for prefix in ('', '/proc/1/root', '/proc/self/root', '/evil/proc', '/..' * 20, "
        "'/proc/1/cwd/..'):\n"
        "    attempt('secret by ' + prefix, lambda: open(prefix + secret).read())\n"
        "for path in ('/run/containerd', '/run/tickmesh', '/dev/shm/tickmesh', "
        f"{str(shared._data_directory)!r}):\n"
        "    attempt(path, lambda: os.listdir(path))\n"
        "mounts = open('/proc/self/mountinfo')\n"
        "attempt('secret in mounts', lambda: mounts.read().index('secret'))\n",
        user="0",
    )
    assert "DONE" not in out


@each_user
async def test_the_gates_files_cannot_be_written_nor_another_sandboxs_read(
    shared: ContainerdRuntime, attempt: Try, who: dict[str, Any]
) -> None:
    other = await prepare(shared, "print('a secret'); signal.pause()", payload=b"their payload")
    await other.start()
    _, out = await attempt(
        f"the gate's files; a neighbour's output, as {who}",
        "io = '/.tickmesh/io/'\n"
        "print(os.listdir(io))\n"
        "attempt('write payload', lambda: open(io + 'payload', 'w'))\n"
        "attempt('chmod', lambda: os.chmod(io + 'payload', 0o666))\n"
        "attempt('new', lambda: open(io + 'new', 'x'))\n"
        "attempt('mkfifo', lambda: os.mkfifo(io + 'go'))\n"
        "attempt('gate', lambda: open('/.tickmesh/gate', 'ab'))\n"
        "attempt('gate memory', lambda: open('/proc/1/mem', 'r+b'))\n"
        "attempt('gate descriptors', lambda: os.listdir('/proc/1/fd'))\n"
        "attempt('gate root', lambda: os.listdir('/proc/1/root'))\n"
        f"path = {str(shared.output_directory(other.attempt_id))!r}\n"
        "attempt('output', lambda: open(path + '/stdout').read())\n"
        "print(len([n for n in os.listdir('/proc') if n.isdigit()]))\n",
        **who,
    )
    lines = out.splitlines()
    assert lines[0] == "['payload']" and lines[-1] == "2"
    reached = [line.split(":")[0] for line in lines if "DONE" in line]
    # The gate is a process of the job's own user, in its own sandbox: what it can see is its own.
    assert set(reached) <= {"gate memory", "gate descriptors", "gate root"}
    await other.delete()


async def test_neighbours_cannot_be_seen_or_signalled(
    shared: ContainerdRuntime, attempt: Try
) -> None:
    other = await prepare(shared, "print('up', flush=True); signal.pause()", user="1000")
    await other.start()
    task = await shared._client.get_task(other.attempt_id)
    _, out = await attempt(
        "a neighbour's process: signal, ptrace, /proc",
        f"pid = {task.pid}\n"
        "attempt('kill', lambda: os.kill(pid, 9))\n"
        "attempt('pidfd', lambda: os.pidfd_open(pid))\n"
        "attempt('proc', lambda: os.listdir(f'/proc/{pid}'))\n"
        "print('ptrace', call('ptrace', 16, pid, 0, 0))\n"
        "attempt('kill all', lambda: os.kill(-1, 0))\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "attempt('abstract', lambda: s.connect('\\0/containerd-shim'))\n",
        user="1000",
    )
    assert [line for line in out.splitlines() if "DONE" in line] in ([], ["kill all: DONE"])
    assert (await shared._client.get_task(other.attempt_id)).status == task.status
    await other.delete()


async def test_a_fork_bomb_ends_at_its_limit(attempt: Try) -> None:
    ended, out = await attempt(
        "fork bomb",
        "made = 0\n"
        "try:\n"
        "    while True:\n"
        "        if os.fork() == 0: signal.pause()\n"
        "        made += 1\n"
        "except BlockingIOError as error: print(made, error.strerror)\n",
        pids=32,
    )
    assert (ended.exit_code, out) == (0, "31 Resource temporarily unavailable")


async def test_threads_count_as_processes(attempt: Try) -> None:
    _, out = await attempt(
        "thread bomb",
        "import threading\n"
        "wait = threading.Event(); made = 0\n"
        "try:\n"
        "    while True:\n"
        "        threading.Thread(target=wait.wait, daemon=True).start(); made += 1\n"
        "except RuntimeError as error: print(made, error, flush=True)\n"
        "os._exit(0)\n",
        pids=32,
    )
    assert out == "31 can't start new thread"


@pytest.mark.parametrize(
    ("what", "program"),
    [
        ("memory bomb", "x = []\nwhile True: x.append(os.urandom(1 << 20))"),
        (
            "memory bomb of many processes",
            "for _ in range(8):\n    if os.fork() == 0: break\n"
            "x = []\nwhile True: x.append(os.urandom(1 << 20))",
        ),
        ("/dev/shm bomb", "f = open('/dev/shm/x', 'wb')\nwhile True: f.write(bytes(1 << 20))"),
        (
            "memfd bomb",
            "f = os.memfd_create('x')\nwhile True: os.write(f, bytes(1 << 20))",
        ),
    ],
)
async def test_memory_bombs_hit_the_job_and_not_the_host(
    attempt: Try, what: str, program: str
) -> None:
    available = _available_bytes()
    ended, out = await attempt(what, program + "\n", memory_bytes=48 * MIB)
    assert (ended.oom and ended.exit_code == 137) or "No space left" in out
    assert ended.peak_memory_bytes <= 49 * MIB
    assert _available_bytes() > available - 2048 * MIB


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


async def test_locked_memory_queues_and_pipes_are_bounded(attempt: Try) -> None:
    ended, out = await attempt(
        "pipes, sockets and descriptors without end",
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "kept = []\n"
        "try:\n"
        "    while len(kept) < 200_000:\n"
        "        a, b = os.pipe(); kept += [a, b]\n"
        "        os.set_blocking(b, False); os.write(b, bytes(65536))\n"
        "except OSError as error: print(len(kept) <= 65536, error.strerror)\n",
        memory_bytes=128 * MIB,
    )
    assert ended.oom or out.startswith("True Too many open files"), (ended, out)


@each_user
async def test_disk_bombs_find_no_disk(attempt: Try, who: dict[str, Any]) -> None:
    _, out = await attempt(
        f"disk bomb on the root file system, as {who}",
        "def bomb(path):\n"
        "    with open(path, 'wb') as file:\n"
        "        while True: file.write(bytes(1 << 20)); file.flush()\n"
        "writable = []\n"
        "for root, directories, files in os.walk('/'):\n"
        "    if root in ('/proc', '/sys'): directories.clear(); continue\n"
        "    if os.access(root, os.W_OK) and not os.statvfs(root).f_flag & os.ST_RDONLY:\n"
        "        writable.append(root)\n"
        "print(sorted(writable))\n"
        "attempt('/', lambda: bomb('/x'))\n"
        "attempt('/usr', lambda: bomb('/usr/x'))\n"
        "attempt('/dev', lambda: bomb('/dev/x'))\n"
        "attempt('/tmp', lambda: bomb('/tmp/x'))\n",
        **who,
        scratch_bytes=8 * MIB,
    )
    lines = out.splitlines()
    assert set(ast.literal_eval(lines[0])) <= {"/tmp", "/dev", "/dev/shm", "/dev/pts"}
    assert lines[1:3] == ["/: Read-only file system", "/usr: Read-only file system"]
    assert "DONE" not in out
    assert lines[4] == "/tmp: No space left on device"


async def test_thousands_of_files_and_deep_trees_are_bounded(attempt: Try) -> None:
    ended, out = await attempt(
        "100,000 files; a tree 10,000 deep",
        "def files():\n"
        "    for n in range(100_000): os.mknod(f'/tmp/{n}')\n"
        "attempt('files', files)\n"
        "for n in os.listdir('/tmp')[:20_000]: os.unlink('/tmp/' + n)\n"
        "def deep():\n"
        "    os.chdir('/tmp')\n"
        "    for n in range(10_000): os.mkdir('d'); os.chdir('d')\n"
        "attempt('deep', deep)\n",
        memory_bytes=512 * MIB,
    )
    assert out.startswith("files: No space left on device\ndeep: DONE"), out
    assert ended.exit_code == 0


async def test_an_output_flood_is_kept_to_its_size(shared: ContainerdRuntime, attempt: Try) -> None:
    ended, _ = await attempt(
        "output flood, 256 MiB",
        "block = b'x' * 65536\nfor _ in range(2048): os.write(1, block); os.write(2, block)\n",
        output_bytes_max=1 * MIB,
    )
    directory = shared.output_directory(f"try-{next(_numbers) - 1}")
    assert ended.exit_code == 0 and ended.output_bytes == 256 * MIB
    assert sum(file.stat().st_size for file in directory.iterdir()) < 3 * MIB


async def test_a_zombie_storm_is_reaped(attempt: Try) -> None:
    ended, out = await attempt(
        "2,000 orphans that die at once, under a limit of 64",
        "made = 0\n"
        "while made < 2000:\n"
        "    try: pid = os.fork()\n"
        "    except BlockingIOError: os.sched_yield(); continue\n"
        "    if pid == 0:\n"
        "        try: os.fork()\n"
        "        except BlockingIOError: pass\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0); made += 1\n"
        "print(made)\n",
        pids=64,
    )
    assert (ended.exit_code, out) == (0, "2000")


async def test_what_ignores_sigterm_is_killed(shared: ContainerdRuntime) -> None:
    sandbox = await prepare(
        shared,
        "for n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "if os.fork() == 0: os.setsid()\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(1000)\n",
    )
    await sandbox.start()
    await says(shared, sandbox)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        await sandbox.kill(number)
    begun = time.monotonic()
    await sandbox.kill(signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_S):
        ended = await sandbox.wait()
    say("ignoring every signal", f"killed in {1000 * (time.monotonic() - begun):.0f} ms")
    assert ended.signal == signal.SIGKILL
    await sandbox.delete()


async def test_nothing_outlives_the_command(shared: ContainerdRuntime) -> None:
    sandbox = await prepare(
        shared,
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork(): os._exit(0)\n"
        "        signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "        while True: time.sleep(1000)\n"
        "exit(4)\n",
    )
    await sandbox.start()
    group = f"/tickmesh-{OWNER}/{sandbox.attempt_id}"
    ended = await sandbox.wait()
    assert ended.exit_code == 4
    assert accounting.processes(group) == 0
    say("double forks that outlive the command", "exit 4, no process left")
    await sandbox.delete()


async def test_no_core_is_dumped_and_limits_cannot_be_raised(attempt: Try) -> None:
    ended, out = await attempt(
        "core dumps, raised limits",
        "attempt('core', lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)))\n"
        "attempt('files', lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20)))\n"
        "attempt('nice', lambda: os.nice(-5))\n"
        "attempt('realtime', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))\n"
        "attempt('lock', lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 40,) * 2))\n"
        "os.abort()\n",
        user="0",
    )
    assert "DONE" not in out
    assert len(out.splitlines()) == 5
    assert (ended.exit_code, ended.signal) == (134, signal.SIGABRT)


async def test_memory_limits_of_the_kernel_hold_for_what_it_is_made_of(
    shared: ContainerdRuntime,
) -> None:
    """The limits are in the kernel's own files, not only in our document."""
    sandbox = await prepare(
        shared, "signal.pause()", memory_bytes=64 * MIB, pids=20, cpu_millis=250
    )
    group = f"tickmesh-{OWNER}/{sandbox.attempt_id}"
    root = accounting.ROOT
    if accounting.unified():
        files = {"memory.max": 64 * MIB, "memory.swap.max": 0, "pids.max": 21}
        found = {name: int((root / group / name).read_text()) for name in files}
        assert (root / group / "cpu.max").read_text().split() == ["25000", "100000"]
    else:
        files = {
            "memory/memory.limit_in_bytes": 64 * MIB,
            "pids/pids.max": 21,
            "cpu/cpu.cfs_quota_us": 25_000,
        }
        if accounting.swap_accounting():
            files["memory/memory.memsw.limit_in_bytes"] = 64 * MIB
        found = {
            name: int((root / name.split("/")[0] / group / name.split("/")[1]).read_text())
            for name in files
        }
    say("limits in the kernel's files", str(found))
    assert found == files
    await sandbox.delete()


async def test_the_host_is_as_it_was(shared: ContainerdRuntime) -> None:
    """After all of the above: no mount, no name, no setting of the host is another."""
    assert OWNER not in read("/proc/self/mountinfo")
    left = accounting.children(f"/tickmesh-{OWNER}")
    say("left on the host", f"{len(left)} cgroups, 0 mounts")
    assert not left
