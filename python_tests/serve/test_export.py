"""A network as programs: equal to itself for any number of sequences and candidates, in torch and in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from solid_ext.config import PAPER, Config
from solid_ext.data import Catalogue
from solid_ext.models import DynamicRecommender
from solid_ext.serve.export import export_programs, in_reference, write_programs

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
ITEMS, SEMANTICS, LENGTH = 40, 7, 6
SMALL = {"dim": 8, "heads": 2, "length": LENGTH, "rank": 4}


def network(**fields: Any) -> DynamicRecommender:
    torch.manual_seed(0)
    semantics = np.concatenate([[0], np.arange(ITEMS) % SEMANTICS + 1])
    config = Config().replace(**{**SMALL, **fields})
    model = DynamicRecommender(config.model, ITEMS, semantics, torch.randn(ITEMS + 1, 5)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "gate" or "feature_map" in name:
                parameter.fill_(0.3)
    return model


def batch(rows: int, targets: int, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    sequences = torch.randint(1, ITEMS + 1, (rows, length), generator=generator)
    sequences[0, 3:] = 0
    return sequences, torch.randint(1, ITEMS + 1, (rows, targets), generator=generator)


def catalogue() -> Catalogue:
    import polars as pl

    return Catalogue(pl.DataFrame({"item_id": [f"i{v}" for v in range(ITEMS)]}))


SLOW = pytest.mark.slow
SETTINGS = [
    ({}, "native"),
    ({"generator_length": 15}, "native"),
    pytest.param({**PAPER, **SMALL}, "native", marks=SLOW),
    pytest.param({"backbone": "din"}, "native", marks=SLOW),
    pytest.param({"backbone": "bert4rec", "semantic_trunk": False}, "native", marks=SLOW),
    pytest.param({"backbone": "gru4rec"}, "reference", marks=SLOW),
    pytest.param({**PAPER, **SMALL}, "reference", marks=SLOW),
]


@pytest.mark.parametrize(("fields", "backend"), SETTINGS)
def test_a_program_of_torch_gives_the_networks_scores_for_any_batch(fields: dict[str, Any], backend: str) -> None:
    model = network(**fields, backend=backend)
    programs = {name: program.module() for name, program in export_programs(model).items()}
    for rows, targets in ((1, 1), (2, 9), (33, 4)):
        sequences, candidates = batch(rows, targets, model.length)
        state = programs["encode"](sequences) if "encode" in programs else sequences
        with torch.no_grad():
            expected = model.score(model.encode(sequences), candidates)
        torch.testing.assert_close(programs["score"](state, candidates), expected)
    assert model.item_embedding.weight.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_whole_scorer_compiles_without_a_break_and_trains(backend: str) -> None:
    model = network(backend=backend)
    compiled = torch.compile(lambda s, c: model.score(model.encode(s), c), fullgraph=True, backend="aot_eager")
    for rows, targets in ((3, 5), (7, 4)):
        sequences, candidates = batch(rows, targets)
        expected = model.score(model.encode(sequences), candidates)
        found = compiled(sequences, candidates)
        torch.testing.assert_close(found, expected)
        wanted = [p for p in model.parameters() if p.requires_grad]
        truth = torch.autograd.grad(expected.square().sum(), wanted, allow_unused=True)
        for one, other in zip(torch.autograd.grad(found.square().sum(), wanted, allow_unused=True), truth, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_native_programs_keep_the_packages_operators_and_reference_ones_have_none() -> None:
    def operators(model: DynamicRecommender) -> set[str]:
        graphs = [m for p in export_programs(model).values() for m in p.graph_module.modules() if hasattr(m, "graph")]
        found = {str(node.target) for module in graphs for node in module.graph.nodes}
        return {name.split(".")[1] for name in found if name.startswith("solid_ext.")}

    model = network()
    assert {"embed_symbols", "nearest_code_statistics", "gru_last_state_forward"} < operators(model)
    assert operators(in_reference(model)) == set()
    assert model.config.backend == "native"


# torch 2.6 exports, but cannot write, a size that is an input of an inner graph.
@pytest.mark.skipif(TORCH < (2, 13), reason="the extra `export` asks for torch 2.13")
def test_programs_are_written_beside_their_items_and_read_back(tmp_path: Path) -> None:
    model = network()
    files = write_programs(model, catalogue(), tmp_path / "out", "torch")
    assert files == ["encode.pt2", "score.pt2"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]["score"] == ["state", "candidates"]
    assert Catalogue.load(tmp_path / "out" / "items.parquet").num_items == ITEMS
    encode = torch.export.load(tmp_path / "out" / "encode.pt2").module()
    sequences, _ = batch(5, 1)
    torch.testing.assert_close(encode(sequences), model.encode(sequences).detach())
    with pytest.raises(ValueError, match="export: expected"):
        write_programs(model, catalogue(), tmp_path / "out", "torch")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch's converter about itself
@pytest.mark.parametrize("fields", [{}, {"generator_length": 15}, {**PAPER, **SMALL, "backbone": "din"}])
def test_onnx_runtime_gives_the_networks_scores_for_any_batch(fields: dict[str, Any], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = network(**fields)
    write_programs(model, catalogue(), tmp_path / "out", "onnx")
    sessions = {path.stem: runtime.InferenceSession(path) for path in (tmp_path / "out").glob("*.onnx")}
    for rows, targets in ((1, 1), (2, 9), (33, 4)):
        sequences, candidates = batch(rows, targets, model.length)
        state = sequences.numpy()
        if "encode" in sessions:
            (state,) = sessions["encode"].run(None, {"sequences": state})
        first = "state" if "encode" in sessions else "sequences"
        (found,) = sessions["score"].run(None, {first: state, "candidates": candidates.numpy()})
        expected = model.score(model.encode(sequences), candidates).detach().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_what_cannot_be_exported_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = network()
    static = network(semantic_trunk=False, item_branch=False, finetune_steps=3)
    with pytest.raises(ValueError, match=r"export: expected a model without fine-tuning, got finetune_steps=3"):
        write_programs(static, catalogue(), tmp_path / "out", "torch")

    class Branching(torch.nn.Module):
        def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
            return embedded[:, 0] if embedded.sum() > 0 else embedded[:, 1]

    model.backbone = Branching()
    with pytest.raises(ValueError, match=r"export: expected a network that torch.export can trace, got one it refuses"):
        write_programs(model, catalogue(), tmp_path / "out", "torch")
    assert not (tmp_path / "out").exists()
