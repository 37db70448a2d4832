"""The Codebook layer: losses, running means, revival and state, against formulas written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from solid_ext.nn.codebook import Codebook, perplexity


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(num_codes: int = 12, dim: int = 5, seed: int = 1, **options: Any) -> Codebook:
    codebook = Codebook(num_codes, dim, **options)
    codebook.initialise(normal(num_codes, dim, seed=seed))
    return codebook


def test_looks_up_the_nearest_entry(backend: str) -> None:
    codebook, x = make(backend=backend), normal(4, 6, 5)
    found = codebook(x)
    assert torch.equal(found.index, torch.cdist(x.double(), codebook.weight.double()).argmin(-1))
    assert torch.equal(found.quantized, codebook.weight[found.index])
    assert torch.equal(found.counts, found.index.flatten().bincount(minlength=12))


@pytest.mark.parametrize("update", ["frozen", "ema", "gradient"])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_its_gradients(backend: str, update: str, masked: bool) -> None:
    codebook = make(update=update, commitment=0.4, backend=backend).eval()
    x = normal(7, 3, 5).requires_grad_()
    mask = normal(7, 3, seed=2) > 0 if masked else torch.ones(7, 3, dtype=torch.bool)
    entry = codebook.weight[codebook(x, mask).index]
    expected = 0.4 * (x - entry.detach())[mask].square().mean()
    if update == "gradient":
        expected = expected + (x.detach() - entry)[mask].square().mean()
    loss = codebook(x, mask if masked else None).loss
    torch.testing.assert_close(loss, expected)
    wanted = (x, codebook.weight) if update == "gradient" else (x,)
    for part, truth in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(part, truth)


@pytest.mark.parametrize("gradient", ["straight_through", "none"])
def test_gradient_of_quantized(backend: str, gradient: str) -> None:
    codebook = make(update="gradient", gradient=gradient, backend=backend)
    x, weight = normal(20, 5).requires_grad_(), normal(20, 5, seed=3)
    found = codebook(x)
    (found.quantized * weight).sum().backward()
    of_x, of_code = x.grad, codebook.weight.grad
    assert of_x is None if gradient == "none" else torch.equal(of_x, weight)
    torch.testing.assert_close(of_code, torch.zeros(12, 5).index_add(0, found.index, weight))


def test_ema_follows_its_formula(backend: str) -> None:
    codebook = make(update="ema", decay=0.9, backend=backend)
    entries = codebook.weight.clone()
    counts, sums = torch.ones(12), entries.clone()
    usage = torch.zeros(12, dtype=torch.int64)
    for step in range(5):
        x, mask = normal(9, 3, 5, seed=step), normal(9, 3, seed=100 + step) > -0.5
        index = torch.cdist(x[mask].double(), entries.double()).argmin(1)
        assert torch.equal(codebook(x, mask).index[mask], index)
        count = index.bincount(minlength=12)
        counts = 0.9 * counts + 0.1 * count
        sums = 0.9 * sums + 0.1 * torch.zeros(12, 5).index_add(0, index, x[mask])
        entries = torch.where(count.unsqueeze(1) > 0, sums / counts.unsqueeze(1), entries)
        usage += count
        torch.testing.assert_close(codebook.weight, entries)
    torch.testing.assert_close(codebook.ema_counts, counts)
    torch.testing.assert_close(codebook.ema_sums, sums)
    assert torch.equal(codebook.usage, usage)


def test_ema_ends_at_the_means_of_planted_clusters(backend: str) -> None:
    centres = 10 * torch.eye(4)
    codebook = Codebook(4, 4, update="ema", decay=0.8, backend=backend)
    codebook.initialise(centres + normal(4, 4))
    for step in range(60):
        codebook(centres.repeat(50, 1) + 0.1 * normal(200, 4, seed=step))
    torch.testing.assert_close(codebook.weight, centres, atol=0.05, rtol=0)


def test_ema_of_cosine_keeps_unit_entries(backend: str) -> None:
    codebook = make(update="ema", metric="cosine", decay=0.5, backend=backend)
    for step in range(4):
        used = codebook(normal(200, 5, seed=step)).counts > 0
    torch.testing.assert_close(codebook.weight[used].norm(dim=1), torch.ones(int(used.sum())))


def test_entries_stay_in_evaluation_mode_and_when_frozen(backend: str) -> None:
    for codebook in (make(backend=backend), make(update="ema", revive_after=1, backend=backend).eval()):
        before = copy.deepcopy(codebook.state_dict())
        found = codebook(normal(50, 5))
        assert torch.equal(codebook.weight, before["weight"])
        if not codebook.training:
            assert all(torch.equal(value, before[name]) for name, value in codebook.state_dict().items())
        else:
            assert torch.equal(codebook.usage, found.counts)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_idle_entries_become_rows_of_the_batch(backend: str, update: str) -> None:
    codebook = Codebook(8, 3, update=update, revive_after=2, backend=backend, seed=5)
    far = torch.full((8, 3), 1e3)
    far[0] = 0
    codebook.initialise(far)
    x, mask = normal(40, 3), torch.arange(40) >= 20
    codebook(x, mask)
    assert torch.equal(codebook.weight[1:], far[1:])
    codebook(x, mask)
    rows = (codebook.weight[1:].unsqueeze(1) == x).all(2)
    assert bool((rows.sum(1) == 1).all())
    chosen = rows.float().argmax(1)
    assert len(set(chosen.tolist())) == 7
    assert bool(mask[chosen].all())
    assert int((codebook(x, mask).counts > 0).sum()) == 8


def test_revival_depends_on_its_own_seed_alone_and_survives_a_resume() -> None:
    def run(seed: int, resume: bool = False) -> Tensor:
        torch.manual_seed(seed * 7 + resume)
        codebook = make(num_codes=30, update="ema", revive_after=1, seed=seed)
        for step in range(6):
            if resume and step == 3:
                state = codebook.state_dict()
                codebook = Codebook(30, 5, update="ema", revive_after=1, seed=seed)
                codebook.load_state_dict(state)
            codebook(normal(40, 5, seed=step))
        return codebook.weight

    assert torch.equal(run(0), run(0, resume=True))
    assert not torch.equal(run(0), run(1))


def test_revival_with_nothing_to_choose_from(backend: str) -> None:
    codebook = make(update="ema", revive_after=1, backend=backend)
    before = codebook.weight.clone()
    codebook(normal(4, 5), torch.zeros(4, dtype=torch.bool))
    codebook(normal(0, 5))
    assert torch.equal(codebook.weight, before)
    codebook(normal(3, 5))  # fewer rows than idle entries
    assert bool(codebook.weight.isfinite().all())


def test_a_row_that_is_not_a_number_spoils_no_entry(backend: str) -> None:
    codebook = make(update="ema", revive_after=1, backend=backend)
    x = normal(30, 5)
    x[3, 2] = torch.nan
    codebook(x)
    assert bool(codebook.weight.isfinite().all())


def test_gradient_update_trains_the_entries(backend: str) -> None:
    codebook = make(update="gradient", backend=backend)
    x = normal(200, 5)
    optimiser = torch.optim.Adam(codebook.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = codebook(x).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_state(backend: str) -> None:
    expected = {
        "frozen": {"weight", "usage"},
        "ema": {"weight", "usage", "ema_counts", "ema_sums", "idle", "calls"},
        "gradient": {"weight", "usage", "idle", "calls"},
    }
    for update, names in expected.items():
        codebook = make(update=update, revive_after=0 if update == "frozen" else 3, backend=backend)
        assert set(codebook.state_dict()) == names
        parameters = [name for name, _ in codebook.named_parameters()]
        assert parameters == (["weight"] if update == "gradient" else [])
        codebook(normal(100, 5))
        other = Codebook(12, 5, update=update, revive_after=0 if update == "frozen" else 3)
        other.load_state_dict(codebook.state_dict())
        assert torch.equal(other(normal(9, 5, seed=4)).quantized, codebook(normal(9, 5, seed=4)).quantized)


def test_initialise_copies_and_forgets() -> None:
    codebook = make(update="ema", decay=0.5)
    codebook(normal(30, 5))
    entries = normal(12, 5, seed=9)
    codebook.initialise(entries)
    assert int(codebook.usage.sum()) == 0
    codebook(normal(30, 5))
    assert torch.equal(entries, normal(12, 5, seed=9))
    gradient = Codebook(12, 5, update="gradient")
    gradient.initialise(entries)
    assert torch.equal(gradient.weight, entries)


def test_one_code(backend: str) -> None:
    codebook = Codebook(1, 4, update="ema", decay=0.0, backend=backend)
    x = normal(30, 4)
    found = codebook(x)
    assert int(found.index.sum()) == 0
    torch.testing.assert_close(codebook.weight[0], x.mean(0))
    assert float(found.perplexity) == 1


def test_batches_without_a_valid_position(backend: str) -> None:
    for update in ("ema", "gradient"):
        codebook = make(update=update, backend=backend)
        before = codebook.weight.detach().clone()
        for x, mask in ((normal(0, 3, 5), None), (normal(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool))):
            found = codebook(x.requires_grad_(), mask)
            (found.loss + found.quantized.sum()).backward()
            assert float(found.loss.detach()) == float(found.perplexity) == 0
            assert torch.equal(codebook.weight, before)


def test_perplexity_counts_codes_in_even_use() -> None:
    assert float(perplexity(torch.tensor([5, 5, 5, 5, 0]))) == pytest.approx(4)
    assert float(perplexity(torch.zeros(3, dtype=torch.int64))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_compiled_training_step_is_the_eager_one(backend: str, update: str) -> None:
    eager = make(update=update, revive_after=2, backend=backend)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    mask = normal(6, 4, seed=8) > -1
    for step in range(3):
        x = normal(6, 4, 5, seed=step).requires_grad_()
        expected, actual = eager(x, mask), compiled(x, mask)
        for part, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(part, wanted)
        wanted = torch.autograd.grad(expected.loss + expected.quantized.sum(), x)
        torch.testing.assert_close(torch.autograd.grad(actual.loss + actual.quantized.sum(), x), wanted)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()["_orig_mod." + name], value)


def test_backends_agree_over_a_training_run() -> None:
    native, plain = (make(40, 5, update="ema", revive_after=2, backend=b) for b in ("native", "reference"))
    for step in range(10):
        x, mask = normal(30, 5, seed=step), normal(30, seed=50 + step) > -1
        found, expected = native(x, mask), plain(x, mask)
        assert torch.equal(found.index, expected.index)
        torch.testing.assert_close(native.weight, plain.weight)


def test_half_precision_vectors(backend: str) -> None:
    codebook = make(update="ema", backend=backend)
    found = codebook(normal(30, 5).bfloat16())
    assert found.quantized.dtype == torch.bfloat16
    assert found.loss.dtype == codebook.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 4), {}, "expected num_codes >= 1, got 0"),
        ((4, 0), {}, "expected dim >= 1, got 0"),
        ((4, 4), {"gradient": "ste"}, "expected gradient in .*, got 'ste'"),
        ((4, 4), {"update": "sgd"}, "expected update in .*, got 'sgd'"),
        ((4, 4), {"metric": "dot"}, "expected metric in .*, got 'dot'"),
        ((4, 4), {"backend": "c"}, "expected backend in .*, got 'c'"),
        ((4, 4), {"decay": 1.0}, "expected 0 <= decay < 1, got 1.0"),
        ((4, 4), {"commitment": -1.0}, "expected commitment >= 0, got -1.0"),
        ((4, 4), {"update": "ema", "revive_after": -1}, "got -1"),
        ((4, 4), {"revive_after": 5}, "0 for update 'frozen', got 5"),
    ],
)
def test_bad_options_get_a_sentence(arguments: tuple[int, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codebook(*arguments, **options)


def test_bad_entries_get_a_sentence() -> None:
    codebook = Codebook(3, 2)
    with pytest.raises(ValueError, match=r"expected weights \[3, 2\], got \[2, 3\]"):
        codebook.initialise(torch.zeros(2, 3))
    for entries in (torch.full((3, 2), torch.nan), torch.zeros(3, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="finite floating-point"):
            codebook.initialise(entries)


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), 2**33 + 1])
def test_seeds_of_any_size_revive(seed: int) -> None:
    found = []
    for given in (seed, seed % 2**32):
        codebook = Codebook(5, 4, update="ema", revive_after=1, seed=given)
        codebook.initialise(torch.arange(20.0).view(5, 4))
        codebook(torch.arange(40.0).view(10, 4) / 100)
        found.append(codebook.weight.clone())
    assert torch.equal(found[0], found[1])
    assert int((found[0] < 1).all(1).sum()) == 4  # all but the one that was chosen


@pytest.mark.parametrize("name", ["num_codes", "dim", "revive_after", "seed"])
def test_numbers_beyond_int64_are_refused(name: str) -> None:
    given = {"num_codes": 5, "dim": 4, "update": "ema", name: 2**70}
    with pytest.raises(
        ValueError, match=f"Codebook: expected {name} <= 9223372036854775807, got 1180591620717411303424"
    ):
        Codebook(**given)


def test_revived_entries_are_unit_vectors_for_cosine_whatever_the_length() -> None:
    codebook = Codebook(3, 4, update="ema", metric="cosine", revive_after=1)
    codebook(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 1e25)
    torch.testing.assert_close(codebook.weight.norm(dim=1), torch.ones(3))
