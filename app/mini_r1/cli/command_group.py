"""Groups of commands, with a suggestion for a mistyped name."""

import difflib

import click
from typer.core import TyperGroup


class CommandGroup(TyperGroup):
    """Group whose error for an unknown command names the nearest one, also below another group."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = {name: name for name in self.commands}
            for name, group in self.commands.items():
                known |= {below: f"{name} {below}" for below in getattr(group, "commands", ())}
            near = difflib.get_close_matches(args[0], known, n=1)
            if near:
                error.message += f" Did you mean `{ctx.command_path} {known[near[0]]}`?"
            raise
