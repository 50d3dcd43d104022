"""What `pip install` brings: the client alone, the whole mesh with [server], and nothing forgotten.

Wheels come from uv's cache, which `scripts/test` has just filled, or from the package index.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
DEADLINE_S = 120.0
NOT_INSTALLED = {".c", ".h", ".md"}
"""Sources of programs that are installed built, and what is written for who changes them."""


async def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        output, errors = await process.communicate()
    assert process.returncode == 0, f"{command}:\n{output.decode()}{errors.decode()}"
    return output.decode()


async def environment(directory: Path, *install: str | Path) -> Path:
    """A new virtual environment with these; answers where its programs are."""
    await run(UV, "venv", "--quiet", "--python", sys.executable, directory, cwd=directory.parent)
    programs = directory / "bin"
    await run(
        *(UV, "pip", "install", "--quiet", "--python", programs / "python", *install),
        cwd=directory.parent,
    )
    return programs


async def locked(directory: Path) -> Path:
    """A constraints file with the versions that uv.lock names."""
    text = await run(
        *(UV, "export", "--quiet", "--locked", "--all-extras", "--no-hashes"),
        *("--no-emit-project", "--format", "requirements-txt"),
        cwd=ROOT,
    )
    path = directory / "constraints.txt"
    path.write_text(text)
    return path


async def wheel(directory: Path) -> Path:
    """Ours, by way of a source distribution, and of a copy: nothing is written into the tree."""
    copy = directory / "copy"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tickmesh").symlink_to("src")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    await run(UV, "build", "--quiet", "--out-dir", directory / "dist", cwd=copy)
    (found,) = (directory / "dist").glob("*.whl")
    return found


async def installed(programs: Path) -> dict[str, str]:
    """Names and versions of the distributions in an environment."""
    text = await run(
        *(UV, "pip", "list", "--format", "json", "--python", programs / "python"),
        cwd=programs,
    )
    return {entry["name"].lower(): entry["version"] for entry in json.loads(text)}


def project() -> Any:
    """The table [project] of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def server_requirements() -> set[str]:
    """Names of the distributions that only the extra [server] asks for."""
    found = set()
    for text in project()["optional-dependencies"]["server"]:
        name = re.match(r"[\w.-]+", text)
        assert name is not None
        found.add(name.group().lower())
    return found


async def test_a_wheel_has_all_that_runs_and_the_client_needs_no_server(tmp_path: Path) -> None:
    built, constraints = await wheel(tmp_path), await locked(tmp_path)
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    copy = tmp_path / "copy" / "src"
    wanted = {
        f"tickmesh/{path.relative_to(copy)}"
        for path in copy.rglob("*")
        if path.is_file() and path.suffix not in NOT_INSTALLED
    }
    assert names == wanted
    assert {"tickmesh/py.typed", "tickmesh/proto/tickmesh.binpb"} <= names

    client = await environment(tmp_path / "client", built, "--constraint", constraints)
    assert not server_requirements() & set(await installed(client))
    await run(client / "python", "-c", "import tickmesh.sdk", cwd=tmp_path)
    assert "schedule" in await run(client / "tickmesh", "--help", cwd=tmp_path)

    server = await environment(tmp_path / "server", f"{built}[server]", "--constraint", constraints)
    mesh = await asyncio.create_subprocess_exec(
        *(server / "tickmesh", "dev", "--runtime", "inprocess"),
        *("--port", "0", "--data", tmp_path / "data"),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert mesh.stdout is not None
            first = (await mesh.stdout.readline()).decode()
        serves = re.search(r" at (\S+:\d+):", first)
        assert serves is not None, first or (await mesh.communicate())[1].decode()
        address = serves.group(1)
        told = await run(client / "tickmesh", "--address", address, "cluster", cwd=tmp_path)
        assert "executor-0" in told
    finally:
        if mesh.returncode is None:
            mesh.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                await mesh.communicate()
    assert mesh.returncode == 0


async def test_the_client_works_with_the_oldest_versions_that_it_admits(tmp_path: Path) -> None:
    """The newest are those of uv.lock, with which everything else is tested."""
    built = await wheel(tmp_path)
    oldest = await environment(
        tmp_path / "oldest",
        *("--resolution", "lowest-direct", built, *project()["dependencies"]),
        *(
            "pytest>=8.4",
            "pytest-asyncio>=1.2",
            "pytest-timeout>=2.4",
            "trustme>=1.2",
            "ruff>=0.13",
        ),
    )
    versions = await installed(oldest)
    assert (versions["grpcio"], versions["protobuf"]) == ("1.76.0", "6.31.1")
    await run(
        *(oldest / "python", "-m", "pytest", "-p", "no:cacheprovider", "tests/unit/sdk"),
        cwd=ROOT,
    )
