"""`tickmesh completion`: for shells."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  echo 'eval "$(tickmesh completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(tickmesh completion zsh)"' >> ~/.zshrc
    fish:  tickmesh completion fish > ~/.config/fish/completions/tickmesh.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root().command
    print(kind(root, {}, "tickmesh", "_TICKMESH_COMPLETE").source())
