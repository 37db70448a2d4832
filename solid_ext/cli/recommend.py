"""solid-ext recommend: the best items for a history, or for the users of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from solid_ext.cli.sources import Dataset, load_run, open_dataset
from solid_ext.cli.terminal import Terminal, console, notes, one_line, write_json

if TYPE_CHECKING:
    from solid_ext import SOLID


@dataclass(frozen=True)
class Recommend:
    """The best items for a history of raw item ids, oldest first, or for users of a dataset by their histories in it.

    Example: solid-ext recommend --run runs/first --history 50 172 181 --k 5

    Example: solid-ext recommend --run runs/first --k 5 --history -- -a5 --b6

    Example: solid-ext recommend --run runs/first --dataset data/ratings --all-users --k 10 --out recs.parquet

    Example: solid-ext recommend --run runs/first --dataset data/ratings --users 7 12

    Everything after "--" belongs to the history, ids that begin with "-" too. A file is written a block of users after
    the other, so that memory does not grow with their number, and is there whole or not at all.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    history: tuple[str, ...] | None = None
    """Item ids as the interactions had them, oldest first; none for a newcomer. Those that begin with "-" follow
    "--"."""
    dataset: Dataset | None = None
    """The dataset that has the users' histories."""
    users: tuple[str, ...] | None = None
    """Ids of users of the dataset."""
    all_users: bool = False
    """All users of the dataset."""
    out: Path | None = None
    """A file for the users' recommendations, .parquet or .csv."""
    overwrite: bool = False
    """Replace the file if it exists."""
    k: int = 10
    """How many items."""
    keep_history: bool = False
    """Also recommend what is in the history."""
    exclude: tuple[str, ...] | None = None
    """Item ids that are never recommended."""
    include: tuple[str, ...] | None = None
    """Recommend these item ids alone; nothing where none is named."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do about an id that the model has never seen."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        self._check()
        options: dict[str, Any] = {
            "exclude_history": not self.keep_history,
            "exclude": self.exclude,
            "include": self.include,
            "unknown": self.unknown,
        }
        if self.history is None:
            self._of_users(options)
            return
        solid = load_run(self.run_folder)
        with notes():
            found = solid.recommend([self.history], self.k, **options)[0]
        if self.json:
            write_json([entry._asdict() for entry in found], indent=None)
            return
        show_items(found)
        if len(found) < self.k:
            console.print(f"{len(found)} of the {self.k} asked for: there are no more", style="dim")

    def _check(self) -> None:
        """Refuse flags that do not say who is asked about, or do not go together.

        Raises:
            ValueError: with the flags.
        """
        given = {
            "--history": self.history is not None,
            "--users": self.users is not None,
            "--all-users": self.all_users,
        }
        named = [flag for flag, there in given.items() if there]
        if len(named) != 1:
            got = " and ".join(named) or "none"
            raise ValueError(f"recommend: expected one of --history, --users and --all-users, got {got}")
        if self.history is not None and (self.dataset is not None or self.out is not None):
            flag = "--out" if self.dataset is None else "--dataset"
            raise ValueError(f"recommend: expected {flag} beside --users or --all-users, got it beside --history")
        if self.history is None and self.dataset is None:
            raise ValueError(f"recommend: expected --dataset NAME|PATH beside {named[0]}, got none")
        if self.all_users and self.out is None:
            raise ValueError("recommend: expected --out FILE beside --all-users, got none")

    def _of_users(self, options: dict[str, Any]) -> None:
        from solid_ext.serve.users import checked_out, write_users

        assert self.dataset is not None
        out = None if self.out is None else checked_out(self.out, overwrite=self.overwrite)
        solid: SOLID = load_run(self.run_folder)
        dataset = open_dataset(self.dataset)
        with notes():
            query = solid.user_query(dataset, self.users, self.k, **options)
        if out is not None:
            with progress("users", len(query.users)) as told:
                write_users(query, out, told=told)
            console.print(f"{len(query.users):,} users in {out}")
            return
        rows = [row for frame in query for row in frame.iter_rows(named=True)]
        if self.json:
            write_json(rows, indent=None)
            return
        table = Table("user", "rank", "item", "title", "score")
        for row in rows:
            named = (one_line(str(row["item_id"])), one_line(row["title"]))
            table.add_row(one_line(str(row["user_id"])), str(row["rank"]), *named, f"{row['score']:.3f}")
        console.print(table)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's stderr, and what tells it of work done."""
    columns = (TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    stderr = Terminal(stderr=True)
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def show_items(found: Sequence[Any], score: str = "score") -> None:
    """Print a table of items with their titles and scores."""
    table = Table("item", "title", score)
    for entry in found:
        table.add_row(one_line(str(entry.item)), one_line(entry.title), f"{entry.score:.3f}")
    console.print(table)


def before_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What the parser reads of the arguments of a command with a history, and the ids after `--`, which it would take
    for flags."""
    if arguments[:1] not in (["recommend"], ["score"], ["explain"]) or "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    before, after = arguments[:place], arguments[place + 1 :]
    named = any(argument.partition("=")[0] == "--history" for argument in before)
    return before if named else [*before, "--history"], after
