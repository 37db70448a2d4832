"""DynamicLinear and DynamicMLP: parameters, starting scale, branches, backends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from solid_ext.nn.dynamic import DynamicLinear, DynamicMLP
from solid_ext.ops.dynamic_linear import dynamic_mlp
from solid_ext.ops.reference import dynamic_weight

BACKENDS = ["native", "reference"]
BRANCHES = ["both", "item", "semantic"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes_for(branches: str, batch: int, codes: int) -> tuple[Tensor | None, Tensor | None]:
    return (
        None if branches == "semantic" else normal(batch, codes, seed=1),
        None if branches == "item" else normal(batch, codes, seed=2),
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("branches", BRANCHES)
def test_state_names_every_map_and_fits_either_backend(branches: str) -> None:
    native = DynamicMLP((5, 6, 3), 4, branches=branches)
    other = DynamicMLP((5, 6, 3), 4, branches=branches, backend="reference")
    present = ["item", "semantic"] if branches == "both" else [branches]
    shapes = {
        f"layers.{layer}.{branch}_{kind}": shape
        for layer, (d, o) in enumerate([(5, 6), (6, 3)])
        for branch in present
        for kind, shape in [("map", (d + 1, 4, o)), ("offset", (d + 1, o))]
    }
    assert {name: tuple(p.shape) for name, p in native.state_dict().items()} == shapes
    assert set(dict(native.named_parameters())) == set(shapes)
    other.load_state_dict(native.state_dict())
    x, codes = normal(7, 5), codes_for(branches, 7, 4)
    torch.testing.assert_close(native(x, *codes), other(x, *codes))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("targets", [None, 3])
def test_every_parameter_is_trained(backend: str, targets: int | None) -> None:
    layers = DynamicMLP((5, 6, 3), 4, delta=0.1, backend=backend)
    optimiser = torch.optim.SGD(layers.parameters(), 0.1)
    x = normal(30, 5) if targets is None else normal(30, targets, 5)
    before = {name: p.detach().clone() for name, p in layers.named_parameters()}
    y = layers(x, *codes_for("both", 30, 4))
    assert y.shape == (*x.shape[:-1], 3)
    y.square().sum().backward()
    optimiser.step()
    for name, parameter in layers.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_layers_together_are_layers_apart() -> None:
    layers = DynamicMLP((5, 6, 3), 4)
    x, codes = normal(7, 5), codes_for("both", 7, 4)
    h = x
    for layer in layers.layers:
        h = layer(h, *codes)
    torch.testing.assert_close(layers(x, *codes), h)
    assert [layer.activation for layer in layers.layers] == ["tanh", "none"]


def test_stage_one_switches_the_item_branch_off() -> None:
    layers = DynamicMLP((5, 6, 3), 4)
    x, (_, z_semantic) = normal(7, 5), codes_for("both", 7, 4)
    alone = DynamicMLP((5, 6, 3), 4, branches="semantic")
    alone.load_state_dict({n: p for n, p in layers.state_dict().items() if "semantic" in n})
    y = layers(x, None, z_semantic)
    assert torch.equal(y, alone(x, None, z_semantic))
    y.sum().backward()
    assert all((p.grad is None) == ("item" in name) for name, p in layers.named_parameters())


def test_item_branch_changes_weights_by_delta_at_most() -> None:
    layer = DynamicLinear(8, 6, 4, delta=0.05)
    with torch.no_grad():
        layer.item_map.mul_(100)
    x, (z_item, z_semantic) = normal(50, 8), codes_for("both", 50, 4)
    change = layer(x, z_item, z_semantic) - layer(x, None, z_semantic)
    bound = 0.05 * (x.abs().sum(1, keepdim=True) + 1)
    assert bool((change.abs() <= bound * 1.0001).all())
    assert bool((change.abs() > 0.2 * bound).any())


def generated_std(layer: DynamicLinear, branch: str, codes: Tensor) -> float:
    weight = dynamic_weight(codes, getattr(layer, f"{branch}_map"), getattr(layer, f"{branch}_offset"))
    return float(weight.detach().std())


@pytest.mark.parametrize(("inputs", "codes"), [(32, 32), (64, 16), (8, 128)])
def test_start_is_at_the_scale_of_an_ordinary_layer(inputs: int, codes: int) -> None:
    z = normal(300, codes, seed=3)
    ordinary = 1 / math.sqrt(3 * inputs)
    layer = DynamicLinear(inputs, 64, codes, delta=0.01)
    assert generated_std(layer, "semantic", z) == pytest.approx(ordinary, rel=0.1)
    assert generated_std(layer, "item", z) == pytest.approx(0.005, rel=0.1)
    inside = dynamic_weight(z, layer.item_map, layer.item_offset).abs() <= 0.01
    assert float(inside.float().mean()) > 0.9
    alone = DynamicLinear(inputs, 64, codes, delta=float("inf"), branches="item")
    assert generated_std(alone, "item", z) == pytest.approx(ordinary, rel=0.1)
    wide = DynamicLinear(inputs, 64, codes, delta=100.0)
    assert generated_std(wide, "item", z) == pytest.approx(ordinary / 2, rel=0.1)
    x = normal(300, inputs, seed=4)
    plain = torch.nn.Linear(inputs, 64)(x)
    assert float(layer(x, z, z.flip(0)).detach().std()) == pytest.approx(float(plain.detach().std()), rel=0.2)


def test_offset_carries_most_of_the_trunk() -> None:
    """Weights of two sequences are closer to each other than to another layer's."""
    layer = DynamicLinear(32, 32, 32)
    weight = dynamic_weight(normal(200, 32), layer.semantic_map, layer.semantic_offset)
    share = float((weight.var(0).mean() / weight.var()).detach())
    assert share == pytest.approx(0.25, abs=0.05)


def test_reset_draws_anew_and_a_seed_repeats() -> None:
    layer = DynamicLinear(4, 3, 2)
    before = layer.semantic_map.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.semantic_map, before)
    torch.manual_seed(0)
    layer.reset_parameters()
    assert torch.equal(layer.semantic_map, before)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    layers = DynamicMLP((5, 6, 3), 4)
    compiled = torch.compile(layers, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (6, 11):
        x, codes = normal(batch, 5), codes_for("both", batch, 4)
        y = compiled(x, *codes)
        torch.testing.assert_close(y, layers(x, *codes))
        y.sum().backward()
    assert all(p.grad is not None for p in layers.parameters())


def test_layer_equals_the_operation() -> None:
    layers = DynamicMLP((5, 3), 4, delta=0.02)
    layer = layers.layers[0]
    x, codes = normal(7, 5), codes_for("both", 7, 4)
    y = dynamic_mlp(
        x,
        *codes,
        [layer.item_map],
        [layer.item_offset],
        [layer.semantic_map],
        [layer.semantic_offset],
        delta=0.02,
        backend="reference",
    )
    torch.testing.assert_close(layers(x, *codes), y)


@pytest.mark.parametrize("make", [lambda **o: DynamicLinear(5, 3, 4, **o), lambda **o: DynamicMLP((5, 3), 4, **o)])
def test_codes_of_an_absent_branch_are_refused(make) -> None:
    x, z = normal(7, 5), normal(7, 4)
    with pytest.raises(ValueError, match=r"expected z_item None \(branches='semantic'\), got \[7, 4\]"):
        make(branches="semantic")(x, z, z)
    with pytest.raises(ValueError, match=r"expected z_semantic None \(branches='item'\), got \[7, 4\]"):
        make(branches="item")(x, z, z)
    with pytest.raises(ValueError, match="expected z_item or z_semantic, got None for both"):
        make()(x, None, None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DynamicLinear(-1, 3), "DynamicLinear: expected in_features >= 1, got -1"),
        (lambda: DynamicLinear(3, 0), "DynamicLinear: expected out_features >= 1, got 0"),
        (lambda: DynamicMLP((3, 3), 0), "DynamicLinear: expected code_dim >= 1, got 0"),
        (lambda: DynamicMLP((3,)), "DynamicMLP: expected at least two sizes"),
        (lambda: DynamicMLP(delta=0), "DynamicMLP: expected delta > 0, got 0"),
        (lambda: DynamicLinear(3, 3, delta=float("nan")), "DynamicLinear: expected delta > 0, got nan"),
        (lambda: DynamicMLP(branches="none"), "expected branches 'both', 'item' or 'semantic', got 'none'"),
        (lambda: DynamicMLP(backend="gpu"), "expected backend 'native' or 'reference', got 'gpu'"),
        (lambda: DynamicLinear(3, 3, activation="relu"), "expected activation 'none' or 'tanh', got 'relu'"),
    ],
)
def test_bad_options(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_repr_shows_the_options() -> None:
    text = repr(DynamicMLP((5, 3), 4, branches="item", backend="reference"))
    assert "5, 3, code_dim=4, delta=0.01, branches='item', activation='none', backend='reference'" in text
