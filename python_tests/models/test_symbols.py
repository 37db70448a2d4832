"""The lean forms of the network's parts are the plain formulas: values, every gradient, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from python_tests.models.test_models import make_model
from python_tests.ops.cases import LEVELS, instruction_set, peak_bytes
from solid_ext import Config
from solid_ext.config import PAPER
from solid_ext.models.decoder import CodebookDecoder
from solid_ext.models.symbols import SymbolEmbedding
from solid_ext.nn import Codebook
from solid_ext.nn.lookup import Lookup
from solid_ext.nn.transformer import TransformerBlock
from solid_ext.ops import reference
from solid_ext.ops._arguments import Backend
from solid_ext.ops.symbols import embed_symbols

SEQUENCES = torch.tensor([[3, 1, 0, 0], [7, 7, 2, 5], [0, 0, 0, 0], [4, 0, 0, 0]])
MASK = SEQUENCES > 0
NETWORKS: list[dict[str, object]] = [
    {},
    {"item_branch": False, "semantic_trunk": False},
    {"backbone": "din"},
    {"backbone": "bert4rec"},
]


def gradients_of(output: Tensor, module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), [*module.parameters(), *inputs]))


def assert_all_close(first: list[Tensor], second: list[Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("symbols", [7, 200], ids=["fewer symbols than positions", "more symbols than positions"])
def test_symbol_embedding_is_its_formula(symbols: int) -> None:
    torch.manual_seed(0)
    native = SymbolEmbedding(symbols, 6, 5).double()
    plain = SymbolEmbedding(symbols, 6, 5, backend="reference").double()
    plain.load_state_dict(native.state_dict())
    torch.testing.assert_close(native(SEQUENCES), plain(SEQUENCES), rtol=1e-12, atol=1e-14)
    assert native(SEQUENCES)[~MASK].eq(0).all()
    assert_all_close(gradients_of(native(SEQUENCES), native), gradients_of(plain(SEQUENCES), plain))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_ids_and_lengths_that_a_table_lacks_are_refused(backend: Backend) -> None:
    symbols, lookup = SymbolEmbedding(7, 4, 5, backend=backend), Lookup(8, 3, backend=backend)
    for wrong, got in ((8, "8"), (10**9, "1000000000"), (-1, "-1")):
        ids = SEQUENCES.clone()
        ids[3, 1] = wrong
        with pytest.raises(ValueError, match=rf"SymbolEmbedding: expected sequences in 0 \.\. 7, got {got}"):
            symbols(ids)
        with pytest.raises(ValueError, match=rf"Lookup: expected index in 0 \.\. 7, got {got}"):
            lookup(ids)
    with pytest.raises(ValueError, match=r"SymbolEmbedding: expected sequences \[B, L <= 4\], got \[4, 8\]"):
        symbols(SEQUENCES.repeat(1, 2))
    for module in (symbols, lookup):
        with pytest.raises(TypeError, match=r"of torch\.int64, got torch\.int32"):
            module(SEQUENCES.int())


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("changes", NETWORKS)
def test_the_network_refuses_ids_and_lengths_that_it_has_no_rows_for(backend: str, changes: dict[str, object]) -> None:
    model = make_model(backend=backend, **changes).eval()
    items, length = model.num_items, model.length
    sequence = torch.zeros(2, length, dtype=torch.int64)
    sequence[:, 0] = 1
    state = model.encode(sequence)
    assert model.score(state, torch.tensor([1, items])).shape == (2, 2)
    for wrong in (items + 1, 10**9, -1):
        bad = sequence.clone()
        bad[1, 0] = wrong
        with pytest.raises(ValueError, match=rf"encode: expected sequences of item ids in 0 \.\. {items}, got {wrong}"):
            model.encode(bad)
        with pytest.raises(ValueError, match=rf"score: expected candidates of item ids in 0 \.\. {items}, got {wrong}"):
            model.score(state, torch.tensor([1, wrong]))
    for shape in ([2, 400], [2, 0], [2]):
        with pytest.raises(ValueError, match=rf"encode: expected sequences \[B, L\] with L in 1 \.\. {length}, got"):
            model.encode(torch.ones(shape, dtype=torch.int64))
    for shape in ([3, 1], [1, 1, 1]):
        with pytest.raises(ValueError, match=r"score: expected candidates \[B=2, T\] or \[T\], got \[[31], 1"):
            model.score(state, torch.ones(shape, dtype=torch.int64))
    for dtype in (torch.float32, torch.int32, torch.bool):
        with pytest.raises(TypeError, match="encode: expected sequences of item ids of torch"):
            model.encode(sequence.to(dtype))
        with pytest.raises(TypeError, match="score: expected candidates of item ids of torch"):
            model.score(state, torch.tensor([1]).to(dtype))
    for given in (sequence.numpy(), sequence.tolist()):
        with pytest.raises(TypeError, match="encode: expected sequences a tensor"):
            model.encode(given)


@pytest.mark.parametrize("padding", [None, 0])
def test_lookup_is_an_embedding(padding: int | None) -> None:
    torch.manual_seed(0)
    native = Lookup(8, 3, padding_idx=padding).double()
    plain = nn.Embedding(8, 3, padding_idx=padding).double()
    plain.load_state_dict(native.state_dict())
    assert torch.equal(native(SEQUENCES), plain(SEQUENCES))
    assert_all_close(gradients_of(native(SEQUENCES), native), gradients_of(plain(SEQUENCES), plain))


@pytest.mark.parametrize("update", ["gradient", "ema", "frozen"])
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_decoding_entries_once_is_decoding_positions(update: str, gradient: str) -> None:
    torch.manual_seed(0)
    book = Codebook(6, 5, update=update, gradient=gradient).double()
    decoder = CodebookDecoder(5, 9).double()
    x = torch.randn(4, 4, 5, dtype=torch.float64, requires_grad=True)
    parameters = nn.ModuleList([book, decoder])
    assert decoder.decodes_entries(SEQUENCES.numel(), book)
    assert not decoder.decodes_entries(5, book)
    decoded = decoder.decode_entries(book.weight.detach().clone())
    before = book.weight.detach().clone()
    found = book(x, MASK)
    assert torch.equal(before, book.weight) == (update != "ema")
    value = decoder.look_up(decoded, found, MASK)
    plain = decoder(found.quantized)
    torch.testing.assert_close(value[MASK], plain[MASK], rtol=1e-12, atol=1e-14)
    mask = MASK.unsqueeze(2)
    native, expected = value, plain * mask  # what comes back for padding reaches nothing
    weights = torch.linspace(-1, 2, native.numel(), dtype=torch.float64).view_as(native)
    wanted = [x, *parameters.parameters()]
    assert_all_close(
        list(torch.autograd.grad((native * weights).sum(), wanted, retain_graph=True)),
        list(torch.autograd.grad((expected * weights).sum(), wanted)),
    )


@pytest.mark.parametrize("heads", [1, 4])
def test_one_query_attends_like_any_other(heads: int) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(8, heads, 0.0).double()
    states = torch.randn(5, 7, 8, dtype=torch.float64, requires_grad=True)
    allowed = torch.rand(5, 1, 7) < 0.6
    allowed[:, :, 0] = True
    one = block(states[:, 3:4], states, allowed)
    two = block(states[:, 3:5], states, allowed)[:, :1]
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)
    assert_all_close(gradients_of(one, block, states), gradients_of(two, block, states))


def test_a_logit_is_the_product_with_the_target_tower() -> None:
    model = make_model().double()
    state = torch.randn(3, 8, dtype=torch.float64)
    candidates = torch.tensor([[1, 2], [3, 3], [5, 4]])
    vectors = model.target(model.item_embedding(candidates))
    expected = torch.einsum("bd,btd->bt", state, vectors)
    torch.testing.assert_close(model.score(state, candidates), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(model.score(state, candidates[1]), state @ vectors[1].T, rtol=1e-12, atol=1e-13)


def test_a_training_step_holds_little() -> None:
    """Peak of tensors in a step, beyond parameters, in arrays [B, L, d]: the plain formulas hold four times as many."""
    peaks = {backend: _peak(backend) for backend in ("native", "reference")}
    assert peaks["native"] * 4 <= peaks["reference"], peaks


def _peak(backend: str) -> int:
    import numpy as np

    from solid_ext.models import DynamicRecommender
    from solid_ext.train.losses import binary_cross_entropy

    torch.manual_seed(0)
    items, codes = 4385, 590
    semantics = np.concatenate([[0], np.arange(items) % codes + 1])
    model = DynamicRecommender(Config().replace(**PAPER, backend=backend).model, items, semantics)
    sequences, candidates = torch.randint(1, items + 1, (1024, 10)), torch.randint(1, items + 1, (1024, 5))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        state = model(sequences)
        (binary_cross_entropy(model.score(state.vector, candidates)) + 0.1 * state.auxiliary_loss).backward()

    step()
    model.zero_grad(set_to_none=True)
    return peak_bytes(step)


@pytest.fixture(params=LEVELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with instruction_set(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("dim", [1, 7, 16, 33])
def test_embed_symbols_is_its_reference(isa: str, dim: int, looked_up: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for sequences in (SEQUENCES, torch.randint(0, 9, (130, 10)), torch.zeros(0, 3, dtype=torch.int64)):
        batch, length = sequences.shape
        symbol = torch.randn(batch * length if looked_up else 9, dim, dtype=dtype) * 3
        age = torch.randn(length, dim, dtype=dtype)
        expected = reference.embed_symbols(sequences, symbol.double(), age.double(), looked_up)
        found = embed_symbols(sequences, symbol, age, looked_up)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 5e-7)
        torch.set_num_threads(3)
        again = embed_symbols(sequences, symbol, age, looked_up)
        torch.set_num_threads(1)
        assert torch.equal(again, found)


def test_embed_symbols_is_a_sound_operator() -> None:
    torch.library.opcheck(
        torch.ops.solid_ext.embed_symbols.default, (SEQUENCES, torch.randn(9, 4), torch.randn(4, 4), False)
    )


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_no_index_gives_the_table_a_gradient_of_zeros(
    backend: Backend, shape: tuple[int, ...], padding: int | None
) -> None:
    lookup = Lookup(4, 3, padding_idx=padding, backend=backend)
    found = lookup(torch.zeros(shape, dtype=torch.int64))
    assert found.shape == (*shape, 3)
    found.sum().backward()
    assert lookup.weight.grad is not None
    assert int(lookup.weight.grad.count_nonzero()) == 0


def test_no_position_gives_the_other_functions_gradients_of_zeros() -> None:
    symbols = SymbolEmbedding(7, 4, 5)
    symbols(torch.zeros(0, 4, dtype=torch.int64)).sum().backward()
    decoder, codebook = CodebookDecoder(5, 6), Codebook(3, 5, update="gradient")
    found = codebook(torch.zeros(0, 4, 5))
    mask = torch.ones(0, 4, dtype=torch.bool)
    decoder.look_up(decoder.decode_entries(codebook.weight.detach().clone()), found, mask).sum().backward()
    for module in (symbols, decoder, codebook):
        assert all(p.grad is None or int(p.grad.count_nonzero()) == 0 for p in module.parameters())
