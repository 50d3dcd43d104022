"""What the command line prints, word for word: transcripts/*.txt, run against a gateway in memory.

    # a comment
    % fail                          executions do this from now on (a method of FakeGateway)
    $ tickmesh job get nobody       run, in a directory with files/*
    ! error: ...                    a line of stderr
    = 3                             the exit code, if it is not 0

REWRITE=1 writes what came out; look at the difference before you keep it.
"""

import os
import shlex
import shutil
from pathlib import Path

import pytest

from tests.unit.sdk.fake_gateway import FakeGateway
from tickmesh.sdk.cli.main import run

HERE = Path(__file__).parent
TRANSCRIPTS = sorted((HERE / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(
    transcript: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(HERE / "files", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TICKMESH_CUSTOMER", raising=False)
    gateway = FakeGateway()
    lines = transcript.read_text().splitlines()
    came_out: list[str] = []
    with gateway.serving() as address:
        monkeypatch.setenv("TICKMESH_ADDRESS", address)
        for line in lines:
            if line.startswith("% "):
                gateway.run = getattr(gateway, line[2:])
                came_out += [line]
            elif line.startswith("#"):
                came_out += [line]
            elif line.startswith("$ tickmesh"):
                code = run(shlex.split(line[2:])[1:])
                out, err = capfd.readouterr()
                shown = [line, *out.splitlines(), *(f"! {text}" for text in err.splitlines())]
                shown += [f"= {code}"] if code else []
                came_out += [text.replace(address, "GATEWAY").rstrip() for text in shown] + [""]
    result = "\n".join(came_out).rstrip() + "\n"
    if os.environ.get("REWRITE"):
        transcript.write_text(result)
    assert transcript.read_text() == result
