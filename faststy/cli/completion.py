"""`faststy completion`: a script that teaches the shell faststy's commands and options."""

import click
from click.shell_completion import get_completion_class

# A ~/.zshrc may have no completion system yet.
COMPINIT = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(faststy completion bash)"        in ~/.bashrc
    zsh:   eval "$(faststy completion zsh)"         in ~/.zshrc
    fish:  faststy completion fish > ~/.config/fish/completions/faststy.fish
    """
    script = get_completion_class(shell)
    assert script is not None  # the three above are click's own
    text = script(ctx.find_root().command, {}, "faststy", "_FASTSTY_COMPLETE").source()
    if shell == "zsh":  # after the first line, #compdef, which stays the first in a file
        text = text.replace("\n", f"\n{COMPINIT}\n", 1)
    click.echo(text)
