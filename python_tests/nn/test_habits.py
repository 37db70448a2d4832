"""Everything that a torch user does to a module, done to every layer of both back ends."""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from solid_ext.nn import (
    Codebook,
    Dropout,
    DynamicLinear,
    DynamicMLP,
    LastState,
    Lookup,
    LowRankMLP,
    TransformerBlock,
)

B, D, K = 6, 8, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Z, SEQUENCES = normal(B, D), normal(B, K, seed=1), normal(B, 5, D, seed=2)
MASK = normal(B, 5, seed=3) > -0.5
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[Tensor, ...]]] = {
    "frozen": (partial(Codebook, 7, D), (X,)),
    "ema": (partial(Codebook, 7, D, update="ema", revive_after=2), (X,)),
    "gradient": (partial(Codebook, 7, D, update="gradient", revive_after=2), (X,)),
    "cosine": (partial(Codebook, 7, D, update="gradient", metric="cosine", revive_after=1), (X,)),
    "DynamicLinear": (partial(DynamicLinear, D, 5, K, 0.1), (X, Z, Z)),
    "DynamicMLP": (partial(DynamicMLP, (D, 6, 5), K, 0.1), (X, Z, Z)),
    "LowRankMLP": (partial(LowRankMLP, (D, 6, 5), K, 3, 0.1), (X, Z, Z)),
    "LastState": (partial(LastState, D), (SEQUENCES, MASK)),
    "Lookup": (partial(Lookup, 9, D, padding_idx=0), (torch.arange(B * 5).view(B, 5) % 9,)),
    "Dropout": (partial(Dropout, 0.5), (X,)),
    "TransformerBlock": (partial(TransformerBlock, D, 2, 0.1), (SEQUENCES, SEQUENCES, MASK.unsqueeze(1))),
}
CODEBOOKS = [name for name in LAYERS if name in ("frozen", "ema", "gradient", "cosine")]
DYNAMIC = ["DynamicLinear", "DynamicMLP", "LowRankMLP"]

every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(name: str, backend: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    kind, arguments = LAYERS[name]
    return kind(backend=backend), arguments


def output(found: Any) -> Tensor:
    return getattr(found, "quantized", found)


def total(found: Any) -> Tensor:
    return output(found).sum() + getattr(found, "loss", 0)


def trained(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    loss = total(layer(*arguments))
    if loss.requires_grad:
        loss.backward()


def cast(arguments: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(each.to(dtype) if each.is_floating_point() else each for each in arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@every_layer
def test_trains_in_another_dtype_near_to_itself(name: str, backend: str, dtype: torch.dtype) -> None:
    layer, arguments = make(name, backend)
    layer.eval()
    expected = output(layer(*arguments))
    layer.to(dtype)
    found = output(layer(*cast(arguments, dtype)))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
    layer.train()
    for _ in range(3):
        trained(layer, cast(arguments, dtype))
    assert all(bool(value.isfinite().all()) for value in layer.state_dict().values())


@every_layer
def test_autocast_leaves_both_back_ends_one_contract(name: str) -> None:
    found = []
    for backend in ("native", "reference"):
        layer, arguments = make(name, backend)
        layer.eval()
        with torch.autocast("cpu", torch.bfloat16):
            found.append(output(layer(*cast(arguments, torch.bfloat16) if name in DYNAMIC else arguments)))
    assert found[0].dtype == found[1].dtype
    torch.testing.assert_close(found[0], found[1], atol=1e-5 if name in DYNAMIC else 0.05, rtol=1e-5)
    if name in DYNAMIC:
        assert found[0].dtype == torch.float32  # that of the maps


@every_layer
def test_copies_and_pickles_are_the_layer(name: str, backend: str) -> None:
    layer, arguments = make(name, backend)
    trained(layer, arguments)
    layer.zero_grad()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert {**other.state_dict()}.keys() == {**layer.state_dict()}.keys()
        torch.manual_seed(1)
        expected = output(copy.deepcopy(layer)(*arguments))
        torch.manual_seed(1)
        assert torch.equal(output(other(*arguments)), expected)


@every_layer
def test_a_layer_made_on_meta_starts_like_any_other(name: str, backend: str) -> None:
    kind, arguments = LAYERS[name]
    with torch.device("meta"):
        layer = kind(backend=backend)
    assert all(value.is_meta for value in layer.state_dict().values())
    shapes = output(layer(*(each.to("meta") for each in arguments))).shape
    layer.to_empty(device="cpu")
    for module in reversed(list(layer.modules())):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    plain, _ = make(name, backend)
    assert output(layer(*arguments)).shape == shapes
    for key, value in plain.state_dict().items():
        other = layer.state_dict()[key]
        assert bool(other.isfinite().all())
        if value.is_floating_point() and value.numel() > 20:
            assert 0.5 < float((other.std() + 1e-9) / (value.std() + 1e-9)) < 2, key


@every_layer
def test_a_state_is_assigned_to_a_layer_on_meta(name: str, backend: str) -> None:
    kind, arguments = LAYERS[name]
    given, _ = make(name, backend)
    with torch.device("meta"):
        layer = kind(backend=backend)
    layer.load_state_dict(given.state_dict(), assign=True)
    assert torch.equal(output(layer.eval()(*arguments)), output(given.eval()(*arguments)))
    trained(layer.train(), arguments)


@every_layer
def test_fake_tensors_pass_through(name: str, backend: str) -> None:
    kind, arguments = LAYERS[name]
    with FakeTensorMode():
        layer = kind(backend=backend)
        trained(layer, tuple(torch.empty(each.shape, dtype=each.dtype) for each in arguments))


@every_layer
def test_a_functional_call_and_its_gradient_are_the_layers(name: str, backend: str) -> None:
    layer, arguments = make(name, backend)
    layer.eval()
    state = {name: value.detach() for name, value in layer.named_parameters()}
    if not state:
        return

    def loss(state: dict[str, Tensor]) -> Tensor:
        return total(torch.func.functional_call(layer, state, arguments)).square()

    trained = torch.autograd.grad(total(layer(*arguments)).square(), list(layer.parameters()), allow_unused=True)
    for found, expected in zip(torch.func.grad(loss)(state).values(), trained, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if expected is None else expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of torch's own attention
@every_layer
def test_vmap_over_inputs_and_over_an_ensemble_is_a_loop(name: str, backend: str) -> None:
    layers = [make(name, backend)[0].eval() for _ in range(3)]
    arguments = LAYERS[name][1]
    batch = [torch.stack([each, each.flip(0)]) for each in arguments]
    found = torch.vmap(lambda *each: output(layers[0](*each)))(*batch)
    for at in range(2):
        torch.testing.assert_close(found[at], output(layers[0](*(each[at] for each in batch))))
    if name == "Dropout":
        return
    for seed, layer in enumerate(layers):
        with torch.no_grad():
            for value in [*layer.parameters(), *layer.buffers()]:
                if value.is_floating_point() and seed:
                    value.copy_(normal(*value.shape, seed=seed) if value.dim() else value)
    parameters, buffers = torch.func.stack_module_state(layers)  # type: ignore[arg-type]

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return output(torch.func.functional_call(layers[0], (parameters, buffers), arguments))

    found = torch.vmap(call)(parameters, buffers)
    for at, layer in enumerate(layers):
        torch.testing.assert_close(found[at], output(layer(*arguments)))


@pytest.mark.parametrize("reentrant", [False, True])
@every_layer
def test_checkpointed_steps_are_the_plain_ones(name: str, backend: str, reentrant: bool) -> None:
    plain, arguments = make(name, backend)
    stored = copy.deepcopy(plain)
    of_plain, of_stored = (
        [each.clone().requires_grad_() if each.is_floating_point() else each for each in arguments] for _ in range(2)
    )
    if reentrant and not any(each.requires_grad for each in of_plain):
        return  # which gives no gradient where no input wants one
    for step in range(4):
        torch.manual_seed(step)
        loss = total(plain(*of_plain)).square()
        torch.manual_seed(step)
        other = checkpoint(lambda *given: total(stored(*given)), *of_stored, use_reentrant=reentrant).square()
        loss.backward()
        other.backward()
    for one, another in zip([*of_plain, *plain.parameters()], [*of_stored, *stored.parameters()], strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(another.grad, one.grad)
    for key, value in plain.state_dict().items():
        assert torch.equal(stored.state_dict()[key], value), key


def test_a_checkpointed_call_before_another_that_moved_the_entries_is_refused(backend: str) -> None:
    codebook, _ = make("ema", backend)
    x = normal(50, D).requires_grad_()
    losses = [
        checkpoint(lambda each: total(codebook(each)), x * scale, use_reentrant=False).square() for scale in (1, 2)
    ]
    with pytest.raises(RuntimeError, match="Codebook: expected the backward pass of a checkpointed call before"):
        losses[0].backward()


@pytest.mark.parametrize("name", ["DynamicMLP", "LowRankMLP", "TransformerBlock"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_on_inner_layers_are_called_and_change_nothing(name: str, backend: str, kind: str) -> None:
    layer, arguments = make(name, backend)
    layer.eval()
    plain = output(layer(*arguments))
    inner = [module for module in layer.modules() if module is not layer and not isinstance(module, nn.ModuleList)]
    if name == "TransformerBlock":
        inner = [layer.query, layer.key_value, layer.out]
    called: list[int] = []
    for at, module in enumerate(inner):
        getattr(module, f"register_{kind}_hook")(lambda *_, at=at: called.append(at))
    leaves = [each.clone().requires_grad_() if each.is_floating_point() else each for each in arguments]
    found = output(layer(*leaves))
    torch.testing.assert_close(found, plain)
    found.sum().backward()
    assert sorted(called) == list(range(len(inner)))


def test_a_replaced_inner_layer_is_called(backend: str) -> None:
    layer, (x, *conditions) = make("DynamicMLP", backend)

    class Twice(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *given: Tensor) -> Tensor:
            return 2 * self.inner(*given)

    plain = layer(x, *conditions)
    layer.layers[1] = Twice(layer.layers[1])
    torch.testing.assert_close(layer(x, *conditions), 2 * plain)


def test_hooks_on_the_cell_that_only_holds_parameters_are_refused(backend: str) -> None:
    layer, arguments = make("LastState", backend)
    layer.cell.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="LastState: expected hooks on the layer itself"):
        layer(*arguments)


class Rows(torch.utils.data.Dataset[Tensor]):
    """A dataset whose workers call a layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return B

    def __getitem__(self, at: int) -> Tensor:
        given = (X[at : at + 1], Z[at : at + 1], Z[at : at + 1])
        with torch.no_grad():
            return output(self.layer(*given[: 1 if isinstance(self.layer, Codebook) else 3]))[0]


@pytest.mark.parametrize("name", ["frozen", "DynamicMLP", "LowRankMLP"])
def test_workers_of_a_data_loader_call_layers(name: str) -> None:
    layer, arguments = make(name, "native")
    layer.eval()
    expected = output(layer(*arguments))  # the parent has used its threads before it forks
    found = torch.cat(list(DataLoader(Rows(layer), batch_size=2, num_workers=1, multiprocessing_context="fork")))
    torch.testing.assert_close(found, expected.detach())


def test_statistics_of_running_means_stay_wide_in_a_narrow_codebook(backend: str) -> None:
    centres = normal(8, 4, seed=5) * 4

    def error(dtype: torch.dtype) -> float:
        codebook = Codebook(8, 4, update="ema", decay=0.99, backend=backend)
        codebook.initialise(centres + 0.5 * normal(8, 4, seed=6))
        codebook.to(dtype)
        for step in range(300):
            codebook((centres.repeat(20, 1) + 0.1 * normal(160, 4, seed=step)).to(dtype))
        return float((codebook.weight.float() - centres).norm())

    narrow = Codebook(8, 4, update="ema").bfloat16()
    assert (narrow.weight.dtype, narrow.ema_sums.dtype) == (torch.bfloat16, torch.float32)
    narrow.load_state_dict({name: value.bfloat16() for name, value in narrow.state_dict().items()}, assign=True)
    assert narrow.ema_counts.dtype == torch.float32
    assert Codebook(8, 4, update="ema").double().ema_sums.dtype == torch.float64
    assert error(torch.bfloat16) < 3 * error(torch.float32)


def sharded(rank: int, place: str, threads: int) -> None:
    """Of two processes: every layer under FSDP2, sharded as a whole and by inner layers, against itself."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(threads)
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for name in ("gradient", *DYNAMIC, "LastState", "Lookup", "TransformerBlock"):
        for inner in (False, True):
            if name == "gradient":
                torch.manual_seed(0)
                layer, arguments = Codebook(7, D, update="gradient"), LAYERS[name][1]
            else:
                layer, arguments = make(name, "native")
            # In float64, as the same gradient computed by two ranks can differ in the last digits of float32.
            layer, arguments = layer.double(), cast(arguments, torch.float64)
            plain = copy.deepcopy(layer).eval()
            if inner and name in ("DynamicMLP", "LowRankMLP"):
                for module in [m for m in layer.modules() if isinstance(m, (DynamicLinear, nn.Linear))]:
                    fully_shard(module, mesh=mesh)
            fully_shard(layer, mesh=mesh)
            layer.eval()
            loss, expected = total(layer(*arguments)).square(), total(plain(*arguments)).square()
            torch.testing.assert_close(loss, expected)
            loss.backward()
            expected.backward()
            for one, other in zip(layer.parameters(), plain.parameters(), strict=True):
                if other.grad is not None:
                    torch.testing.assert_close(one.grad.full_tensor(), other.grad)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_layers_are_sharded_by_fsdp() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(sharded, (os.path.join(folder, "store"), 1), nprocs=2)
