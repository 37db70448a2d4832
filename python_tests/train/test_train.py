"""Training: convergence by validation, both stages, exact resumption, chance where nothing can be learned."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solid_ext import SOLID, Config, Dataset
from solid_ext.config import PAPER
from solid_ext.data import SyntheticTruth, gather_sequences, leave_one_out, synthetic_dataset
from solid_ext.evaluate import evaluate_full
from solid_ext.methods import method_config
from solid_ext.models import SemanticRecommender
from solid_ext.train import Epoch, Stage, Step, build_model, train_solid, train_stage
from solid_ext.train.checkpoint import load_checkpoint, save_checkpoint
from solid_ext.train.progress import write_log
from solid_ext.train.stage import Trainable

TINY = {"length": 5, "dim": 16, "heads": 2, "codebook_hidden": 16, "learning_rate": 0.01}
SMALL = Config().replace(**PAPER | TINY, batch_size=256, epochs=3)


def epochs_with(values: list[float]) -> Stage:
    return Stage("s", [Epoch("s", number + 1, 0.0, 0.0, value, 0.0) for number, value in enumerate(values)])


def test_the_best_epoch_is_the_first_of_equals() -> None:
    assert epochs_with([0.1, 0.3, 0.3, 0.2]).best.epoch == 2


def test_a_stage_converges_after_patience_or_at_the_last_epoch() -> None:
    config = SMALL.replace(epochs=10, patience=2).train
    assert not Stage("s").converged(config)
    assert not epochs_with([0.1, 0.2, 0.1]).converged(config)
    assert epochs_with([0.1, 0.2, 0.1, 0.2]).converged(config)
    assert epochs_with(list(np.arange(10.0))).converged(config)


def test_the_model_ends_at_its_best_epoch(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, truth = world
    values = iter([0.1, 0.9, 0.2])
    seen: list[torch.Tensor] = []

    def validate(model: Trainable) -> float:
        seen.append(model.item_embedding.weight.detach().clone())
        return next(values)

    model = build_model(SMALL, SMALL.model, dataset.num_items, truth.semantics)
    stage = train_stage("s", model, dataset, leave_one_out(dataset), SMALL.train, validate)
    assert stage.best.epoch == 2
    assert torch.equal(model.item_embedding.weight, seen[1])


def validation_loss(model: Trainable) -> float:
    return -float(next(model.parameters()).detach().square().sum())


def test_a_resumed_run_equals_one_that_never_stopped(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    dataset, truth = world
    split = leave_one_out(dataset)
    config = SMALL.replace(dropout=0.2)

    def train(folder: Path | None, epochs: int) -> dict[str, torch.Tensor]:
        settings = config.replace(epochs=epochs, patience=99)
        model, _ = train_solid(settings, dataset, split, truth.semantics, validation_loss, folder=folder)
        return model.state_dict()

    straight = train(tmp_path / "straight", 3)
    train(tmp_path / "stopped", 3)
    shutil.rmtree(tmp_path / "stopped" / "stage2")
    half = config.replace(epochs=2, patience=99)
    train_solid(half, dataset, split, truth.semantics, validation_loss, folder=tmp_path / "half")
    # Stage 1 of the half run has ended after two of its three epochs: both stages go on from there.
    shutil.rmtree(tmp_path / "half" / "stage2")
    for folder in (tmp_path / "stopped", tmp_path / "half"):
        resumed = train(folder, 3)
        for name, tensor in straight.items():
            assert torch.equal(tensor, resumed[name]), name
    assert (tmp_path / "straight/stage2/log.csv").read_text().count("\n") == 4


def test_native_and_reference_training_agree_in_fp64(world: tuple[Dataset, SyntheticTruth], one_thread: None) -> None:
    dataset, truth = world
    split = leave_one_out(dataset)
    results = {}
    for backend in ("native", "reference"):
        config = SMALL.replace(dtype="float64", backend=backend)
        results[backend], _ = train_solid(config, dataset, split, truth.semantics, validation_loss)
    for name, tensor in results["native"].state_dict().items():
        torch.testing.assert_close(tensor, results["reference"].state_dict()[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("start", ["warm", "generator", "cold"])
def test_stage_2_starts_as_told(world: tuple[Dataset, SyntheticTruth], start: str) -> None:
    dataset, truth = world
    config = SMALL.replace(stage2_start=start, epochs=1, learning_rate=1e-12)
    starts: list[dict[str, torch.Tensor]] = []

    def validate(model: Trainable) -> float:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return 0.0

    train_solid(config, dataset, leave_one_out(dataset), truth.semantics, validate)
    first = {name.removeprefix("network."): tensor for name, tensor in starts[0].items()}
    second = starts[1]
    fresh = build_model(config, config.model, dataset.num_items, truth.semantics).state_dict()

    def same(name: str, expected: torch.Tensor) -> None:
        torch.testing.assert_close(second[name], expected, rtol=0, atol=1e-7)

    same("item.codebook.weight", first["semantic_embedding.table.weight"][1:])
    generator = first if start != "cold" else fresh
    for name in ("semantic_encoder.gru.cell.weight_ih", "dynamic.layers.0.semantic_map"):
        same(name, generator[name])
    backbone = first if start == "warm" else fresh
    same("target.0.weight", backbone["target.0.weight"])
    items = first["item_embedding.weight"][truth.semantics] if start == "warm" else fresh["item_embedding.weight"]
    same("item_embedding.weight", items)
    same("dynamic.layers.0.item_map", fresh["dynamic.layers.0.item_map"])


def test_the_generator_start_carries_the_factors_of_a_low_rank_generator(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, truth = world
    config = SMALL.replace(low_rank=True, stage2_start="generator", epochs=1, learning_rate=1e-12)
    starts: list[dict[str, torch.Tensor]] = []

    def validate(model: Trainable) -> float:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return 0.0

    train_solid(config, dataset, leave_one_out(dataset), truth.semantics, validate)
    first, second = starts
    for name in ("enter.0.weight", "leave.1.weight", "leave.1.bias", "core.0.semantic_map"):
        expected = first[f"network.dynamic.{name}"]
        torch.testing.assert_close(second[f"dynamic.{name}"], expected, rtol=0, atol=1e-7, msg=name)


def test_the_static_method_is_not_finetuned_and_has_no_stage_1() -> None:
    config = SMALL.replace(semantic_trunk=False, item_branch=False, finetune_steps=3, semantic_start=True)
    static = method_config(config, "static")
    assert (static.model.finetune_steps, static.train.semantic_start) == (0, False)


def test_the_control_gives_a_static_model_the_same_start(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, truth = world
    static = SMALL.replace(semantic_trunk=False, item_branch=False, epochs=1, learning_rate=1e-12)
    starts: list[dict[str, torch.Tensor]] = []

    def validate(model: Trainable) -> float:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return 0.0

    for semantic_start, stages in ((False, ["stage2"]), (True, ["stage1", "stage2"])):
        config = static.replace(semantic_start=semantic_start)
        _, trained = train_solid(config, dataset, leave_one_out(dataset), truth.semantics, validate)
        assert [stage.name for stage in trained] == stages
    first, second = starts[-2:]
    expected = first["network.item_embedding.weight"][torch.from_numpy(truth.semantics)]
    torch.testing.assert_close(second["item_embedding.weight"], expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(second["dynamic.0.weight"], first["network.dynamic.0.weight"], rtol=0, atol=1e-7)


def test_stage_1_scores_items_of_one_semantic_alike(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, truth = world
    torch.manual_seed(0)
    model = SemanticRecommender(SMALL.model, truth.semantics).eval()
    sequences = torch.from_numpy(gather_sequences(dataset, leave_one_out(dataset).test, 5))[:8]
    scores = model.score(model.encode(sequences), torch.arange(1, dataset.num_items + 1))
    for semantic in range(1, 7):
        members = scores[:, torch.from_numpy(truth.semantics[1:] == semantic)]
        assert torch.equal(members, members[:, :1].expand_as(members))


def test_a_diverging_loss_gets_a_sentence(world: tuple[Dataset, SyntheticTruth]) -> None:
    dataset, truth = world
    model = build_model(SMALL, SMALL.model, dataset.num_items, truth.semantics)
    with torch.no_grad():
        model.target[0].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="s: expected a finite loss, got nan in epoch 1"):
        train_stage("s", model, dataset, leave_one_out(dataset), SMALL.train, validation_loss)


def test_the_log_has_a_line_an_epoch(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", epochs_with([0.5, 0.25]).history)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "stage,epoch,loss,alignment,valid,seconds,waited"
    assert lines[2] == "s,2,0.0,0.0,0.25,0.0,0.0"


def fit_world(predictability: float) -> tuple[float, float, int]:
    """HR@10 of SOLID on a planted world, the ceiling on the same rows, and the number of items."""
    dataset, truth = synthetic_dataset(
        800, 200, 20, predictability=predictability, drift=0.0, seed=1, min_length=8, max_length=16
    )
    config = SMALL.replace(
        semantics="category",
        category_min_items=1,
        loss="full_softmax",
        epochs=25,
        patience=5,
        learning_rate=0.01,
    )
    solid = SOLID(config).fit(dataset)
    split = solid.training.split
    ceiling = truth.ceiling(gather_sequences(dataset, split.test, 5))["hr@10"]
    return evaluate_full(solid.model, dataset, split.test).values["hr@10"], ceiling, dataset.num_items


def test_a_predictable_world_is_learned_to_near_its_ceiling() -> None:
    reached, ceiling, _ = fit_world(1.0)
    assert ceiling > 0.9
    assert reached > 0.9 * ceiling


def test_a_random_world_stays_at_chance() -> None:
    reached, _, items = fit_world(0.0)
    chance = 10 / items
    assert abs(reached - chance) < 4 * math.sqrt(chance * (1 - chance) / 800)


MIXED = [("sasrec", "full_softmax"), ("gru4rec", "bce"), ("bert4rec", "bce"), ("din", "sampled_softmax")]


class Kept(torch.optim.SGD):
    """An optimizer that moves nothing and keeps the gradients it was asked to apply."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.named, self.gradients = dict(model.named_parameters()), dict[str, torch.Tensor]()

    def step(self, closure: None = None) -> None:
        given = {name: parameter.grad for name, parameter in self.named.items()}
        self.gradients = {name: gradient.clone() for name, gradient in given.items() if gradient is not None}


@pytest.mark.parametrize(("backbone", "loss"), MIXED)
def test_a_mixed_precision_step_has_the_gradients_of_a_float32_one(
    backbone: str, loss: str, world: tuple[Dataset, SyntheticTruth]
) -> None:
    """One step from the same parameters on the same batch: nothing that training would amplify is compared.

    Rounding to bfloat16 errs by up to 2^-9 a number, 2^-8 a product, and a gradient is a chain of a few products.
    A tensor whose gradient is the small rest of large terms that cancel has the error of those terms, so its error
    counts against its own gradient or a tenth of the whole one, whichever is longer. Measured over 8 seeds: at most
    4.8 x 2^-8 a tensor and .07 x 2^-8 for the loss, the same for every instruction set.
    """
    dataset, truth = world
    rows = leave_one_out(dataset).train.take(np.arange(256))
    positives = dataset.items[rows.positions].astype(np.int64)
    sequences = torch.from_numpy(gather_sequences(dataset, rows, SMALL.model.length))
    if loss == "full_softmax":
        candidates = torch.from_numpy(positives)
    else:
        others = np.random.default_rng(0).integers(1, dataset.num_items + 1, (len(positives), 4))
        candidates = torch.from_numpy(np.concatenate([positives[:, None], others], axis=1))
    found = {}
    for amp in (False, True):
        config = SMALL.replace(backbone=backbone, loss=loss, amp=amp, seed=7)
        model = build_model(config, config.model, dataset.num_items, truth.semantics)
        kept = Kept(model)
        value, _ = Step(model, kept, config.train)(sequences, candidates)
        found[amp] = float(value), kept.gradients
        assert {gradient.dtype for gradient in kept.gradients.values()} == {torch.float32}
    (exact_loss, exact), (mixed_loss, mixed) = found[False], found[True]
    assert abs(mixed_loss - exact_loss) <= 2**-8 * exact_loss
    assert mixed.keys() == exact.keys()
    assert any(not torch.equal(mixed[name], exact[name]) for name in exact)  # it was computed in mixed precision
    whole = math.sqrt(sum(float(gradient.square().sum()) for gradient in exact.values()))
    for name, gradient in exact.items():
        error = float((mixed[name] - gradient).norm())
        assert error <= 10 * 2**-8 * max(float(gradient.norm()), whole / 10), name


@pytest.mark.parametrize(("backbone", "loss"), MIXED)
def test_mixed_precision_trains(backbone: str, loss: str, world: tuple[Dataset, SyntheticTruth]) -> None:
    solid = SOLID(SMALL.replace(backbone=backbone, loss=loss, amp=True, eval_negatives=20)).fit(world[0])
    assert solid.model is not None
    assert all(parameter.dtype == torch.float32 for parameter in solid.model.parameters())
    for stage in solid.training.stages:
        assert stage.history[-1].loss < stage.history[0].loss


def test_a_device_that_is_not_there_is_refused_before_work_starts(world: tuple[Dataset, SyntheticTruth]) -> None:
    with pytest.raises(ValueError, match="device: expected cpu, cuda or cuda:N, got 'gpu'"):
        SOLID(device="gpu")
    with pytest.raises(ValueError, match="tf32: expected device cuda, got cpu"):
        SOLID(tf32=True)
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match="device: expected cpu or one of the"):
        SOLID(device=absent).fit(world[0])


def trained(dataset: Dataset, semantics: np.ndarray, config: Config, folder: Path) -> list[Stage]:
    return train_solid(config, dataset, leave_one_out(dataset), semantics, validation_loss, folder=folder)[1]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"learning_rate": 0.02}, "expected learning_rate=0.01 as in .*stage1, got 0.02"),
        ({"seed": 1}, "expected seed=0 as in .*stage1, got 1"),
        ({"dim": 8}, "expected dim=16 as in .*stage1, got 8"),
        ({"delta": 0.5}, "expected delta=0.01 as in .*stage2, got 0.5"),
        ({"epochs": 1}, "expected epochs of at least 2 as in .*stage1, got 1"),
        ({"patience": 3}, "expected patience of at least 20 as in .*stage1, got 3"),
    ],
)
def test_a_stage_resumes_its_own_configuration_alone(
    fields: dict[str, object], sentence: str, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    dataset, truth = world
    config = SMALL.replace(epochs=2)
    trained(dataset, truth.semantics, config, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(ValueError, match=f"resume: {sentence}"):
        trained(dataset, truth.semantics, config.replace(**fields), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    trained(dataset, truth.semantics, config.replace(threads=1, tensorboard=True), tmp_path)


def test_a_stage_resumes_its_own_data_alone(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    dataset, truth = world
    config = SMALL.replace(epochs=1)
    trained(dataset, truth.semantics, config, tmp_path)
    other, theirs = synthetic_dataset(400, 60, 6, predictability=1.0, drift=0.0, seed=4)
    with pytest.raises(ValueError, match=r"resume: expected the dataset of .*stage1"):
        trained(other, theirs.semantics, config, tmp_path)
    moved = truth.semantics.copy()
    moved[1] = moved[1] % 6 + 1
    with pytest.raises(ValueError, match=r"resume: expected the items' semantics of .*stage1"):
        trained(dataset, moved, config, tmp_path)
    (tmp_path / "stage1").rename(tmp_path / "mine")
    shutil.copytree(tmp_path / "stage2", tmp_path / "stage1")
    with pytest.raises(ValueError, match=r"resume: expected stage stage1 in .*, got stage2"):
        trained(dataset, truth.semantics, config, tmp_path)


def test_a_best_model_of_another_training_is_refused(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    dataset, truth = world
    for name, rate in (("a", 0.01), ("b", 0.02)):
        trained(dataset, truth.semantics, SMALL.replace(learning_rate=rate), tmp_path / name)
    best = tmp_path / "a" / "stage2" / "best.safetensors"
    shutil.copy(tmp_path / "b" / "stage2" / "best.safetensors", best)
    with pytest.raises(ValueError, match=r"resume: expected learning_rate=0.02 as in .*stage2, got 0.01"):
        trained(dataset, truth.semantics, SMALL, tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors, state: state.pop("history"), "without its history"),
        (lambda tensors, state: state.update(config=[1]), "without its config"),
        (lambda tensors, state: state.update(inputs=None), "without its inputs"),
        (lambda tensors, state: state["config"].update(epochs="many"), "epochs=many"),
        (lambda tensors, state: state.update(history=[]), "the state of a training"),
        (lambda tensors, state: state["history"][0].update(loss=1.0), r"best\.safetensors of the same training"),
        (lambda tensors, state: tensors.pop("model.gate", None) or tensors.pop("model.semantics"), "has none"),
        (lambda tensors, state: tensors.update({"optimizer.1.exp_avg": torch.zeros(3)}), "exp_avg .* of a parameter"),
        (lambda tensors, state: tensors.update({"optimizer.0.step": torch.tensor(math.nan)}), "with NaN"),
        (
            lambda tensors, state: [tensors.pop(name) for name in list(tensors) if name.startswith("optimizer.")],
            "no moments of Adam",
        ),
    ],
)
def test_a_checkpoint_that_somebody_made_up_is_refused(
    change: Any, sentence: str, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    dataset, truth = world
    config = SMALL.replace(epochs=1, item_branch=False, semantic_trunk=False)
    trained(dataset, truth.semantics, config, tmp_path)
    tensors, state = load_checkpoint(tmp_path / "stage2" / "last.safetensors")
    change(tensors, state)
    save_checkpoint(tmp_path / "stage2" / "last.safetensors", tensors, state)
    with pytest.raises(ValueError, match=f"(resume|checkpoint): expected .*{sentence}"):
        trained(dataset, truth.semantics, config, tmp_path)


def test_a_finished_training_goes_on_with_more_epochs_as_if_it_had_had_them(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    """Stage 2 starts from stage 1's best epoch: where that is another now, stage 2 is trained anew."""
    dataset, truth = world
    straight, _ = train_solid(
        SMALL.replace(epochs=4), dataset, leave_one_out(dataset), truth.semantics, rising, folder=tmp_path / "once"
    )
    for epochs in (2, 4):
        twice, stages = train_solid(
            SMALL.replace(epochs=epochs),
            dataset,
            leave_one_out(dataset),
            truth.semantics,
            rising,
            folder=tmp_path / "twice",
        )
    assert [len(stage.history) for stage in stages] == [4, 4]
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name]), name


def rising(model: Trainable) -> float:
    """A validation metric that every epoch betters."""
    return float(next(model.parameters()).detach().square().sum())


def test_a_training_that_goes_on_otherwise_says_that_bits_will_differ(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, truth = world
    config = SMALL.replace(epochs=1, item_branch=False)
    trained(dataset, truth.semantics, config, tmp_path)
    monkeypatch.setattr("solid_ext.train.stage_folder.arithmetic", lambda: {"isa": "abacus", "threads": 7})
    trained(dataset, truth.semantics, config, tmp_path)  # nothing is left to train
    with pytest.warns(UserWarning, match="goes on with 7 threads and abacus: the last bits will differ"):
        trained(dataset, truth.semantics, config.replace(epochs=2), tmp_path)


@pytest.mark.parametrize("rate", [1e3, 1e4])
@pytest.mark.parametrize("loss", ["bce", "sampled_softmax", "full_softmax"])
def test_a_loss_far_above_that_of_guessing_is_no_end_of_a_training(
    rate: float, loss: str, world: tuple[Dataset, SyntheticTruth]
) -> None:
    with pytest.raises(FloatingPointError, match=rf"stage1: expected .* a learning_rate below {rate:g} may help"):
        SOLID(SMALL.replace(learning_rate=rate, loss=loss, eval_negatives=20)).fit(world[0])


def test_a_trained_model_is_left_in_eval_mode(world: tuple[Dataset, SyntheticTruth]) -> None:
    solid = SOLID(SMALL.replace(epochs=1, eval_negatives=20)).fit(world[0])
    assert not any(module.training for module in solid.model.modules())  # type: ignore[union-attr]


@pytest.mark.parametrize("fields", [{"length": 65_536, "dim": 65_536}, {"blocks": 1000, "dim": 16_384}])
def test_a_network_larger_than_the_memory_is_refused_before_it_is_made(
    fields: dict[str, int], world: tuple[Dataset, SyntheticTruth]
) -> None:
    config = SMALL.replace(**fields)
    with pytest.raises(ValueError, match=r"model: expected a network that can be trained in this machine's .* GiB"):
        build_model(config, config.model, world[0].num_items, world[1].semantics)


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"weight_decay": 1e6}, r"a weight_decay below 100 \(it is 1e\+06\) may help"),
        ({"alignment": 1e300}, r"an alignment below 1000 \(it is 1e\+300\) may help"),
        ({"alignment": 1e300, "weight_decay": 1e6}, r"a weight_decay below 100 .* and an alignment below 1000 .* may"),
    ],
)
def test_a_training_that_diverges_names_what_is_large(
    fields: dict[str, Any], advice: str, world: tuple[Dataset, SyntheticTruth]
) -> None:
    with pytest.raises(FloatingPointError, match=rf"expected .* in epoch \d; {advice}"):
        SOLID(SMALL.replace(**fields, eval_negatives=20)).fit(world[0])


def test_an_alignment_that_outweighs_the_prediction_is_no_divergence(world: tuple[Dataset, SyntheticTruth]) -> None:
    """What remains of their sum once the one is taken off again is rounding."""
    stages = SOLID(SMALL.replace(alignment=1e10, epochs=1, eval_negatives=20)).fit(world[0]).training.stages
    assert stages[-1].history[0].loss > stages[-1].history[0].alignment * 1e9


@pytest.mark.parametrize("seed", [2**32, 2**63 - 1])
@pytest.mark.parametrize("semantics", ["id", "text"])
def test_every_seed_that_is_allowed_trains(seed: int, semantics: str, world: tuple[Dataset, SyntheticTruth]) -> None:
    config = SMALL.replace(seed=seed, semantics=semantics, num_semantics=4, epochs=1, eval_negatives=20)
    assert SOLID(config).fit(world[0]).training.stages[-1].history


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"loss": "bce", "negatives": 2_000_000_000}, "batch_size and negatives"),
        ({"loss": "sampled_softmax", "negatives": 10_000_000}, "batch_size and negatives"),
        ({"length": 65_536, "batch_size": 100_000, "dim": 64}, "batch_size, length and dim"),
        (
            {"generator_length": 65_536, "batch_size": 100_000, "generator_dim": 64},
            "batch_size, generator_length and generator_dim",
        ),
    ],
)
def test_a_batch_larger_than_the_memory_is_refused_before_work_starts(
    fields: dict[str, Any], named: str, world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solid_ext.train.algorithm._memory", lambda: 64 * 2**30)
    with pytest.raises(ValueError, match=rf"{named}: expected a step that fits into .* 64 GiB, got one of at least"):
        SOLID(SMALL.replace(**fields)).fit(world[0])


def test_a_device_beyond_those_that_torch_counts_is_refused(world: tuple[Dataset, SyntheticTruth]) -> None:
    with pytest.raises(ValueError, match=r"device: expected cpu or one of the \d CUDA devices .*, got cuda:999"):
        SOLID(SMALL.replace(device="cuda:999")).fit(world[0])
