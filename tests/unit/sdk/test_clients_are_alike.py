"""sync.py is aio.py with the words of asyncio replaced. REWRITE=1 writes it anew."""

import os
import re
import subprocess
import sys
from pathlib import Path

SDK = Path(__file__).parents[3] / "src" / "sdk"

REPLACED = (
    (r"\basync (def|for|with) ", r"\1 "),
    (r"\bawait ", ""),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    (r"(\w+)AsyncStub\b", r"\1Stub"),
    (r"__a(iter|enter|exit)__", r"__\1__"),
    (r"\baclose\b", "close"),
    (
        r'"""The asyncio client\. sync\.py.*?change this one\.\n',
        '"""The blocking client, for any thread: made from aio.py, the asyncio one, which is\n'
        "the one to change (see tests/unit/sdk/test_clients_are_alike.py).\n",
    ),
)


def blocking(source: str) -> str:
    for pattern, replacement in REPLACED:
        source = re.sub(pattern, replacement, source, flags=re.DOTALL)
    for command in (("check", "--fix", "--quiet", "--select", "I"), ("format", "--quiet")):
        source = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", "src/sdk/sync.py", "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
            cwd=SDK.parents[1],
        ).stdout
    return source


def test_the_blocking_client_is_made_from_the_asyncio_one() -> None:
    wanted = blocking((SDK / "aio.py").read_text())
    if os.environ.get("REWRITE"):
        (SDK / "sync.py").write_text(wanted)
    assert (SDK / "sync.py").read_text() == wanted
