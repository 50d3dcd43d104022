"""`pip install tickmesh` is enough for the client and the command line."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]

PROGRAM = """
import sys

class Refused(ImportError):
    pass

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED or name.startswith(("grpc_reflection", "grpc_health")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import importlib, pkgutil
import tickmesh.sdk, tickmesh.sdk.cli
for found in pkgutil.walk_packages(tickmesh.sdk.__path__, "tickmesh.sdk."):
    importlib.import_module(found.name)
from tickmesh.sdk.cli.main import run
sys.exit(run(ARGUMENTS))
"""


def blocked() -> list[str]:
    """What only the extra [server] installs, by the names that are imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [
        text.split("=")[0].split(">")[0] for text in project["optional-dependencies"]["server"]
    ]
    return [name.strip().replace("-", "_") for name in names]


def run_without_the_server_part(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.replace("BLOCKED", repr(blocked())).replace("ARGUMENTS", repr(arguments))
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT
    )


def test_everything_of_the_sdk_is_imported_without_the_server_part() -> None:
    names = blocked()
    assert {"pysyncobj", "rocksdict", "msgspec", "cryptography", "uvloop"} <= set(names)
    done = run_without_the_server_part("--help")
    assert done.returncode == 0, done.stderr
    assert "schedule" in done.stdout


def test_dev_says_what_to_install() -> None:
    done = run_without_the_server_part("dev")
    assert done.returncode == 1
    assert "pip install 'tickmesh[server]'" in done.stderr
