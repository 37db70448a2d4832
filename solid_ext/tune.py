"""Hyperparameter search by Optuna, on the validation metric alone; the test rows are never looked at."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from solid_ext.compare.grid import base_config
from solid_ext.config import PRESETS, Config, unknown_field
from solid_ext.data import Dataset
from solid_ext.data.semantics import semantics_source
from solid_ext.files import LOCK, checked_path, digest, owned, read_json, write_json, write_text, written
from solid_ext.methods import METHODS, method_config
from solid_ext.models.backbones import BACKBONES
from solid_ext.run import holds_run, open_run
from solid_ext.solid import SOLID

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


class Range(NamedTuple):
    """Numbers from low to high, integers if both are; on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False


SPACE: dict[str, Range | tuple[int, ...]] = {
    "learning_rate": Range(1e-4, 1e-2, log=True),
    "weight_decay": Range(1e-6, 1.0, log=True),
    "dropout": Range(0.0, 0.6),
    "delta": Range(1e-3, 1.0, log=True),
    "alignment": Range(1e-3, 10.0, log=True),
    "num_semantics": Range(16, 1024, log=True),
    "negatives": Range(1, 64, log=True),
    "batch_size": (256, 512, 1024, 2048),
    "dim": (16, 32, 64, 128),
    "length": (10, 20, 50),
    "blocks": (1, 2, 3),
    "dynamic_layers": (1, 2, 3),
}
"""The fields that can be searched, each in its range or among its choices."""


@dataclass(frozen=True)
class Search:
    """What is searched: `names` of `SPACE`, around `config`; every trial has the configuration's seed."""

    names: tuple[str, ...]
    config: Config


class Trial(NamedTuple):
    """A finished trial: the values it tried and the validation metric it reached (None where it diverged)."""

    number: int
    values: dict[str, Any]
    metric: float | None


READ: dict[str, Callable[[Config], bool]] = {
    "delta": lambda config: config.model.item.item_branch,
    "alignment": lambda config: (
        config.model.semantic_trunk and config.model.item.item_branch and config.model.item.codebook.use_codebook
    ),
    "num_semantics": lambda config: (
        config.model.semantic_trunk
        or config.train.semantic_start
        or (config.model.item.item_branch and config.model.item.codebook.use_codebook)
    ),
    "negatives": lambda config: config.train.loss != "full_softmax",
    "blocks": lambda config: config.model.backbone not in ("din", "gru4rec"),
}
"""Which configurations read a field; the other fields of `SPACE` are read by all."""


def make_search(
    names: Sequence[str], method: str, backbone: str, preset: str, fields: Mapping[str, Any], seed: int
) -> Search:
    """A search, refused with one sentence unless its trials can be started.

    Raises:
        ValueError, TypeError: an unknown or repeated name, or a configuration out of range.
    """
    if not names:
        raise ValueError("fields: expected at least one, got none")
    for name in names:
        if name not in SPACE:
            raise ValueError(f"fields: {unknown_field(name, SPACE)}")
        if list(names).count(name) > 1:
            raise ValueError(f"fields: expected different ones, got {name!r} twice")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    if backbone not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {backbone!r}")
    fixed = [name for name in names if name in METHODS[method].fields]
    if fixed:
        raise ValueError(f"fields: expected fields that method {method} leaves open, got {fixed[0]}, which it sets")
    config = method_config(base_config(preset, backbone, fields).replace(seed=seed), method)
    # All choices together: what one trial would be refused for is said before the first.
    spaces = [where[:1] if isinstance(where, Range) else where for where in map(SPACE.__getitem__, names)]
    for values in product(*spaces):
        try:
            config.replace(**dict(zip(names, values, strict=True)))
        except ValueError as error:
            tried = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise ValueError(f"fields: expected values that go with the other fields, got {tried}: {error}") from error
    return Search(tuple(names), config)


def _check_read(search: Search, dataset: Dataset) -> None:
    """Refuse a field that no trial would read: all would be the same."""
    config = search.config.resolved(dataset.num_users, dataset.num_items)
    for name in search.names:
        read = name not in READ or READ[name](config)
        if name == "num_semantics" and semantics_source(config.semantics, dataset) == "category":
            read = False
        if not read:
            raise ValueError(
                f"fields: expected fields that the trials read, got {name}, which method, backbone, loss "
                f"{config.train.loss} or semantics leave unread here"
            )


def tune(
    out: Path,
    search: Search,
    dataset: Dataset,
    *,
    trials: int = 20,
    storage: str | None = None,
    on_finished: Callable[[Trial], None] | None = None,
) -> Trial:
    """Try values by Optuna's TPE until there are `trials` finished ones, and write `best.yaml`.

    The metric is the configuration's `validation`, of the last stage's best epoch. The same call again
    goes on where the last one stopped, a trial's stages included, and finds what it would have found in one go: the
    sampler of a trial is seeded by its number, and Optuna's journal is lines of JSON.

    Args:
        out: `search.json`, `journal.log`, `best.yaml` (the fields that differ from the configuration's defaults).
        storage: where several processes keep the trials of one search, each with an `out` of its own: a journal file,
            or the URL of a database (SQLAlchemy's). They go on until all together have so many; what a trial tries
            then depends on which others have ended. A trial whose process is killed is lost, and another one made.
        on_finished: called after each trial of this process.

    Raises:
        ValueError: no Optuna, no trials asked for, a field that no trial reads, a storage that does not answer, or
            `out` is no folder of this very search; all trials diverged.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("tune: expected the package optuna (pip install 'solid_ext[tune]'), found none") from error
    if trials < 1:
        raise ValueError(f"trials: expected at least 1, got {trials}")
    _check_read(search, dataset)
    checked_path(out, "out")
    held = {entry.name for entry in out.iterdir()} if out.is_dir() else {"a file"} if os.path.lexists(out) else set()
    if "search.json" not in held and held - {LOCK}:
        raise ValueError(f"out: expected a new folder or one of this search, got {out}, which holds something else")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with owned(out, "out"):
        _open(out, search, dataset)
        study = _study(out, storage)
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        owner = f"{platform.node()}:{out.absolute()}"
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # those that a kill left behind
            if storage is None or trial.user_attrs.get("owner") == owner:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        space = _space(search, dataset)
        while (number := len(study.get_trials(states=ended))) < trials:
            # Of several processes two with one seed might try the same.
            seed = (search.config.train.seed + number) % 2**32 if storage is None else None
            study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=storage is not None)
            asked = study.ask(space)
            asked.set_user_attr("owner", owner)
            folder = out / "trials" / str(number if storage is None else asked.number)
            metric = _train(folder, search.config.replace(**asked.params), dataset)
            if metric is None:  # Optuna then looks elsewhere, as after a trial that was given up
                study.tell(asked, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(asked, metric)
            shutil.rmtree(folder)
            if on_finished is not None:
                on_finished(Trial(number, asked.params, metric))
        finished = study.get_trials(states=ended)
        values = {number: trial.value for number, trial in enumerate(finished) if trial.value is not None}
        if not values:
            raise ValueError(
                f"tune: expected a trial that trains to an end, got {len(finished)} that diverged (the fields that are "
                "not searched, learning_rate, weight_decay and alignment among them, may be too large)"
            )
        best = max(values, key=lambda number: (values[number], -number))
        _write_best(out / "best.yaml", search.config.replace(**finished[best].params))
        return Trial(best, finished[best].params, float(values[best]))


def _study(out: Path, storage: str | None) -> optuna.Study:
    """The search's trials so far: in the folder's own journal, or under the search's name where others keep theirs."""
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import SQLAlchemyError

    journal, name = out / "journal.log", "tune"
    if storage is None:
        _mend(journal)
    else:
        journal, name = Path(storage), f"tune {digest(out / 'search.json')}"
        _expect_whole(journal)
    try:
        # Not Optuna's own choice by URL: with Redis it reads pickles.
        of_url = storage is not None and "://" in storage
        where = RDBStorage(str(storage)) if of_url else JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(storage=where, study_name=name, direction="maximize", load_if_exists=True)
    except (ImportError, OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ValueError(
            f"storage: expected a file, or the URL of a database that answers, got {type(error).__name__} from it"
        ) from error
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise _damaged(journal, f"lines that tell of no search, {error!r:.80}") from error


def _mend(journal: Path) -> None:
    """Drop the line that a kill left half written; refuse a journal with any other that is no JSON object."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = _whole_lines(journal, content)
    if whole != content:
        with written(journal) as partial:
            partial.write_bytes(whole)


def _expect_whole(journal: Path) -> None:
    """Refuse a shared journal that ends within a line, to which Optuna would append the next; others may be writing."""
    for _ in range(10):
        if not journal.is_file():
            return
        content = journal.read_bytes()
        if _whole_lines(journal, content) == content:
            return
        time.sleep(0.1)
    raise ValueError(
        f"storage: expected a journal of whole lines in {journal}, got a last one that is cut off (remove it while "
        "nobody searches)"
    )


def _whole_lines(journal: Path, content: bytes) -> bytes:
    """The lines that have an end; refused where one of them is no JSON object."""
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise _damaged(journal, f"another, line {number}")
    return whole


def _damaged(journal: Path, found: str) -> ValueError:
    return ValueError(f"out: expected a journal of lines of JSON in {journal}, got {found} (search in a new folder)")


def _open(out: Path, search: Search, dataset: Dataset) -> None:
    """Make the folder of this search, or see that it is one."""
    asked = json.loads(json.dumps({**asdict(search), "fingerprint": dataset.fingerprint}))
    path = out / "search.json"
    if not path.exists():
        write_json(path, asked)
    saved = read_json(path, "out")
    if saved != asked:
        what = next((name for name in asked if saved.get(name) != asked[name]), "others")
        raise ValueError(f"out: expected a new folder or one of this search, got {out}, whose {what} differ")


def _space(search: Search, dataset: Dataset) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name in search.names:
        where = SPACE[name]
        if not isinstance(where, Range):
            found[name] = CategoricalDistribution(where)
        elif isinstance(where.low, int):
            high = int(where.high)
            if name == "num_semantics":  # a cluster of less than four items is hardly one
                high = max(min(high, dataset.num_items // 4), where.low)
            found[name] = IntDistribution(where.low, high, log=where.log)
        else:
            found[name] = FloatDistribution(where.low, where.high, log=where.log)
    return found


def _train(folder: Path, config: Config, dataset: Dataset) -> float | None:
    """The validation metric that a configuration reaches, None where it diverges; a stopped trial goes on."""
    resume = holds_run(folder)
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    open_run(folder, config, dataset, resume=resume, overwrite=False)
    try:
        return SOLID(config).fit(dataset, folder=folder).training.stages[-1].best.valid
    except FloatingPointError:
        return None


def _write_best(path: Path, config: Config) -> None:
    """The fields that differ from the defaults, without what belongs to one run alone."""
    fields = {name: value for name, value in config.changes().items() if name not in ("seed", "threads")}
    write_text(path, yaml.safe_dump(fields, sort_keys=False))
