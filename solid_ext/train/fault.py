"""A step that was not finite, computed again from what the stage has kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from solid_ext.config import Config
from solid_ext.train.algorithm import build_stage1, restore_model
from solid_ext.train.checkpoint import load_checkpoint, load_model
from solid_ext.train.gradients import NotFinite
from solid_ext.train.isolation import isolated, set_generators
from solid_ext.train.stage_folder import FAULT
from solid_ext.train.step import Step, make_optimizer


@dataclass(frozen=True)
class Replay:
    """What came of a step that was computed again.

    Attributes:
        stage, epoch, step: which it was; both numbers from 1.
        said: what the training said of it.
        error: what it says now; None where the step is finite here.
        first: the first module whose output is not finite, in the order of computation; None where there is none.
        largest: the largest absolute weight of each parameter that has one above a million.
        gradients: the length of each parameter's gradient.
    """

    stage: str
    epoch: int
    step: int
    said: str
    error: str | None
    first: str | None
    largest: dict[str, float]
    gradients: dict[str, float]


def fault_of(run: Path) -> Path:
    """The fault that a run left.

    Raises:
        ValueError: none, or no folder.
    """
    if not run.is_dir():
        raise ValueError(f"replay: expected the folder of a run, got {run}, which is none")
    found = sorted(run.rglob(FAULT), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(
            f"replay: expected a run that was ended by a step which was not finite, got {run}, which has no {FAULT}"
        )
    return found[-1]


@isolated()
def replay(path: Path) -> Replay:
    """Compute a step that was not finite again, from its weights, its batch and its states of the random generators.

    Args:
        path: of the file that the training left.

    Raises:
        ValueError: a file that is damaged, or of no step.
    """
    tensors, state = load_checkpoint(path)
    kinds = {"stage": str, "epoch": int, "step": int, "said": str, "config": dict, "kind": str, "num_items": int}
    for name, kind in kinds.items():
        if type(state.get(name)) is not kind:
            raise ValueError(f"replay: expected the {name} of a step in {path}, got {state.get(name)!r:.80}")
    try:
        config = Config().replace(**state["config"])
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "generator": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.get(part, {})[rest] = tensor
        sequences, candidates = tensors["sequences"].clone(), tensors["candidates"].clone()
        model = _model(config, state, parts["model"], path)
        set_generators({name: tensor.clone() for name, tensor in parts["generator"].items()}, model.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"replay: expected a step that can be computed again in {path}, got {error}") from error
    outputs: list[str] = []
    step = Step(model.train(), make_optimizer(model, config.train), config.train)
    said = None
    largest = {name: float(weight.detach().abs().max()) for name, weight in model.named_parameters() if weight.numel()}
    # A hook of every module there is: on a layer whose parts are never called, hooks on these are refused.
    watching = register_module_forward_hook(_watching(model, outputs))
    try:
        step(sequences.to(model.device), candidates.to(model.device))
    except NotFinite as found:
        said = str(found)
    finally:
        watching.remove()
    gradients = {
        name: float(parameter.grad.norm()) for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return Replay(
        state["stage"],
        state["epoch"],
        state["step"],
        state["said"],
        said,
        outputs[0] if outputs else None,
        {name: value for name, value in largest.items() if not value < 1e6},
        gradients,
    )


def _model(config: Config, state: Mapping[str, Any], tensors: dict[str, Tensor], path: Path) -> Any:
    if state["kind"] == "DynamicRecommender":
        return restore_model(config, state["num_items"], tensors, path)
    if state["kind"] != "SemanticRecommender":
        raise ValueError(f"replay: expected a step of SOLID in {path}, got one of {state['kind']}")
    semantics = tensors["semantics"].numpy().astype(np.int64)
    if semantics.shape != (state["num_items"] + 1,) or semantics.min() < 0 or semantics.max() > len(semantics):
        raise ValueError(f"replay: expected a semantic of each of {state['num_items']} items in {path}")
    model = build_stage1(config, semantics)
    load_model(model, tensors, path)
    return model


def _watching(model: nn.Module, outputs: list[str]) -> Any:
    """A hook that writes down the name of a module of the model whose output is not finite."""
    names = {module: name or "the model" for name, module in model.named_modules()}

    def look(module: nn.Module, arguments: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                outputs.extend([names[module]] if module in names else [])
                return

    return look
