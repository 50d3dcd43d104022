"""Our shim, spoken to as containerd does, with a runtime that only pretends."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tickmesh.executor import gate, shim
from tickmesh.executor.containerd import launch, shims

from . import machines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and a socket under /run")

DEADLINE_S = 20.0
NAMESPACE = "shim-tests"
UNKNOWN, INVALID, LATE, NOT_FOUND, EXISTS, PRECONDITION, UNIMPLEMENTED, UNAVAILABLE = (
    2, 3, 4, 5, 6, 9, 12, 14,
)  # fmt: skip
CREATED, RUNNING, STOPPED = 1, 2, 3

# It does as the file `behaviour` in the bundle says, "fail create" or "hang start"; the container's
# first process is a shell that waits for the start and then does what the file `command` says.
RUNTIME = """\
#!/bin/sh
for word; do case $word in create|run|start|kill|delete) command=$word; break;; esac; done
echo "$*" | sed "s/.* $command/$command/" >> calls
[ -e behaviour ] && read how what < behaviour
if [ "$what" = "$command" ]; then
  [ "$how" = hang ] && exec sleep 60
  echo '{"msg":"first a warning","level":"warning"}' > log.json
  echo '{"msg":"it \\"just\\" '"$how"'s","level":"error","time":"now"}' >> log.json
  exit 1
fi
case $command in
create|run) mkfifo go more; sh -c 'read line < go; eval "$line"' & echo $! > init.pid;;
start) cat command > go;;
esac
"""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(**fields: int | str | bytes | list[bytes]) -> bytes:
    """A protobuf message; fields are named f1, f2 and so on."""
    out = b""
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            number = int(name[1:])
            if isinstance(value, int):
                out += varint(number << 3) + varint(value)
            else:
                data = value.encode() if isinstance(value, str) else value
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def parse(data: bytes) -> dict[int, list[int | bytes]]:
    def take() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        tag = take()
        assert tag & 7 in (0, 2)
        value: int | bytes = take()
        if tag & 7 == 2:
            assert isinstance(value, int) and at + value <= len(data)
            at, value = at + value, data[at : at + value]
        found.setdefault(tag >> 3, []).append(value)
    return found


class Refused(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Client:
    """One connection, as ttrpc's client has it."""

    socket: socket.socket
    streams: int = -1
    answers: dict[int, dict[int, list[int | bytes]]] = field(default_factory=dict)

    def send(self, method: str, payload: bytes, timeout_s: float = 0) -> int:
        self.streams += 2
        request = message(
            f1="containerd.task.v2.Task", f2=method, f3=payload, f4=int(timeout_s * 1e9)
        )
        self.socket.sendall(struct.pack(">IIBB", len(request), self.streams, 1, 0) + request)
        return self.streams

    def receive(self, stream: int) -> dict[int, list[int | bytes]]:
        while stream not in self.answers:
            length, number, kind, _ = struct.unpack(">IIBB", self._read(10))
            assert kind == 2
            self.answers[number] = parse(self._read(length))
        answer = self.answers.pop(stream)
        if 1 in answer:
            assert isinstance(answer[1][0], bytes)
            status = parse(answer[1][0])
            code, text = status[1][0], status.get(2, [b""])[0]
            assert isinstance(code, int) and isinstance(text, bytes)
            raise Refused(code, text.decode())
        payload = answer.get(2, [b""])[0]
        assert isinstance(payload, bytes)
        return parse(payload)

    def call(self, method: str, payload: bytes, **more: float) -> dict[int, list[int | bytes]]:
        return self.receive(self.send(method, payload, **more))

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            if not (more := self.socket.recv(length - len(data))):
                raise ConnectionError("the shim closed")
            data += more
        return data


@dataclass
class Shim:
    """A shim that was started in a bundle, in a mount namespace of its own."""

    bundle: Path
    id: str
    address: str
    runtime: Path
    clients: list[Client] = field(default_factory=list)

    def connect(self) -> Client:
        opened = socket.socket(socket.AF_UNIX)
        opened.settimeout(DEADLINE_S)
        opened.connect(self.address)
        self.clients.append(Client(opened))
        return self.clients[-1]

    def create_request(self, **more: int | str | bytes | list[bytes]) -> bytes:
        options = message(f6=str(self.runtime), f7=str(self.bundle / "root"))
        fields = {
            "f1": self.id,
            "f2": str(self.bundle),
            "f10": message(f1="containerd.runc.v1.Options", f2=options),
        }
        return message(**{**fields, **more})

    def command(self, line: str) -> None:
        (self.bundle / "command").write_text(line + "\n")

    def calls(self) -> list[str]:
        try:
            lines = (self.bundle / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.removesuffix(f" {self.id}") for line in lines]

    def delete(self) -> dict[int, list[int | bytes]]:
        """As containerd does after every shim."""
        words = [*arguments(self.id), "-bundle", str(self.bundle), "delete"]
        done = subprocess.run(words, cwd=self.bundle, capture_output=True, timeout=DEADLINE_S)
        assert (done.returncode, done.stderr) == (0, b"")
        return parse(done.stdout)

    def me(self) -> bytes:
        return message(f1=self.id)


def arguments(name: str, machine: str = machines.HERE) -> list[str]:
    where = ["-namespace", NAMESPACE, "-address", "/no/containerd.sock"]
    here = shim.program()
    program = str(here.with_name(here.name.replace(machines.HERE, machine)))
    emulated_by = [] if machine == machines.HERE else [str(machines.emulator(machine))]
    return [*emulated_by, program, *where, "-publish-binary", "/no/containerd", "-id", name]


def gone(pid: int) -> None:
    """Returns when a process that is nobody's child of ours has ended."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], DEADLINE_S)[0]
        finally:
            os.close(descriptor)


def number(answer: dict[int, list[int | bytes]], at: int) -> int:
    value = answer.get(at, [0])[0]
    assert isinstance(value, int)
    return value


def start(name: str, bundle: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """As containerd starts a shim, in a mount namespace of its own; words: before its command."""
    words = (*words, sys.executable, "-I", "-S", launch.__file__, *arguments(name), "start")
    return subprocess.run(words, cwd=bundle, capture_output=True, timeout=DEADLINE_S)


def socket_path(name: str) -> Path:
    return shims.socket_of("/no/containerd.sock", NAMESPACE, name)


@contextlib.contextmanager
def started(bundle: Path) -> Iterator[Shim]:
    name = f"s-{uuid.uuid4().hex}"
    (bundle / "rootfs").mkdir(parents=True)
    runtime = bundle.with_name("runtime")
    runtime.write_text(RUNTIME)
    runtime.chmod(0o755)
    done = start(name, bundle)
    assert (done.returncode, done.stderr) == (0, b"")
    address = done.stdout.decode().strip().removeprefix("unix://")
    assert address == str(socket_path(name))
    assert (bundle / "address").read_text() == f"unix://{address}"
    made = Shim(bundle, name, address, runtime)
    try:
        yield made
    finally:
        for client in made.clients:
            client.socket.close()
        shims.end("/no/containerd.sock", NAMESPACE, name)
        Path(address).unlink(missing_ok=True)
        if (pid := bundle / "init.pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Shim]:
    with started(tmp_path / "bundle") as shim:
        yield shim


@pytest.mark.parametrize(
    ("command", "status"), [("exit 7", 7), ("exit 137", 137), ("kill -15 $$", 128 + 15)]
)
def test_a_container_from_create_to_delete(one: Shim, command: str, status: int) -> None:
    client = one.connect()
    one.command(command)
    pid = number(client.call("Create", one.create_request()), 1)
    assert Path(f"/proc/{pid}").exists()
    waiting = client.send("Wait", one.me())
    state = client.call("State", one.me())
    assert (number(state, 3), number(state, 4)) == (pid, CREATED)
    before_s = int(time.time())
    assert number(client.call("Start", one.me()), 1) == pid
    ended = client.receive(waiting)
    assert number(ended, 1) == status
    assert isinstance(ended[2][0], bytes)
    assert before_s <= number(parse(ended[2][0]), 1) <= time.time()
    state = client.call("State", one.me())
    assert (number(state, 4), number(state, 9), state[10]) == (STOPPED, status, ended[2])
    pids = client.call("Pids", one.me())[1]
    assert pids == [message(f1=pid)]
    with pytest.raises(Refused, match="already finished") as caught:
        client.call("Kill", message(f1=one.id, f3=9))
    assert caught.value.code == NOT_FOUND
    shim_pid = number(client.call("Connect", one.me()), 1)
    deleted = client.call("Delete", one.me())
    assert (number(deleted, 1), number(deleted, 2), deleted[3]) == (pid, status, ended[2])
    client.call("Shutdown", one.me())
    gone(shim_pid)
    assert not Path(one.address).exists()
    create = f"create --bundle {one.bundle} --pid-file init.pid"
    assert one.calls() == [create, "start", "delete"]
    # Nothing is left, so nothing is started.
    assert number(one.delete(), 2) == 128 + 9
    assert one.calls() == [create, "start", "delete"]


def test_a_signal_reaches_the_first_process(one: Shim) -> None:
    client = one.connect()
    one.command("trap 'exit 33' USR1; echo > ready; while :; do sleep 0.05; done")
    client.call("Create", one.create_request())
    client.call("Start", one.me())
    with pytest.raises(Refused, match="cannot delete a running process") as caught:
        client.call("Delete", one.me())
    assert caught.value.code == PRECONDITION
    deadline = time.monotonic() + DEADLINE_S
    while not (one.bundle / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    client.call("Kill", message(f1=one.id, f3=signal.SIGUSR1))
    assert number(client.call("Wait", one.me()), 1) == 33


def test_a_container_that_never_ran_is_killed_and_deleted_by_force(one: Shim) -> None:
    client = one.connect()
    client.call("Create", one.create_request())
    client.call("Kill", message(f1=one.id, f3=9))
    assert number(client.call("Wait", one.me()), 1) == 137
    assert number(client.call("Delete", one.me()), 2) == 137
    assert one.calls()[1:] == ["delete"]


def test_what_a_runtime_says_when_it_fails_is_the_answer(one: Shim) -> None:
    client = one.connect()
    (one.bundle / "behaviour").write_text("fail create\n")
    with pytest.raises(Refused) as caught:
        client.call("Create", one.create_request())
    assert caught.value.code == UNKNOWN
    assert str(caught.value) == 'OCI runtime create failed: it "just" fails'
    with pytest.raises(Refused) as caught:
        client.call("State", one.me())
    assert (caught.value.code, str(caught.value)) == (NOT_FOUND, "container not created")
    one.delete()  # nobody knows what it left behind
    assert one.calls()[1:] == ["delete --force"]


def test_a_runtime_that_is_not_there_is_said(one: Shim) -> None:
    client = one.connect()
    one.runtime.unlink()
    with pytest.raises(Refused, match="runtime: No such file or directory"):
        client.call("Create", one.create_request())


def test_a_runtime_that_hangs_ends_with_its_callers_patience(one: Shim) -> None:
    client = one.connect()
    client.call("Create", one.create_request())
    (one.bundle / "behaviour").write_text("hang start\n")
    starting = client.send("Start", one.me(), timeout_s=0.5)
    # Meanwhile the others are answered, and no second step begins.
    assert number(client.call("State", one.me()), 4) == CREATED
    with pytest.raises(Refused, match="a start is under way") as caught:
        client.call("Delete", one.me())
    assert caught.value.code == PRECONDITION
    with pytest.raises(Refused, match="start took too long") as caught:
        client.receive(starting)
    assert caught.value.code == LATE
    (one.bundle / "behaviour").unlink()
    client.call("Delete", one.me())
    assert one.calls()[-1] == "delete --force"


def test_a_container_that_its_runtime_has_forgotten_is_deleted(one: Shim) -> None:
    client = one.connect()
    one.command("exit 0")
    client.call("Create", one.create_request())
    client.call("Start", one.me())
    client.call("Wait", one.me())
    text = one.runtime.read_text()
    one.runtime.write_text(text.replace('it \\"just\\"', "container x does not exist, it"))
    (one.bundle / "behaviour").write_text("fail delete\n")
    client.call("Delete", one.me())


def test_waiters_go_with_their_connection_and_others_stay(one: Shim) -> None:
    first, second = one.connect(), one.connect()
    one.command("read line < more; exit 5")
    first.call("Create", one.create_request())
    first.call("Start", one.me())
    first.send("Wait", one.me())
    waiting = second.send("Wait", one.me())
    second.call("State", one.me())  # so it waits by now
    first.socket.close()
    third = one.connect()
    assert number(third.call("State", one.me()), 4) == RUNNING
    (one.bundle / "more").write_text("\n")
    assert number(second.receive(waiting), 1) == 5
    assert number(third.call("Wait", one.me()), 1) == 5


def test_of_too_many_who_wait_the_oldest_is_sent_away(one: Shim) -> None:
    client = one.connect()
    client.call("Create", one.create_request())
    waiting = [client.send("Wait", one.me()) for _ in range(65)]
    with pytest.raises(Refused, match="too many wait") as caught:
        client.receive(waiting[0])
    assert caught.value.code == UNAVAILABLE
    client.call("Kill", message(f1=one.id, f3=9))
    assert {number(client.receive(stream), 1) for stream in waiting[1:]} == {137}


def test_a_shim_without_a_container_ends_with_its_last_connection(one: Shim) -> None:
    client, other = one.connect(), one.connect()
    with pytest.raises(Refused):
        client.call("Connect", one.me())
    words = {"-address": "/no/containerd.sock", "-namespace": NAMESPACE, "-id": one.id}
    pids = [pid for pid in shims._processes() if shims._is_wanted(pid, words)]
    client.socket.close()
    with pytest.raises(Refused):
        other.call("Connect", one.me())
    other.socket.close()
    for pid in pids:
        gone(pid)
    assert len(pids) == 1 and not Path(one.address).exists()


def test_a_killed_shim_is_cleaned_up_after(one: Shim) -> None:
    client = one.connect()
    client.call("Create", one.create_request())
    assert shims.end("/no/containerd.sock", NAMESPACE, one.id) == 1
    deleted = one.delete()
    assert number(deleted, 2) == 137
    assert one.calls()[1:] == ["delete --force"]
    assert not Path(one.address).exists()
    # A second one can begin where the first was.
    words = [*arguments(one.id), "start"]
    done = subprocess.run(words, cwd=one.bundle, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0
    again = subprocess.run(words, cwd=one.bundle, capture_output=True, timeout=DEADLINE_S)
    assert again.returncode == 1 and b"the container has a shim" in again.stderr


def test_a_shim_is_not_ended_by_signals_that_ask(one: Shim) -> None:
    client = one.connect()
    client.call("Create", one.create_request())
    pid = number(client.call("Connect", one.me()), 1)
    for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        os.kill(pid, asked)
    assert number(client.call("State", one.me()), 4) == CREATED
    client.call("Shutdown", one.me())  # nor with a container
    assert number(client.call("State", one.me()), 4) == CREATED
    score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    # Without CAP_SYS_RESOURCE nobody gets the score that is wished for.
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert score - 1 in (int(launch.OOM_SCORE), ours)


OPTIONS = "containerd.runc.v1.Options"
CGROUPS = Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"f4": 1}, UNIMPLEMENTED, "no terminal"),
        ({"f8": "/checkpoint"}, UNIMPLEMENTED, "no checkpoint"),
        ({"f1": "another"}, INVALID, "not a create of"),
        ({"f2": "/another"}, INVALID, "not a create of"),
        ({"f10": message(f1="runsc.Options", f2="x")}, INVALID, "options are not"),
        ({"f10": message(f1=OPTIONS, f2=message(f3="/g"))}, INVALID, "field 3 of .* not supported"),
        ({"f10": message(f1=OPTIONS, f2=message(f4=7))}, INVALID, "field 4 of .* not supported"),
        ({"f10": message(f1=OPTIONS, f2=message(f6="x" * 5000))}, INVALID, "field 6 of"),
        ({"f10": message(f1=OPTIONS, f2=b"\x08")}, INVALID, "options cannot be read"),
        ({"f3": [message(f1="nothing", f2="x")]}, UNKNOWN, "failed to mount nothing"),
        ({"f3": [message(f1="bind", f2="/", f3="sub")]}, UNKNOWN, "field 3 of a mount"),
        ({"f5": "/dev/null"}, UNKNOWN, "/dev/null cannot be a standard stream"),
        ({"f6": "binary:///no/logger?x=1"}, UNKNOWN, "no/logger.* cannot be started: No such file"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(
    one: Shim, fields: dict[str, int | str | bytes | list[bytes]], code: int, words: str
) -> None:
    client = one.connect()
    with pytest.raises(Refused, match=words) as caught:
        client.call("Create", one.create_request(**fields))
    assert caught.value.code == code
    assert one.calls() == []
    client.call("Create", one.create_request())  # and it can go on
    with pytest.raises(Refused) as caught:
        client.call("Create", one.create_request())
    assert caught.value.code == EXISTS


def test_a_plain_container_is_removed_without_its_runtime(one: Shim) -> None:
    client = one.connect()
    state = one.bundle / "root" / NAMESPACE / one.id
    state.mkdir(parents=True)
    (state / "status").touch()
    values = message(f6=str(one.runtime), f7=str(one.bundle / "root"), f1000=1, f1001=1)
    # A cgroup of its own in the hierarchy that counts processes, and what crun makes of one that is
    # not there.
    hierarchy = CGROUPS / "pids" if (CGROUPS / "pids").exists() else CGROUPS
    group = hierarchy / one.id
    group.mkdir()
    one.runtime.write_text(RUNTIME.replace(
        "go more; sh -c", f"go more; echo $$ > {group}/cgroup.procs; sh -c"))  # fmt: skip
    try:
        options = message(f1=OPTIONS, f2=values)
        pid = number(client.call("Create", one.create_request(f10=options)), 1)
        assert number(client.call("State", one.me()), 4) == RUNNING
        assert str(pid) in (group / "cgroup.procs").read_text().split()
        assert message(f1=pid) in client.call("Pids", one.me())[1]
        with pytest.raises(Refused, match="started before") as caught:
            client.call("Start", one.me())
        assert caught.value.code == PRECONDITION
        waiting = client.send("Wait", one.me())
        (one.bundle / "go").write_text("exit 8\n")
        assert number(client.receive(waiting), 1) == 8
        assert number(client.call("Delete", one.me()), 2) == 8
        assert one.calls() == [f"run --bundle {one.bundle} --pid-file init.pid --detach"]
        assert not group.exists() and not state.exists()
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def test_what_is_left_of_a_plain_container_is_the_runtimes_to_remove(one: Shim) -> None:
    client = one.connect()
    (one.bundle / "root" / NAMESPACE / one.id / "a directory").mkdir(parents=True)
    values = message(f6=str(one.runtime), f7=str(one.bundle / "root"), f1000=1, f1001=1)
    client.call("Create", one.create_request(f10=message(f1=OPTIONS, f2=values)))
    client.call("Kill", message(f1=one.id, f3=9))
    client.call("Wait", one.me())
    client.call("Delete", one.me())
    assert one.calls()[1:] == ["delete --force"]


# -- where nothing more can be written -------------------------------------------------------------

PAGE = 4096


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A bundle on a file system of sixteen pages."""
    bundle = tmp_path / "small"
    bundle.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", bundle], check=True)
    try:
        yield bundle
    finally:
        subprocess.run(["umount", "--lazy", bundle], check=True)


def fill(directory: Path, pages_left: int = 0) -> None:
    """Leaves room for so many pages."""
    with (directory / "filler").open("wb", buffering=0) as filler:
        size = 0
        with contextlib.suppress(OSError):
            while written := filler.write(bytes(PAGE)):
                size += written
        filler.truncate(size - pages_left * PAGE)


def test_a_shim_that_cannot_write_its_address_does_not_start_and_leaves_nothing(
    small: Path,
) -> None:
    name = f"s-{uuid.uuid4().hex}"
    fill(small)
    done = start(name, small)
    assert done.returncode == 1
    assert done.stderr == b"tickmesh's shim: address: No space left on device\n"
    assert not socket_path(name).exists()
    assert [path.name for path in small.iterdir()] == ["filler"]
    (small / "filler").unlink()
    with started(small) as shim:
        shim.connect().call("Create", shim.create_request())


# A file system of one inode, its root, in the place of a directory.
@pytest.mark.parametrize("full", ["/run/containerd/s", "/run/containerd"])
def test_a_shim_whose_socket_has_no_room_says_so(tmp_path: Path, full: str) -> None:
    name = f"s-{uuid.uuid4().hex}"
    Path("/run/containerd/s").mkdir(mode=0o700, parents=True, exist_ok=True)
    mount = f'mount -t tmpfs -o nr_inodes=1 tmpfs {full} && exec "$@"'
    done = start(name, tmp_path, "unshare", "--mount", "sh", "-c", mount, "sh")
    assert done.returncode == 1
    assert done.stderr.startswith(b"tickmesh's shim: /run/containerd/s")
    assert done.stderr.endswith(b": No space left on device\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pages_left", [0, 1])
def test_a_create_that_cannot_write_to_its_bundle_is_refused_and_leaves_nothing(
    small: Path, pages_left: int
) -> None:
    with started(small) as shim:
        client = shim.connect()
        before = {path.name for path in small.iterdir()}
        fill(small, pages_left)
        # What it writes takes two pages.
        values = message(f6="/" + "b" * 1000, f7="/" + "r" * 4000)
        request = shim.create_request(f10=message(f1=OPTIONS, f2=values))
        with pytest.raises(Refused) as caught:
            client.call("Create", request)
        assert str(caught.value) == "the bundle cannot be written: No space left on device"
        assert {path.name for path in small.iterdir()} == before | {"filler"}
        (small / "filler").unlink()
        client.call("Create", shim.create_request())


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (
            'echo \'{"msg":"full"}\' > log.json; exit 1',
            r"create failed: .* exited with 1 .* \(no space is left",
        ),
        ("echo 1 > init.pid; exit 0", r"wrote no init\.pid \(no space is left"),
    ],
)
def test_a_runtime_that_has_no_room_to_say_so_is_spoken_for(
    small: Path, behaviour: str, words: str
) -> None:
    with started(small) as shim:
        client = shim.connect()
        shim.runtime.write_text(f"#!/bin/sh\n{behaviour}\n")
        fill(small, 1)  # for what the shim writes
        with pytest.raises(Refused, match=words) as caught:
            client.call("Create", shim.create_request())
        assert caught.value.code == UNKNOWN
        shim.runtime.write_text(RUNTIME)
        (small / "filler").unlink()
        client.call("Create", shim.create_request())


@pytest.mark.parametrize("method", ["Pause", "Checkpoint", "Stats", "Update", "Exec", "ResizePty"])
def test_methods_that_it_has_not_are_refused(one: Shim, method: str) -> None:
    client = one.connect()
    client.call("Create", one.create_request())
    with pytest.raises(Refused, match=f"no {method}") as caught:
        client.call(method, one.me())
    assert caught.value.code == UNIMPLEMENTED


def test_both_outputs_reach_a_logger_that_ends_when_the_container_does(
    one: Shim, tmp_path: Path
) -> None:
    client = one.connect()
    sandbox = tmp_path / "sand box"
    output = sandbox / "output"
    output.mkdir(parents=True)
    os.mkfifo(sandbox / "ended")
    uri = f"binary://{gate.program('recorder')}?{str(sandbox).replace(' ', '%20')}=1000"
    one.command("echo out; echo error >&2; exit 0")
    client.call("Create", one.create_request(f6=uri, f7=uri))
    client.call("Start", one.me())
    client.call("Wait", one.me())
    deadline = time.monotonic() + DEADLINE_S
    while not (output / "end").exists():  # without being told: the shim holds no end of the pipes
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (output / "end").read_text() == "4 6 500\n"
    assert (output / "stdout").read_text() + (output / "stderr").read_text() == "out\nerror\n"


def test_fifos_and_files_are_the_containers_own(one: Shim, tmp_path: Path) -> None:
    client = one.connect()
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    one.command("echo began >&2; cat; exit 0")
    # A shell in the background has no standard input: the pretended runtime passes its own on.
    one.runtime.write_text(RUNTIME.replace("& echo $!", "<&3 & echo $!").replace(
        "case $command in\ncreate|run)", "exec 3<&0\ncase $command in\ncreate|run)"))  # fmt: skip
    streams = {"f5": str(tmp_path / "in"), "f6": str(tmp_path / "out")}
    client.call("Create", one.create_request(**streams, f7=f"file://{tmp_path}/err"))
    client.call("Start", one.me())
    reader = os.open(tmp_path / "out", os.O_RDONLY)
    with (tmp_path / "in").open("w") as writer:
        writer.write("through\n")
    assert os.read(reader, 100) == b"through\n"
    client.call("CloseIO", message(f1=one.id, f3=1))  # now its input ends
    assert number(client.call("Wait", one.me()), 1) == 0
    assert os.read(reader, 100) == b""
    os.close(reader)
    assert (tmp_path / "err").read_text() == "began\n"


def test_a_root_file_system_of_many_layers_is_mounted_and_unmounted(
    one: Shim, tmp_path: Path
) -> None:
    client = one.connect()
    layers = [tmp_path / ("directory-of-layers-" + "x" * 60) / str(n) / "fs" for n in range(60)]
    for layer in layers:
        layer.mkdir(parents=True)
        (layer / layer.parent.name).touch()
    lower = "lowerdir=" + ":".join(map(str, layers))
    assert len(lower) > 4096
    overlay = message(f1="overlay", f2="overlay", f4=["ro", "nosuid", "index=off", lower])
    one.command("exit 0")
    client.call("Create", one.create_request(f3=[overlay]))
    pid = number(client.call("Connect", one.me()), 1)
    seen = Path(f"/proc/{pid}/root{one.bundle}/rootfs")
    assert sorted(path.name for path in seen.iterdir()) == sorted(map(str, range(60)))
    mounted = [line for line in _mounts(pid) if str(one.bundle) in line]
    assert len(mounted) == 1 and " ro,nosuid" in mounted[0]
    client.call("Kill", message(f1=one.id, f3=9))
    client.call("Wait", one.me())
    client.call("Delete", one.me())
    assert not [line for line in _mounts(pid) if str(one.bundle) in line]


def test_a_bind_mount_is_read_only_when_it_should_be(one: Shim, tmp_path: Path) -> None:
    client = one.connect()
    bind = message(f1="bind", f2=str(tmp_path), f4=["rbind", "ro"])
    client.call("Create", one.create_request(f3=[bind]))
    pid = number(client.call("Connect", one.me()), 1)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says which
        Path(f"/proc/{pid}/root{one.bundle}/rootfs/x").touch()
    assert caught.value.errno == errno.EROFS


def _mounts(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


def test_a_service_that_is_not_served_is_refused(one: Shim) -> None:
    client = one.connect()
    request = message(f1="containerd.task.v3.Task", f2="Connect", f3=one.me())
    client.socket.sendall(struct.pack(">IIBB", len(request), 1, 1, 0) + request)
    with pytest.raises(Refused, match=r"only containerd\.task\.v2\.Task is served") as caught:
        client.receive(1)
    assert caught.value.code == UNIMPLEMENTED


def test_more_connections_than_it_takes_are_closed(one: Shim) -> None:
    kept = [one.connect() for _ in range(8)]
    for client in kept:
        with pytest.raises(Refused):
            client.call("Connect", one.me())
    assert one.connect().socket.recv(1) == b""
    kept[0].socket.close()
    with pytest.raises(Refused):
        kept[1].call("Connect", one.me())  # it has seen the end by now
    with pytest.raises(Refused):
        one.connect().call("Connect", one.me())


FRAMES = st.one_of(
    st.binary(max_size=64),  # no frame at all
    st.builds(  # a frame of anything
        lambda stream, kind, body: struct.pack(">IIBB", len(body), stream, kind, 0) + body,
        st.integers(0, 9) | st.integers(0, 2**32 - 1),
        st.sampled_from([0, 1, 2, 255]),
        st.binary(max_size=64),
    ),
    st.builds(  # a call with anything in it, perhaps cut
        lambda method, payload, cut: (lambda body: struct.pack(">IIBB", len(body), 1, 1, 0) + body)(
            message(f1="containerd.task.v2.Task", f2=method, f3=payload)[: 200 - cut]
        ),
        st.sampled_from(["Create", "State", "Kill", "Wait", "Delete", "Update", "Pids", "x" * 99]),
        st.binary(max_size=80)
        | st.lists(
            st.tuples(st.integers(1, 11), st.integers(0, 2**64 - 1) | st.binary(max_size=20)),
            max_size=4,
        ).map(lambda pairs: b"".join(message(**{f"f{n}": value}) for n, value in pairs)),
        st.integers(0, 199),
    ),
    st.integers(256 * 1024 + 1, 2**32 - 1).map(lambda n: struct.pack(">IIBB", n, 1, 1, 0)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(pieces=st.lists(FRAMES, min_size=1, max_size=4), ends=st.booleans())
def _garbage(one: Shim, good: Client, pieces: list[bytes], ends: bool) -> None:
    bad = one.connect()
    with contextlib.suppress(ConnectionError):
        bad.socket.sendall(b"".join(pieces))
        if ends:
            bad.socket.shutdown(socket.SHUT_WR)
            while bad.socket.recv(4096):
                pass
    bad.socket.close()
    one.clients.remove(bad)
    assert number(good.call("State", one.me()), 4) == RUNNING


def test_whatever_is_sent_the_container_and_its_other_callers_live(one: Shim) -> None:
    good = one.connect()
    one.command("read line < more; exit 6")
    good.call("Create", one.create_request())
    good.call("Start", one.me())
    waiting = good.send("Wait", one.me())
    pid = number(good.call("Connect", one.me()), 1)
    descriptors = Path(f"/proc/{pid}/fd")
    before = len(list(descriptors.iterdir()))
    _garbage(one, good)
    assert len(list(descriptors.iterdir())) == before
    (one.bundle / "more").write_text("\n")
    assert number(good.receive(waiting), 1) == 6


# QEMU's user-mode emulation has no subreapers, so of another machine's only this part runs here.
@pytest.mark.parametrize("machine", machines.MACHINES)
def test_the_name_of_its_socket_is_the_digest_for_every_length(
    machine: str, tmp_path: Path
) -> None:
    for length in (1, 40, 60, 63, 64, 120):
        name = "n" * length
        text = f"/no/containerd.sock/{NAMESPACE}/{name}"
        expected = hashlib.sha256(text.encode()).hexdigest()
        there = socket_path(name)
        assert there.name == expected
        there.touch()
        words = [*arguments(name, machine), "delete"]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        assert not there.exists()
