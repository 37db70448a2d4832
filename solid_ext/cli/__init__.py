"""The command line: prepare, train, update, evaluate, recommend, compare, tune, doctor."""

from solid_ext.cli.entry import COMMANDS, main

__all__ = ["COMMANDS", "main"]
