"""Our static programs for each machine that we build for: this one's run as they are, the other's
under QEMU's user-mode emulation where Debian's qemu-user-static is installed."""

import platform
import shutil
from pathlib import Path

import pytest

from tickmesh.executor import gate

HERE = platform.machine()


def _needs_emulator(machine: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        machine != HERE and emulator(machine) is None,
        reason=f"{machine}'s programs run here only under `qemu-{machine}-static` (Debian package: "
        "qemu-user-static)",
    )


def emulator(machine: str) -> str | None:
    """The program that runs another machine's."""
    return shutil.which(f"qemu-{machine}-static")


MACHINES = [
    pytest.param(machine, marks=_needs_emulator(machine)) for machine in ("x86_64", "aarch64")
]


def program(name: str, machine: str) -> Path:
    """The file of `gate` or `recorder` for a machine."""
    return gate.program(name).with_name(f"{name}-{machine}")


def command(name: str, machine: str) -> list[str]:
    """How one is started here."""
    path = str(program(name, machine))
    if machine == HERE:
        return [path]
    emulated_by = emulator(machine)
    assert emulated_by is not None, "a test whose machine is one of MACHINES is skipped then"
    return [emulated_by, path]
