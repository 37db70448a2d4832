"""The command line: a file a command."""

from solid_ext.cli.entry import COMMANDS, main

__all__ = ["COMMANDS", "main"]
