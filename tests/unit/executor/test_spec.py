"""The sandbox's specification, byte for byte, and what must never be missing from it.

The golden files are read by people: `TICKMESH_REWRITE=1 pytest tests/unit/executor/test_spec.py`
writes them anew, for a change that was meant.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tickmesh.executor import gate, limits, spec

GOLDEN = Path(__file__).parent / "golden"

SANDBOX = spec.SandboxSpec(
    name="fire-0001-1",
    architecture="x86_64",
    cgroup_path="/tickmesh-x/fire-0001-1",
    exchange_directory="/var/lib/tickmesh/sandboxes/fire-0001-1/io",
    uid=65534,
    gid=65534,
    memory_bytes=256 << 20,
    cpu_millis=500,
    pids=128,
    scratch_bytes=64 << 20,
)


def document(**changes: Any) -> dict[str, Any]:
    built: dict[str, Any] = json.loads(spec.build(dataclasses.replace(SANDBOX, **changes)))
    return built


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("spec-x86_64", {}),
        ("spec-aarch64", {"architecture": "aarch64"}),
        (
            "spec-by-a-plan",
            {
                "id_base": limits.ID_BASE,
                "capabilities": ("CAP_CHOWN", "CAP_NET_BIND_SERVICE"),
                "command": (gate.PROGRAM, "direct"),
            },
        ),
    ],
)
def test_the_document_is_the_golden_one(name: str, changes: dict[str, Any]) -> None:
    text = json.dumps(document(**changes), indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("TICKMESH_REWRITE"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_same_sandbox_gives_the_same_bytes() -> None:
    assert spec.build(SANDBOX) == spec.build(dataclasses.replace(SANDBOX))


def test_nothing_is_allowed_by_default() -> None:
    built = document()
    assert built["process"]["noNewPrivileges"] is True
    assert all(names == [] for names in built["process"]["capabilities"].values())
    assert built["root"]["readonly"] is True
    assert built["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {n["type"] for n in built["linux"]["namespaces"]} == {
        "pid", "ipc", "uts", "mount", "network", "cgroup",
    }  # fmt: skip
    assert all("path" not in n for n in built["linux"]["namespaces"])
    writable = [m["destination"] for m in built["mounts"] if "ro" not in m["options"]]
    assert writable == ["/proc", "/dev", "/dev/pts", "/dev/shm", "/tmp"]


def test_its_root_is_an_id_that_the_host_gives_to_nobody() -> None:
    linux = document(id_base=limits.ID_BASE)["linux"]
    mapping = [{"containerID": 0, "hostID": 1_966_080_000, "size": 65_536}]
    assert linux["uidMappings"] == linux["gidMappings"] == mapping
    assert {"type": "user"} in linux["namespaces"]
    assert limits.ID_BASE + limits.IDS < 2**31
    assert not {"uidMappings", "gidMappings"} & document()["linux"].keys()


def test_sysfs_is_mounted_only_where_the_network_is_the_sandboxs_own() -> None:
    def kind(**changes: Any) -> str:
        (found,) = [m["type"] for m in document(**changes)["mounts"] if m["destination"] == "/sys"]
        return str(found)

    assert kind(id_base=1 << 20) == "sysfs"
    assert kind(network_namespace="/run/x") == "sysfs"
    assert kind(id_base=1 << 20, network_namespace="/run/x") == "tmpfs"


def test_limits_are_of_the_specification_that_runtimes_turn_into_either_cgroup_version() -> None:
    """The OCI specification has the names of version 1; for version 2 runtimes convert: swap is
    memory and swap together there, so that equal values mean none; shares become a weight."""
    resources = document()["linux"]["resources"]
    assert set(resources) == {"devices", "memory", "cpu", "pids"}
    assert resources["memory"]["swap"] == resources["memory"]["limit"]
    assert 2 <= resources["cpu"]["shares"] <= 262_144
    assert resources["cpu"]["period"] == 100_000
    assert resources["devices"][0] == {"allow": False, "access": "rwm"}


def test_no_dangerous_system_call_is_allowed() -> None:
    for architecture in ("x86_64", "aarch64"):
        rules = document(architecture=architecture)["linux"]["seccomp"]["syscalls"]
        free = {name for rule in rules if not rule["args"] for name in rule["names"]}
        assert not free & {
            "add_key", "bpf", "clone", "clone3", "delete_module", "finit_module", "init_module",
            "io_uring_setup", "kexec_load", "keyctl", "mount", "move_mount", "open_by_handle_at",
            "open_tree", "perf_event_open", "personality", "pivot_root", "process_vm_writev",
            "ptrace", "reboot", "request_key", "setns", "socket", "swapon", "umount2", "unshare",
            "userfaultfd",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "path", "expected"),
    [
        ({"memory_bytes": 1 << 20}, "memory", {"limit": 1 << 20, "swap": 1 << 20}),
        (
            {"memory_bytes": 1 << 20, "swap_accounting": False},
            "memory",
            {"limit": 1 << 20, "swappiness": 0},
        ),
        ({"cpu_millis": 1}, "cpu", {"period": 100_000, "quota": 1_000, "shares": 2}),
        ({"cpu_millis": 2000}, "cpu", {"period": 100_000, "quota": 200_000, "shares": 2048}),
        ({"pids": 1}, "pids", {"limit": 2}),
    ],
)
def test_limits_become_the_kernels(
    changes: dict[str, Any], path: str, expected: dict[str, int]
) -> None:
    assert document(**changes)["linux"]["resources"][path] == expected


@pytest.mark.parametrize("field", ["memory_bytes", "cpu_millis", "pids"])
def test_a_limit_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        document(**{field: 0})


def test_only_what_is_harmless_in_a_user_namespace_is_granted_and_only_there() -> None:
    granted = document(id_base=limits.ID_BASE, capabilities=("CAP_KILL",))["process"]
    assert granted["noNewPrivileges"] is True
    assert set(granted["capabilities"]) == {
        "bounding", "effective", "inheritable", "permitted", "ambient",
    }  # fmt: skip
    assert all(names == ["CAP_KILL"] for names in granted["capabilities"].values())
    with pytest.raises(ValueError, match="need a user namespace"):
        document(capabilities=("CAP_KILL",))
    for name in ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_MKNOD"):
        with pytest.raises(ValueError, match=name):
            document(id_base=limits.ID_BASE, capabilities=("CAP_KILL", name))


def test_a_long_name_is_cut_to_a_host_name() -> None:
    assert document(name="a" * 62 + "-bcd")["hostname"] == "a" * 62


def test_a_host_may_allow_fewer_open_files() -> None:
    limits = document(open_files_max=512)["process"]["rlimits"]
    assert limits[0] == {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 512}
