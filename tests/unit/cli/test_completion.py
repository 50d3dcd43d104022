"""Shell completion."""

import os
import subprocess
import sys

import pytest

from tickmesh.sdk.cli.main import run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_TICKMESH_COMPLETE" in script and f"{shell}_complete" in script


def test_commands_and_verbs_are_completed() -> None:
    def complete(words: str) -> list[str]:
        environment = {
            **os.environ,
            "_TICKMESH_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-m", "tickmesh"], env=environment, capture_output=True, text=True
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("tickmesh sch") == ["schedule"]
    assert complete("tickmesh schedule p") == ["pause", "preview"]
    assert "--every" in complete("tickmesh schedule create --ev")
