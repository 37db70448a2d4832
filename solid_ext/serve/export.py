"""A network as programs for another runtime: `encode` and `score`, for any number of sequences and candidates."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from solid_ext._native import build_info
from solid_ext.data import Catalogue
from solid_ext.data.semantics.extra import require
from solid_ext.evaluate.scorer import in_eval_mode
from solid_ext.files import MANIFEST, describe_folder, foreign_to, written_folder
from solid_ext.models import DynamicRecommender

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMAT = "solid_ext programs"
FORMAT_VERSION = 1
ITEMS = "items.parquet"
MOST = 2**20  # sequences, and candidates, of one call; torch.export wants a bound

Runtime = Literal["torch", "onnx"]


class _Encode(nn.Module):
    def __init__(self, model: DynamicRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, sequences: Tensor) -> Tensor:
        state = self.model.encode(sequences)
        assert isinstance(state, Tensor)
        return state


class _Score(nn.Module):
    def __init__(self, model: DynamicRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: Tensor, candidates: Tensor) -> Tensor:
        return self.model.score(state, candidates)


class _ScoreSequences(nn.Module):
    def __init__(self, model: DynamicRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, sequences: Tensor, candidates: Tensor) -> Tensor:
        return self.model.score(self.model.encode(sequences), candidates)


def export_programs(model: DynamicRecommender) -> dict[str, ExportedProgram]:
    """The network by `torch.export`, for any number of sequences B and of candidates T.

    The operations of the native backend stay the package's own operators (`torch.ops.solid_ext`), so that who runs the
    programs imports solid_ext; `in_reference` has a model whose programs are of torch's operators alone.

    Args:
        model: on any device, which the programs are for; it is used as in serving, in eval mode.

    Returns:
        "encode": sequences [B, L] int64 -> u [B, d]; "score": u [B, d] and candidates [B, T] int64 -> logits [B, T].
        Of a backbone whose user state depends on the candidate (din), "score" alone, which is given sequences [B, L] in
        place of u.
    """
    device = model.device
    # Of more than one row each, of different sizes: torch.export takes sizes of 1, and equal ones, for constants.
    sequences = torch.ones(3, model.length, dtype=torch.int64, device=device)
    candidates = torch.ones(3, 5, dtype=torch.int64, device=device)
    batch, targets = torch.export.Dim("B", min=1, max=MOST), torch.export.Dim("T", min=1, max=MOST)
    each, of_each = {0: batch}, {0: batch, 1: targets}

    def traced(module: nn.Module, arguments: tuple[Tensor, ...], shapes: tuple[Any, ...]) -> ExportedProgram:
        return torch.export.export(module.eval(), arguments, dynamic_shapes=shapes, strict=False)

    asked = in_eval_mode(model)
    with torch.no_grad():
        if asked.reads_candidates:
            return {"score": traced(_ScoreSequences(asked), (sequences, candidates), (each, of_each))}
        state = torch.zeros(3, asked.config.dim, device=device)
        return {
            "encode": traced(_Encode(asked), (sequences,), (each,)),
            "score": traced(_Score(asked), (state, candidates), (each, of_each)),
        }


def in_reference(model: DynamicRecommender) -> DynamicRecommender:
    """A copy of the network on the reference backend: the same parameters, in plain torch operators."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if hasattr(module, "backend"):
            module.backend = "reference"  # type: ignore[assignment]
    return plain


def write_programs(
    model: DynamicRecommender, catalogue: Catalogue, folder: Path, runtime: Runtime, *, overwrite: bool = False
) -> list[str]:
    """Write a folder with the network's programs, the items by number, and a manifest.

    `items.parquet` holds item v's raw id and title in row v - 1. The files of "torch" are read by `torch.export.load`
    with solid_ext imported; those of "onnx" by any ONNX runtime.

    Returns:
        The names of the programs' files.

    Raises:
        ValueError: a folder that exists; a fine-tuned model; a network that torch cannot trace, such as one with a
            backbone of one's own that branches on values; "onnx" without the packages of the extra `export`.
    """
    if model.config.finetune_steps:
        raise ValueError(
            f"export: expected a model without fine-tuning, got finetune_steps={model.config.finetune_steps}, which "
            "takes gradient steps to score"
        )
    suffix, save = {"torch": (".pt2", _save_torch), "onnx": (".onnx", _save_onnx)}[runtime]
    if runtime == "onnx":
        for package in ("onnx", "onnxscript"):
            require(package, "export", "export")
    with written_folder(folder, "export", overwrite=overwrite, ours=_foreign) as fresh:
        try:
            programs = export_programs(model if runtime == "torch" else in_reference(model).cpu())
            for name, program in programs.items():
                save(program, fresh / f"{name}{suffix}")
        except (RuntimeError, torch._dynamo.exc.UserError) as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise ValueError(
                f"export: expected a network that torch.export can trace, got one it refuses ({reason})"
            ) from error
        catalogue.save(fresh / ITEMS)
        described = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "solid_ext": build_info()["version"],
            "length": model.length,
            "inputs": {name: _inputs(program) for name, program in programs.items()},
        }
        describe_folder(fresh, MANIFEST, described)
    return [f"{name}{suffix}" for name in programs]


def _inputs(program: ExportedProgram) -> list[str]:
    return list(program.graph_signature.user_inputs)


def _foreign(folder: Path) -> str | None:
    return foreign_to(folder, MANIFEST, FORMAT)


def _save_torch(program: ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def _save_onnx(program: ExportedProgram, path: Path) -> None:
    converted: Any = torch.onnx.export(program, (), dynamo=True, verbose=False)
    converted.save(path)
