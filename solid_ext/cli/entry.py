"""From the arguments of a process to a command, and from its end to an exit code."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from argparse import ArgumentParser
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from io import TextIOWrapper
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro

from solid_ext.cli.add_items import AddItems
from solid_ext.cli.compare import Compare
from solid_ext.cli.doctor import Doctor, Version
from solid_ext.cli.evaluate import Evaluate
from solid_ext.cli.explain import Explain
from solid_ext.cli.export import Export
from solid_ext.cli.prepare import Prepare
from solid_ext.cli.recommend import Recommend, before_dashes
from solid_ext.cli.replay import Replay
from solid_ext.cli.score import Score
from solid_ext.cli.serve import Serve
from solid_ext.cli.similar import Similar
from solid_ext.cli.terminal import complain
from solid_ext.cli.train import Train, as_begun, refuse_old_flags
from solid_ext.cli.tune import Tune
from solid_ext.cli.update import Update
from solid_ext.cli.vectors import Vectors
from solid_ext.config import PRESETS, Config

COMMANDS: dict[str, type] = {
    "prepare": Prepare,
    "train": Train,
    "update": Update,
    "add-items": AddItems,
    "evaluate": Evaluate,
    "recommend": Recommend,
    "similar": Similar,
    "score": Score,
    "vectors": Vectors,
    "explain": Explain,
    "export": Export,
    "serve": Serve,
    "compare": Compare,
    "tune": Tune,
    "replay": Replay,
    "doctor": Doctor,
}


class Command(Protocol):
    """A dataclass whose fields are the command's flags."""

    def run(self) -> None:
        """Do it, and print what came of it."""


def parse(arguments: list[str]) -> Command:
    """Read the command line.

    The defaults of train's flags are those of the run that is resumed or the package's, over them `--preset`'s, and
    over those the fields of `--config FILE`.
    """
    if arguments == ["--version"]:
        return Version()
    scan = ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--config")
    scan.add_argument("--preset")
    scan.add_argument("--out")
    scan.add_argument("--resume", action="store_true")
    given = scan.parse_known_args(arguments)[0]
    training = Train(tyro.MISSING, tyro.MISSING)
    if arguments[:1] == ["train"]:
        refuse_old_flags(arguments[1:])
        if given.resume and given.out and not {"-h", "--help"} & {*arguments}:
            training = as_begun(Path(given.out))
    settings = training.settings.replace(**PRESETS.get(given.preset, {}))
    training = replace(training, settings=Config.from_yaml(given.config, settings) if given.config else settings)
    subcommand = tyro.conf.subcommand
    commands: Any = [
        Annotated[command, subcommand(name, default=training) if command is Train else subcommand(name)]
        for name, command in COMMANDS.items()
    ]
    arguments, after = before_dashes(arguments)
    said = f"The command line: {', '.join(COMMANDS)}."
    union: Any = reduce(or_, commands)
    command = tyro.cli(union, prog="solid-ext", description=said, args=arguments)
    if isinstance(command, (Recommend, Score, Explain)) and after:
        return replace(command, history=(*(command.history or ()), *after))
    return command


def in_flags(sentence: str, command: object) -> str:
    """An error's sentence with the arguments of Python as the command has them: `--overwrite`, `--unknown ignore`."""

    def flag(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[2].strip("'\"")
        return f"--{'no-' if value == 'False' else ''}{name}" + (
            f" {value}" if value not in ("True", "False", "") else ""
        )

    known = "|".join(field.name for field in fields(command)) if is_dataclass(command) else ""
    if not known or "--" in sentence:  # it speaks of flags already
        return sentence
    return re.sub(rf"(?<![\w.-])({known})=(True|False|'[^']*'|\"[^\"]*\"|[\d.]*)(?![\w(\[])", flag, sentence)


def kept_of(command: object) -> str:
    """What a stopped command leaves, for the sentence that says that it was stopped."""
    if isinstance(command, Train):
        begun = any(command.out.glob("stage*/last.safetensors"))
        return f"; what is trained is kept, and {going_on(command)} goes on" if begun else " before the first epoch"
    if isinstance(command, (Compare, Tune)):
        return "; what finished is kept, the same command goes on"
    return "; nothing was written" if isinstance(command, (Prepare, Update, AddItems)) else ""


def going_on(command: Train) -> str:
    """The command line that goes on with a run that was stopped."""
    return f"`solid-ext train --resume --out {shlex.quote(str(command.out))}`"


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `solid-ext`: bad input ends in one sentence and exit code 2, a signal in 128 + its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this (`>&-`): what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # whatever the locale, no character of a title ends a command
            stream.reconfigure(errors="backslashreplace")
    command = None
    try:
        try:
            command = parse(sys.argv[1:] if arguments is None else arguments)
            command.run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output has gone (`| head`). What is left in the buffer goes nowhere, or the interpreter's own
        # flush at the end would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))
        if os.environ.get("SOLID_EXT_TRACEBACK") or (isinstance(error, RuntimeError) and not short):
            raise
        complain(f"memory: expected enough of it, got too little ({error})" if short else in_flags(str(error), command))
        sys.exit(2)
    except KeyboardInterrupt as stop:  # with another signal's number, where it was another
        complain(f"stopped{kept_of(command)}")
        sys.exit(128 + (stop.args or (signal.SIGINT,))[0])
