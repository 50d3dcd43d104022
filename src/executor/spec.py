"""Pure: what a sandbox may be and do, as an OCI runtime specification.

Nothing here touches the machine: the same `Sandbox` gives the same bytes (golden files in
tests/unit/executor/golden). The first process is always the gate; what the customer asked for
reaches it later through its FIFO, so none of it is in this document.
"""

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec

from ..mesh.plans import CAPABILITIES
from . import gate, limits

OCI_VERSION = "1.0.2"
CPU_PERIOD_US = 100_000
CPU_QUOTA_US_MIN = 1_000  # the kernel refuses less
CPU_SHARES_MIN = 2
SHARED_MEMORY_BYTES = 64 * 1024 * 1024
OPEN_FILES_SOFT = 1_024  # what select() can take
OPEN_FILES_HARD = 65_536
SCRATCH_INODES_MAX = 65_536  # an empty file costs about a KiB of the sandbox's memory
OOM_SCORE = 500  # when the host itself runs out, sandboxes go before the mesh
HOST_NAME_CHARACTERS_MAX = 63
GATE_PROCESSES = 1  # the gate stays as process 1 and is not the customer's

# Families of sockets: unix, IPv4, IPv6, and netlink (the C library asks it for interfaces).
_SOCKET_FAMILIES = (1, 2, 10, 16)
# Execution domains that change nothing but the name and the address layout, as setarch uses.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME.
_CLONE_NAMESPACES = 0x7E020080
_ENOSYS = 38
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

_MASKED_PATHS = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]
_READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Everything that the document depends on."""

    name: str
    """The sandbox's id; its host name too."""
    architecture: str
    """As `uname -m` says: x86_64 or aarch64."""
    cgroup_path: str
    """From the root of every cgroup hierarchy, as "/tickmesh/x"."""
    exchange_directory: str
    """The host's directory with the gate's FIFOs and the payload."""
    uid: int
    gid: int
    memory_bytes: int
    """Memory, tmpfs included. Swap is never added to it."""
    cpu_millis: int
    """Thousandths of a core."""
    pids: int
    scratch_bytes: int
    """Size of /tmp, the only place to write to."""
    open_files_max: int = OPEN_FILES_HARD
    """The hard limit; a host may allow less."""
    id_base: int = 0
    """The host's id that is the sandbox's 0; the next 65,535 follow. 0: no user namespace, the
    sandbox's ids are the host's."""
    network_namespace: str = ""
    """Path of a namespace that is wired; "": one of its own, with nothing in it."""
    command: tuple[str, ...] = (gate.PROGRAM,)
    """The first process."""
    capabilities: tuple[str, ...] = ()
    """Of mesh.plans.CAPABILITIES: only with a user namespace, in which they are about what is the
    sandbox's own."""
    swap_accounting: bool = True
    """Whether the kernel counts swap; without it, swappiness 0 is the next best."""


def build(sandbox: SandboxSpec) -> bytes:
    """The specification as JSON. Raises ValueError for limits that no kernel takes, and for
    capabilities that nobody may have."""
    if sandbox.memory_bytes <= 0 or sandbox.cpu_millis <= 0 or sandbox.pids <= 0:
        raise ValueError(f"memory, cpu and pids of {sandbox.name} must be positive")
    if not CAPABILITIES.issuperset(sandbox.capabilities):
        raise ValueError(f"capabilities of {sandbox.name}: {', '.join(sandbox.capabilities)}")
    if sandbox.capabilities and not sandbox.id_base:
        raise ValueError(f"capabilities of {sandbox.name} need a user namespace")
    return msgspec.json.encode(
        {
            "ociVersion": OCI_VERSION,
            "process": _process(sandbox),
            "root": {"path": "rootfs", "readonly": True},
            "hostname": sandbox.name[:HOST_NAME_CHARACTERS_MAX].rstrip("-"),
            "mounts": _mounts(sandbox),
            "linux": {
                **_namespaces(sandbox),
                "resources": _resources(sandbox),
                "cgroupsPath": sandbox.cgroup_path,
                "seccomp": _seccomp(sandbox.architecture),
                "maskedPaths": _MASKED_PATHS,
                "readonlyPaths": _READONLY_PATHS,
            },
        }
    )


def _namespaces(sandbox: SandboxSpec) -> dict[str, Any]:
    kinds = ["pid", "ipc", "uts", "mount", "network", "cgroup"]
    if not sandbox.id_base:
        return {"namespaces": [_namespace(sandbox, kind) for kind in kinds]}
    mapping = [{"containerID": 0, "hostID": sandbox.id_base, "size": limits.IDS}]
    return {
        "namespaces": [_namespace(sandbox, kind) for kind in (*kinds, "user")],
        "uidMappings": mapping,
        "gidMappings": mapping,
    }


def _namespace(sandbox: SandboxSpec, kind: str) -> dict[str, str]:
    if kind == "network" and sandbox.network_namespace:
        return {"type": kind, "path": sandbox.network_namespace}
    return {"type": kind}


def _process(sandbox: SandboxSpec) -> dict[str, Any]:
    return {
        "terminal": False,
        "user": {"uid": sandbox.uid, "gid": sandbox.gid},
        "args": list(sandbox.command),
        "env": [],
        "cwd": "/",
        "noNewPrivileges": True,
        # All five, so that they survive two execves, the gate's and the command's, of any user.
        "capabilities": {
            kind: list(sandbox.capabilities)
            for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
        },
        "rlimits": [
            {
                "type": "RLIMIT_NOFILE",
                "soft": min(OPEN_FILES_SOFT, sandbox.open_files_max),
                "hard": sandbox.open_files_max,
            },
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
        "oomScoreAdj": OOM_SCORE,
    }


def _mounts(sandbox: SandboxSpec) -> list[dict[str, Any]]:
    def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {
            "destination": destination,
            "type": kind,
            "source": source,
            "options": list(options),
        }

    strict = ("nosuid", "noexec", "nodev")
    return [
        mount("/proc", "proc", "proc", *strict),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "mode=755", "size=64k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666"),
        mount("/dev/shm", "tmpfs", "shm", *strict, "mode=1777", f"size={SHARED_MEMORY_BYTES}"),
        _sys(sandbox, strict),
        mount(
            "/tmp",
            "tmpfs",
            "tmpfs",
            "nosuid",
            "nodev",
            "mode=1777",
            f"size={sandbox.scratch_bytes}",
            f"nr_inodes={SCRATCH_INODES_MAX}",
        ),
        mount(gate.EXCHANGE, "bind", sandbox.exchange_directory, "bind", "ro", *strict),
    ]


def _sys(sandbox: SandboxSpec, strict: tuple[str, ...]) -> dict[str, Any]:
    """The kernel mounts sysfs only for who owns the network namespace, and one that was wired
    ahead belongs to the host: such a sandbox has an empty /sys."""
    kind = "tmpfs" if sandbox.id_base and sandbox.network_namespace else "sysfs"
    size = ("size=4k",) if kind == "tmpfs" else ()
    options = [*strict, "ro", *size]
    return {"destination": "/sys", "type": kind, "source": kind, "options": options}


def _resources(sandbox: SandboxSpec) -> dict[str, Any]:
    memory: dict[str, int] = {"limit": sandbox.memory_bytes}
    if sandbox.swap_accounting:
        memory["swap"] = sandbox.memory_bytes  # memory and swap together: so no swap
    else:
        memory["swappiness"] = 0
    return {
        "devices": [{"allow": False, "access": "rwm"}],  # the runtime adds null, zero, random, tty
        "memory": memory,
        "cpu": {
            "period": CPU_PERIOD_US,
            "quota": max(CPU_QUOTA_US_MIN, sandbox.cpu_millis * CPU_PERIOD_US // 1000),
            "shares": max(CPU_SHARES_MIN, sandbox.cpu_millis * 1024 // 1000),
        },
        "pids": {"limit": sandbox.pids + GATE_PROCESSES},
    }


@functools.cache
def _seccomp(architecture: str) -> msgspec.Raw:
    """The filter for one architecture, encoded once: a process of another one is killed."""
    names = msgspec.json.decode(resources.files(__package__).joinpath("seccomp.json").read_bytes())

    def allow(calls: list[str], *arguments: dict[str, int | str]) -> dict[str, Any]:
        return {"names": calls, "action": "SCMP_ACT_ALLOW", "args": list(arguments)}

    def equals(value: int) -> dict[str, int | str]:
        return {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}

    no_namespaces: dict[str, int | str] = {
        "index": 0,
        "value": _CLONE_NAMESPACES,
        "valueTwo": 0,
        "op": "SCMP_CMP_MASKED_EQ",
    }
    rules = [
        allow(sorted(names["common"] + names[architecture])),
        allow(["clone"], no_namespaces),
        *(allow(["socket"], equals(family)) for family in _SOCKET_FAMILIES),
        *(allow(["personality"], equals(persona)) for persona in _PERSONALITIES),
    ]
    encoded = msgspec.json.encode(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": _ENOSYS,
            "architectures": [_ARCHITECTURES[architecture]],
            "syscalls": rules,
        }
    )
    return msgspec.Raw(encoded)
