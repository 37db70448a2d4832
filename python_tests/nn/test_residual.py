"""Codebooks in composition, their start at means, ranks that learn together, and another library's state."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from solid_ext.nn import Codebook, GroupedCodebook, ResidualCodebook, codebook_from_vector_quantize
from solid_ext.nn.codebook import perplexity


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_level_quantises_what_the_ones_before_it_left(backend: str) -> None:
    codebook = ResidualCodebook(3, 6, 4, update="gradient", commitment=0.4, backend=backend)
    x, mask = normal(5, 7, 4).requires_grad_(), normal(5, 7, seed=1) > -1
    found = codebook(x, mask)
    left, loss = x.detach().clone(), torch.zeros(())
    for place, level in enumerate(codebook.levels):
        index = torch.cdist(left, level.weight).argmin(-1)
        assert torch.equal(found.index[mask][:, place], index[mask])
        assert torch.equal(found.counts[place], index[mask].bincount(minlength=6))
        loss = loss + 1.4 * (left - level.weight[index])[mask].square().mean()
        left = left - level.weight[index].detach()
    torch.testing.assert_close(found.quantized[mask], (x - left)[mask])
    torch.testing.assert_close(found.loss, loss)
    assert found.perplexity.shape == (3,)
    weight = normal(5, 7, 4, seed=2)
    (gradient,) = torch.autograd.grad((found.quantized * weight).sum(), x)
    torch.testing.assert_close(gradient, torch.where(mask.unsqueeze(2), weight, 0))  # once, not once a level


def test_more_levels_come_nearer(backend: str) -> None:
    x = normal(400, 4)
    errors = []
    for levels in (1, 2, 4):
        codebook = ResidualCodebook(levels, 8, 4, backend=backend)
        codebook.start_at_means(x)
        errors.append(float((x - codebook(x).quantized).square().mean()))
    assert errors[2] < 0.5 * errors[1] < 0.4 * errors[0]


def test_groups_quantise_their_parts(backend: str) -> None:
    parts = [ResidualCodebook(2, 6, 3, backend=backend), ResidualCodebook(2, 6, 3, seed=9, backend=backend)]
    codebook, x = GroupedCodebook(parts), normal(5, 7, 6)
    codebook.start_at_means(x)
    codebook.eval()
    found = codebook(x)
    assert found.index.shape == (5, 7, 2, 2)
    assert found.counts.shape == (2, 2, 6)
    for place, (part, given) in enumerate(zip(parts, x.chunk(2, -1), strict=True)):
        alone = part(given)
        assert torch.equal(found.quantized[..., 3 * place : 3 * place + 3], alone.quantized)
        assert torch.equal(found.index[:, :, place], alone.index)
    single = GroupedCodebook([Codebook(6, 3), Codebook(6, 3)])(x)
    assert single.index.shape == (5, 7, 2)
    assert single.counts.shape == (2, 6)
    torch.testing.assert_close(single.perplexity, torch.stack([perplexity(counts) for counts in single.counts]))
    with pytest.raises(ValueError, match=r"GroupedCodebook: expected x \[.., a multiple of 2\], got \[5, 3\]"):
        codebook(normal(5, 3))
    with pytest.raises(ValueError, match="at least one codebook"):
        GroupedCodebook([])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_start_at_means_is_as_good_as_lloyds_from_other_libraries(backend: str, metric: Any) -> None:
    centres = torch.nn.functional.normalize(normal(6, 3, seed=4), dim=1) * 10
    x = centres.repeat_interleave(60, 0) + 0.3 * normal(360, 3)
    codebook = Codebook(6, 3, update="ema", metric=metric, backend=backend)
    x[7, 1] = torch.nan
    mask = torch.arange(360) != 9
    codebook.start_at_means(x, mask, iterations=30)
    valid = x[torch.isfinite(x).all(1) & mask]
    if metric == "cosine":
        valid = torch.nn.functional.normalize(valid, dim=1)
    inertia = float(torch.cdist(valid, codebook.weight).square().amin(1).sum())
    best = KMeans(6, init="random", n_init=1, random_state=0).fit(valid.numpy()).inertia_
    assert inertia < 1.2 * best
    assert torch.equal(codebook.ema_sums, codebook.weight)
    assert int(codebook.usage.sum()) == 0
    for given in (normal(0, 3), torch.full((2, 3), torch.nan)):
        with pytest.raises(ValueError, match=r"Codebook.start_at_means: expected at least one finite vector, got none"):
            codebook.start_at_means(given)


OPTIONS: list[dict[str, Any]] = [
    {"update": "ema", "decay": 0.9, "revive_after": 2},
    {"update": "ema", "metric": "cosine"},
    {"update": "gradient", "revive_after": 2},
]


def learned(codebook: Codebook, batches: list[Tensor]) -> dict[str, Tensor]:
    codebook.initialise(normal(12, 5, seed=3))
    codebook.start_at_means(batches[0], iterations=3)
    for x in batches[1:]:
        codebook(x)
    return codebook.state_dict()


def together(rank: int, store: str, whole: list[Tensor], expected: list[dict[str, Tensor]]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for options, state in zip(OPTIONS, expected, strict=True):
        found = learned(Codebook(12, 5, sync=True, **options), [x.chunk(2)[rank] for x in whole])
        for name, value in state.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_learns_from_the_whole_batch() -> None:
    whole = [torch.cat([normal(40, 5, seed=step), normal(40, 5, seed=100 + step) + 5]) for step in range(8)]
    expected = [learned(Codebook(12, 5, **options), whole) for options in OPTIONS]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(together, (os.path.join(folder, "store"), whole, expected), nprocs=2)


def state_of(prefix: str, codes: int = 6, dim: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """What `vector_quantize_pytorch` 1.32 saves of a codebook."""
    entries = normal(1, codes, dim, seed=seed)
    counts = torch.arange(1.0, codes + 1).unsqueeze(0)
    return {
        f"{prefix}initted": torch.ones(1),
        f"{prefix}cluster_size": counts,
        f"{prefix}embed_avg": entries * counts.unsqueeze(2),
        f"{prefix}embed": entries,
    }


def test_a_state_of_vector_quantize_pytorch_becomes_a_codebook() -> None:
    state = state_of("_codebook.")
    codebook = codebook_from_vector_quantize(state, update="ema", decay=0.8)
    assert isinstance(codebook, Codebook)
    assert torch.equal(codebook.weight, state["_codebook.embed"][0])
    assert torch.equal(codebook.ema_counts, torch.arange(1.0, 7))
    torch.testing.assert_close(codebook.ema_sums / codebook.ema_counts.unsqueeze(1), codebook.weight)
    levels = {**state_of("layers.0._codebook."), **state_of("layers.1._codebook.", seed=1)}
    residual = codebook_from_vector_quantize(levels)
    assert torch.equal(residual.levels[1].weight, levels["layers.1._codebook.embed"][0])


def test_a_converted_codebook_chooses_as_the_library_does() -> None:
    library = pytest.importorskip("vector_quantize_pytorch", reason="who has vector-quantize-pytorch runs this")
    x = normal(3, 20, 4)
    for cosine in (False, True):
        theirs = library.VectorQuantize(dim=4, codebook_size=9, use_cosine_sim=cosine).eval()
        ours = codebook_from_vector_quantize(theirs.state_dict(), metric="cosine" if cosine else "l2").eval()
        quantized, index, _ = theirs(x)
        assert torch.equal(ours(x).index, index)
        torch.testing.assert_close(ours(x).quantized, quantized)
    theirs = library.ResidualVQ(dim=4, num_quantizers=3, codebook_size=9).eval()
    found = codebook_from_vector_quantize(theirs.state_dict()).eval()(x)
    quantized, index, _ = theirs(x)
    assert torch.equal(found.index, index)
    torch.testing.assert_close(found.quantized, quantized)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "expected _codebook.embed in the state, got none"),
        ({"project_in.weight": torch.ones(1), **state_of("_codebook.")}, "without projections, got project_in.weight"),
        ({"_codebook.embed": torch.ones(2, 6, 4)}, r"expected _codebook.embed \[1, K, D\], of one head"),
        ({**state_of("_codebook."), "_codebook.initted": torch.zeros(1)}, "got _codebook.initted False"),
        ({**state_of("layers.0._codebook."), **state_of("layers.1._codebook.", 5)}, "levels of one size"),
    ],
)
def test_states_that_are_no_codebooks_get_a_sentence(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"codebook_from_vector_quantize: .*{message}"):
        codebook_from_vector_quantize(state)
