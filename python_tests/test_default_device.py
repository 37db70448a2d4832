"""torch's default device may be another than that of the tensors: the operations, layers and models follow these."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import _solid_ext

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "solid_ext").rglob("*.py"))
MAKERS = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand",
    "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
# Parameters and buffers do follow the default device: that is how torch makes a model on "meta", or on a GPU.
CONSTRUCTORS = {"__init__", "register_generators", "reset_parameters"}
# A kernel that is given an address on another device ends the process: what may do so runs in one of its own.
PREPARED = """
import torch
from solid_ext import ops
from solid_ext.ops.dropout import dropout
from solid_ext.ops.nearest_code import codebook_lookup, nearest_code_statistics
from solid_ext.ops.segment_sum import segment_sum
from solid_ext.ops.symbols import embed_symbols

def leaf(*shape):
    return torch.randn(*shape).requires_grad_()

torch.manual_seed(0)
rows, width, code = 64, 24, 8  # more than fits the stack of the compiled side
x, z, w = leaf(rows, width), leaf(rows, code), leaf(rows, code)
item, semantic = ((leaf(width + 1, code, width), leaf(width + 1, width)) for _ in range(2))
sequences, table, codebook = torch.randint(1, 9, (rows, 5)), leaf(9, width), leaf(9, width)
sequence, mask = leaf(rows, 5, width), torch.ones(rows, 5, dtype=torch.bool)
gru = leaf(3 * width, width), leaf(3 * width, width), leaf(3 * width), leaf(3 * width)
target, key = torch.randint(0, 9, (rows,)), torch.tensor(5)
index, age, bias = torch.randint(0, 9, (rows,)), torch.randn(5, width), torch.randn(9)
options = dict(gradient="straight_through", metric="l2", backend="native", sums=True, distance_gradient=(1.0, 1.0))
low_rank = [[leaf(*size)] for size in [(4, width), (width, 4), (width,), *[(5, code, 4), (5, 4)] * 2]]
parameters = [[tensor] * 2 for tensor in (*item, *semantic)]

"""
OPERATIONS = {
    "dynamic_linear": "ops.dynamic_linear(x, z, w, *item, *semantic, delta=0.1)",
    "dynamic_mlp": "ops.dynamic_mlp(x, z, w, *parameters, delta=0.1)",
    "low_rank_mlp": "ops.low_rank_mlp(x, z, w, *low_rank, delta=0.1)",
    "gru_last_state": "ops.gru_last_state(sequence, mask, *gru)",
    "nearest_code": "ops.nearest_code(x, codebook).quantized",
    "nearest_code_statistics": "nearest_code_statistics(x.detach(), codebook.detach(), None)[-1]",
    "codebook_lookup": "codebook_lookup(x, codebook, None, **options)[1]",
    "catalogue_cross_entropy": "ops.catalogue_cross_entropy(x, table, target, bias)",
    "dropout": "dropout(x, key, 0.5)",
    "embed_symbols": "embed_symbols(sequences, table.detach(), age, False)",
    "segment_sum": "segment_sum(x.detach(), index, None, 9)",
}


def python(code: str) -> None:
    path = os.pathsep.join([str(ROOT), str(Path(_solid_ext.__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"


def test_every_operation_gives_the_same_inside_another_default_device() -> None:
    """Values and gradients, of every operation there is."""
    python(
        PREPARED
        + f"""
for name, call in {OPERATIONS!r}.items():
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            y = eval(call)
            wanted = [t for t in (x, z, w, *item, *semantic, table, codebook, sequence, *gru) if y.requires_grad]
            gradients = torch.autograd.grad(y.sum(), wanted, allow_unused=True) if wanted else ()
        found.append([y, *(g for g in gradients if g is not None)])
    assert len(found[0]) == len(found[1]), name
    for one, other in zip(*found):
        assert other.device.type == "cpu", name
        assert torch.equal(one, other), name
"""
    )


def test_the_operations_above_are_all_that_take_tensors() -> None:
    defined = set()
    for path in (ROOT / "solid_ext" / "ops").glob("*.py"):
        if path.stem[0] != "_" and not path.stem.endswith("_cuda") and path.stem != "reference":
            defined |= {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
    public = {name for name in defined if name[0] != "_"}
    assert public - {"unit_rows", "sum_segments", "in_dtype_of", "without_aliases"} == set(OPERATIONS)


def test_layers_models_and_serving_work_inside_another_default_device() -> None:
    """A model that was made on the CPU trains, evaluates, recommends and is loaded there."""
    python(
        """
import tempfile
import torch
from solid_ext import SOLID, Codebook, DynamicLinear, DynamicMLP, nn
from solid_ext.data import synthetic_dataset
from solid_ext.models import backbones
from solid_ext.train import Silent

x, z, mask = torch.randn(40, 6, 8), torch.randn(40, 8), torch.ones(40, 6, dtype=torch.bool)
calls = [
    (DynamicLinear(8, 8, code_dim=8), (x[:, 0], z, z)),
    (DynamicMLP((8, 16, 8), code_dim=8), (x[:, 0], z, z)),
    (nn.LastState(8), (x, mask)),
    (nn.Dropout(0.5), (x,)),
    (Codebook(5, 8, update="ema", revive_after=3), (x[:, 0],)),
    (nn.Lookup(9, 8), (torch.arange(9),)),
]
dataset, _ = synthetic_dataset(200, 30, 3, predictability=1.0, drift=0.0, seed=3)
fields = dict(dim=8, epochs=1, length=5, batch_size=128, heads=2, num_semantics=4)
here = SOLID(**fields).fit(dataset, reporter=Silent())
metrics, raw = here.evaluate(), dataset.item_ids.to_list()[:2]
best = here.recommend([raw], k=3)
torch.set_default_device("meta")
for module, arguments in calls:
    module(*arguments)
assert here.evaluate() == metrics
assert here.recommend([raw], k=3) == best and here.recommend([], k=3) == []
here.code_usage()
there = SOLID(**fields).fit(dataset, reporter=Silent())
assert there.evaluate() == metrics
with tempfile.TemporaryDirectory() as folder:
    loaded = SOLID.load(there.save(folder + "/model")).recommend([raw], k=3)
for name, found in (("trained there", there.recommend([raw], k=3)), ("loaded there", loaded)):
    for one, other in zip(found[0], best[0], strict=True):  # torch promises no bits between two memories
        assert one[0] == other[0] and abs(one.score - other.score) < 1e-5, (name, found, best)
"""
    )


def test_no_tensor_is_made_without_a_device() -> None:
    def calls(node: ast.AST, function: str) -> list[str]:
        found = []
        for child in ast.iter_child_nodes(node):
            makes = isinstance(child, ast.Call) and ast.unparse(child.func) in {f"torch.{name}" for name in MAKERS}
            if makes and function not in CONSTRUCTORS and not any(word.arg == "device" for word in child.keywords):
                found.append(f"line {child.lineno} in {function}: {ast.unparse(child)}")
            found += calls(child, child.name if isinstance(child, ast.FunctionDef) else function)
        return found

    found = {str(path.relative_to(ROOT)): calls(ast.parse(path.read_text()), "the module") for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}
