"""Shell completion."""

import pytest
from click.shell_completion import BashComplete

from tickmesh.sdk.cli.main import cli, run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_TICKMESH_COMPLETE" in script and f"{shell}_complete" in script


@pytest.mark.parametrize(
    ("words", "incomplete", "completed"),
    [
        ([], "sch", ["schedule"]),
        (["schedule"], "p", ["pause", "preview"]),
        (["schedule", "create"], "--ev", ["--every"]),
        (["job", "list", "-o"], "j", ["json"]),
    ],
)
def test_words_are_completed(words: list[str], incomplete: str, completed: list[str]) -> None:
    completer = BashComplete(cli, {}, "tickmesh", "_TICKMESH_COMPLETE")
    found = completer.get_completions(words, incomplete)
    assert [item.value for item in found] == completed
