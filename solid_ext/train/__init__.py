"""Training: losses, one stage, both stages, checkpoints and what is reported on the way."""

from solid_ext.train.algorithm import build_model, restore_model, train_solid
from solid_ext.train.callbacks import Callback, StepDone
from solid_ext.train.checkpoint import load_checkpoint, load_model, save_checkpoint
from solid_ext.train.checks import check_training
from solid_ext.train.progress import (
    Epoch,
    Passing,
    Prefixed,
    ProgressBar,
    Renamed,
    Reporter,
    Silent,
    StopTraining,
    TensorBoard,
)
from solid_ext.train.stage import Stage, train_stage
from solid_ext.train.step import Step, make_optimizer

__all__ = [
    "Callback",
    "Epoch",
    "Passing",
    "Prefixed",
    "ProgressBar",
    "Renamed",
    "Reporter",
    "Silent",
    "Stage",
    "Step",
    "StepDone",
    "StopTraining",
    "TensorBoard",
    "build_model",
    "check_training",
    "load_checkpoint",
    "load_model",
    "make_optimizer",
    "restore_model",
    "save_checkpoint",
    "train_solid",
    "train_stage",
]
