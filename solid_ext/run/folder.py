"""A run's folder: begun, resumed, replaced, and left as it was by a run that fails before its first epoch."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from solid_ext import distributed
from solid_ext._native import build_info
from solid_ext.config import Config
from solid_ext.data import Dataset
from solid_ext.files import LOCK, check_replaceable, checked_path, read_json, write_json, write_text
from solid_ext.model_folder import foreign_model
from solid_ext.solid import REFIT
from solid_ext.train.stage_folder import FAULT, check_resumed, check_version, is_begun

DESCRIPTION = "run.json"
PROFILE = "profile"
COPY = ".run.json"  # of the description, which is small and which everything hangs on
STAGES, RIVAL = ("stage1", "stage2"), "static"
MODEL, MEASURED = "model", "measured"  # for use; and, of a refitted run, the one that the metrics are of
BEGUN = {LOCK, "config.yaml", DESCRIPTION, COPY}  # what a run has before its first epoch
FOLDERS = {*STAGES, RIVAL, MODEL, MEASURED, REFIT, "tensorboard", PROFILE}
WRITTEN = {*BEGUN, *FOLDERS, "semantics.safetensors", "metrics.json", "users.parquet", "report.png", FAULT}
REPLACED = ".replaced"  # the run that is overwritten, until the new one has an epoch
SERVED = {MODEL, MEASURED}  # which readers have open: they stay until the new run's take their place


class Begun(NamedTuple):
    """What a run was begun with, for who goes on with it."""

    config: Config
    method: str
    baseline: bool
    refit: bool
    source: str | None


class Also(NamedTuple):
    """What a run trains besides its model: the static method, and the model for use."""

    baseline: bool
    refit: bool


def begun_run(folder: Path) -> Begun:
    """What the run in the folder was begun with; where its `config.yaml` has been changed since, that is a wish.

    Raises:
        ValueError: no run, one that is torn, or one of another version.
    """
    check_out(folder, resume=True, overwrite=False)
    saved, path = _description(folder), folder / "config.yaml"
    check_version(folder, saved["config"], Config().flat())
    config = Config().replace(**saved["config"])
    if path.exists():
        config = Config.from_yaml(path, config)
    also = Also(saved.get("baseline") is True, saved.get("refit") is True)
    return Begun(config, saved["method"], *also, saved.get("source"))


def holds_run(folder: Path) -> bool:
    """Whether the folder's run can be resumed: its description is there and whole."""
    try:
        _whole_description(folder)
    except ValueError:
        return False
    return True


def begun_by(folder: Path, job: str | None) -> bool:
    """Whether the folder's run was begun by this job of torchrun, which has started its processes again."""
    try:
        return job is not None and read_json(folder / DESCRIPTION, "resume").get("job") == job
    except ValueError:
        return False


def open_run(
    folder: Path,
    config: Config,
    dataset: Dataset,
    *,
    resume: bool,
    overwrite: bool,
    method: str = "solid",
    baseline: bool = False,
    refit: bool = False,
    source: str | None = None,
) -> Also:
    """Make the run's folder and write down what it is about to do; a resumed one may have more epochs or patience.

    `run.json` says it all, with its checksum; `config.yaml` is its configuration for people and for `--config`. A
    folder in which a run was stopped before it had said so is begun again. What is overwritten lies in `.replaced`.

    Args:
        source: where the dataset is found again, if that is known; a resumed run keeps what it has.

    Returns:
        Whether the static method and the model for use are trained too: where `baseline` and `refit` are set, or were
        when a resumed run was begun.

    Raises:
        ValueError: the folder exists and neither `resume` nor `overwrite` is set; nothing to resume; the folder
            is no run, or holds other things too; a resumed run with another configuration, method or dataset.
    """
    check_out(folder, resume=resume, overwrite=overwrite)
    facts = {"method": method, "dataset": dataset.name, "fingerprint": dataset.fingerprint, "report": dataset.report}
    described = {**facts, "config": config.flat(), "build": build_info(), "source": source, "job": distributed.job()}
    if resume:
        saved = _check_same(folder, described)
        described["source"] = source or saved.get("source")
        baseline |= saved.get("baseline") is True
        refit |= saved.get("refit") is True
    elif overwrite and folder.exists():
        _set_aside(folder)
    for name in (COPY, DESCRIPTION):
        write_json(folder / name, {**described, "baseline": baseline, "refit": refit})
    write_text(folder / "config.yaml", config.to_yaml())
    return Also(baseline, refit)


def check_out(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a run may not use; nothing is made, changed or deleted.

    Raises:
        ValueError: see `open_run`.
    """
    checked_path(folder, "out")
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"out: expected a folder, got {folder}, which is none")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if resume and not found & {DESCRIPTION, COPY}:
        stopped = LOCK in found
        raise ValueError(
            f"resume: expected a run in {folder}, got "
            + ("one that was stopped before its first epoch: start it again without --resume" if stopped else "none")
        )
    for path in [folder / name for name in sorted(found & WRITTEN)]:
        if path.is_dir() != (path.name in FOLDERS):
            kind = "a folder" if path.name in FOLDERS else "a file"
            raise ValueError(f"out: expected {kind}, got {path}, which is none of a run's")
    if resume:
        for model in (MODEL, MEASURED):
            check_replaceable(folder / model, "out", overwrite=True, ours=foreign_model)
    begun = {LOCK, REPLACED, FAULT} | (SERVED if REPLACED in found else set())
    if resume or not found - begun:  # a run that was killed before it had described itself has no more
        return
    if not overwrite:
        raise ValueError(
            f"out: expected a folder that does not exist yet, got {folder} (--resume goes on with it, "
            "--overwrite replaces it)"
        )
    if not found & {DESCRIPTION, LOCK}:
        raise ValueError(f"overwrite: expected the folder of a run, got {folder}, which has no run.json")
    others = found - WRITTEN - {REPLACED}
    if others:
        raise ValueError(f"overwrite: expected nothing but a run in {folder}, got {min(others)}, which no run wrote")


def _whole_description(folder: Path) -> tuple[dict[str, Any], ValueError | None]:
    """The description, and what is wrong with the first of its two files."""
    try:
        return read_json(folder / DESCRIPTION, "resume"), None
    except ValueError as error:
        try:
            return read_json(folder / COPY, "resume"), error
        except ValueError:
            raise error from None


def _description(folder: Path) -> dict[str, Any]:
    """What `run.json` says, or its copy where it is torn; refused if both are, or if they are another version's."""
    try:
        saved, damage = _whole_description(folder)
    except ValueError as error:
        raise ValueError(f"{error}; --overwrite starts the run anew") from error
    if damage is not None:
        warnings.warn(f"{damage}; its copy {folder / COPY} is taken", stacklevel=2)
    kinds = {"config": dict, "fingerprint": str, "method": str}
    if not all(isinstance(saved.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"resume: expected a run of this version in {folder}, got another one's (train it again)")
    return saved


def _check_same(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """Refuse to resume a run with another configuration, method or dataset; what `run.json` says of the run."""
    saved = _description(folder)
    if saved["method"] != described["method"]:
        raise ValueError(f"resume: expected method={saved['method']} as in {folder}, got {described['method']}")
    check_resumed(folder, saved["config"], described["config"])
    if saved["fingerprint"] != described["fingerprint"]:
        raise ValueError(
            f"resume: expected the dataset of {folder} ({saved['fingerprint'][:12]}), "
            f"got {described['fingerprint'][:12]}"
        )
    return saved


def _set_aside(folder: Path) -> None:
    """Move the run in the folder into `.replaced`, from which one that fails before its first epoch is put back.

    Its models stay where they are, so that who reads them finds the old one or the new one at any time.

    What lies there already, of a run that was killed, is of the run before: it stays, and what has its name goes.
    """
    aside = folder / REPLACED
    if not aside.is_dir() and os.path.lexists(aside):
        aside.unlink()
    aside.mkdir(exist_ok=True)
    for path in [path for path in folder.iterdir() if path.name in WRITTEN - {LOCK, FAULT} - SERVED]:
        if os.path.lexists(aside / path.name):
            _delete(path)
        else:
            path.rename(aside / path.name)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def under_way(folder: Path, *, made: bool) -> Iterator[None]:
    """The run inside; one that fails before its first epoch leaves the folder as if it had not been tried.

    Args:
        made: the folder was made for the run.
    """
    aside = folder / REPLACED
    try:
        yield
    except BaseException:
        if not any(is_begun(folder / stage) for stage in STAGES):
            for path in folder.glob(f"*/{FAULT}"):  # to be computed again, and in nobody's way
                path.replace(folder / FAULT)
                made = False
            for path in [path for path in folder.iterdir() if path.name in WRITTEN - {LOCK, FAULT} - SERVED]:
                _delete(path)
            for path in list(aside.iterdir()) if aside.exists() else ():
                path.rename(folder / path.name)
            if made:
                shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
