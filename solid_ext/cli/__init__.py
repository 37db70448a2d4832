"""The command line: prepare, train, update, evaluate, recommend, serve, compare, tune, doctor."""

from solid_ext.cli.entry import COMMANDS, main

__all__ = ["COMMANDS", "main"]
