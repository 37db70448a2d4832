"""SOLID as one object: from any form of interactions to recommendations, and back from a folder."""

from __future__ import annotations

import hashlib
import inspect
import io
import itertools
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from python_tests.untrained import untrained
from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.data import Rows, Semantics, SyntheticTruth, synthetic_dataset
from solid_ext.evaluate import Scorer
from solid_ext.evaluate.protocols import full_ranks_of_each
from solid_ext.files import MANIFEST, describe_folder, read_json
from solid_ext.methods import method_config
from solid_ext.train import Silent, load_checkpoint, save_checkpoint
from solid_ext.train.isolation import isolated

TINY = Config().replace(length=5, dim=16, heads=2, codebook_hidden=16, batch_size=512, epochs=1, eval_negatives=20)


@pytest.fixture(scope="module")
def fitted(world: tuple[Dataset, SyntheticTruth]) -> SOLID:
    return SOLID(TINY).fit(world[0])


def frame(dataset: Dataset) -> pl.DataFrame:
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    return pl.DataFrame(
        {
            "user_id": dataset.user_ids.gather(users),
            "item_id": dataset.item_ids.gather(dataset.items - 1),
            "timestamp": dataset.timestamps,
        }
    )


def tell_the_manifest(folder: Path) -> None:
    """Make the manifest say that the files are as they were written, as somebody with bad intentions would."""
    manifest = read_json(folder / MANIFEST, "test")
    del manifest["files"]
    (folder / MANIFEST).unlink()
    describe_folder(folder, MANIFEST, manifest)


@pytest.mark.parametrize("form", ["dataset", "folder", "csv", "polars", "pandas", "arrays"])
def test_any_form_of_the_data_gives_the_same_model(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, form: str
) -> None:
    dataset = world[0]
    table = frame(dataset)
    if form == "dataset":
        data = dataset
    elif form == "folder":
        data = dataset.save(tmp_path / "data")
    elif form == "csv":
        table.write_csv(tmp_path / "interactions.csv")
        data = tmp_path / "interactions.csv"
    else:
        data = {
            "polars": lambda: table,
            "pandas": lambda: table.to_pandas(),
            "arrays": lambda: tuple(table[name].to_numpy() for name in table.columns),
        }[form]()
    solid = SOLID(TINY, semantics="id", num_semantics=4).fit(data)
    np.testing.assert_array_equal(solid.training.dataset.items, dataset.items)
    titled = form in ("dataset", "folder")  # the interactions alone have no titles, which the fingerprint covers
    assert solid.fingerprint == (dataset if titled else load_dataset(table)).fingerprint
    metrics = solid.evaluate()
    assert set(metrics) == {"sampled", "full", "beyond"}
    history = dataset.item_ids.head(3).to_list()
    assert len(solid.recommend([history], k=4)[0]) == 4


@pytest.mark.parametrize("loss", ["bce", "full_softmax"])
def test_a_small_catalogue_and_a_user_with_every_item_train_and_are_evaluated(loss: str) -> None:
    rng = np.random.default_rng(0)
    counts = np.append(30, rng.integers(4, 12, 60))
    items = np.concatenate([rng.permutation(30)[:count] for count in counts])
    dataset = load_dataset((np.repeat(np.arange(61), counts), items, np.arange(items.size)))
    assert dataset.report["users_with_all_items"] == 1
    metrics = SOLID(TINY, semantics="id", num_semantics=4, loss=loss, epochs=1).fit(dataset).evaluate()
    assert all(np.isfinite(value) for values in metrics.values() for value in values.values())


def test_full_validation_leaves_stage1_to_the_sampled_protocol(world: tuple[Dataset, SyntheticTruth]) -> None:
    """Items of one semantic tie in stage 1, so that full ranking, where ties count against a model, is blind there."""
    by = {name: SOLID(TINY, validation=f"{name}:ndcg@10").fit(world[0]).training.stages for name in ("sampled", "full")}
    first, second = (
        {name: [epoch.valid for epoch in stages[i].history] for name, stages in by.items()} for i in (0, 1)
    )
    assert first["full"] == first["sampled"]
    assert second["full"] != second["sampled"]


def test_saved_and_loaded_it_recommends_and_measures_the_same(
    fitted: SOLID, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    fitted.save(tmp_path / "model")
    loaded = SOLID.load(tmp_path / "model")
    histories = [world[0].item_ids.head(4).to_list(), world[0].item_ids.tail(2).to_list()]
    assert loaded.recommend(histories, 5) == fitted.recommend(histories, 5)
    assert loaded.evaluate(world[0]) == fitted.evaluate()
    with pytest.raises(ValueError, match="save: expected a folder that does not exist yet"):
        fitted.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"expected the dataset that the model was fitted on, as in evaluate\(data\)"):
        loaded.evaluate()
    with pytest.raises(ValueError, match=r"SOLID: expected a model that fit\(\) trained here, got one that load"):
        _ = loaded.training


def test_the_same_seed_gives_the_same_model_and_another_another(
    fitted: SOLID, world: tuple[Dataset, SyntheticTruth]
) -> None:
    again = SOLID(TINY).fit(world[0])
    other = SOLID(TINY, seed=1).fit(world[0])
    key = "item_embedding.weight"
    assert torch.equal(again.model.state_dict()[key], fitted.model.state_dict()[key])
    assert not torch.equal(other.model.state_dict()[key], fitted.model.state_dict()[key])


def test_histories_of_any_length(fitted: SOLID, world: tuple[Dataset, SyntheticTruth]) -> None:
    items = world[0].item_ids.to_list()
    one, long = fitted.recommend([items[:1], items[:30]], k=3)
    assert len(one) == len(long) == 3
    assert (
        fitted.recommend([items[:30]], k=3, exclude_history=False)[0]
        == fitted.recommend([items[10:30]], k=3, exclude_history=False)[0]
    )


def test_code_usage_counts_every_valid_position(fitted: SOLID) -> None:
    usage = fitted.code_usage()
    lengths = fitted.training.split.test.positions - fitted.training.dataset.offsets[fitted.training.split.test.users]
    assert usage.sum() == np.minimum(lengths, 5).sum()
    assert usage.shape == (fitted.model.num_semantics,)


def test_before_fit_everything_says_so() -> None:
    for call in (lambda: SOLID().evaluate(), lambda: SOLID().recommend([[1]]), lambda: SOLID().save("x")):
        with pytest.raises(ValueError, match="expected a fitted model"):
            call()


def test_another_dataset_gets_a_sentence(fitted: SOLID, tmp_path: Path) -> None:
    other = synthetic_dataset(50, 60, 6, seed=9)[0]
    with pytest.raises(ValueError, match="evaluate: expected the dataset the model was fitted on"):
        fitted.evaluate(other)


def test_a_broken_model_folder_gets_a_sentence(fitted: SOLID, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"load: expected a folder with model\.safetensors"):
        SOLID.load(tmp_path)
    fitted.save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"load: expected [\d,]+ bytes in .*model\.safetensors, got"):
        SOLID.load(tmp_path / "model")
    tell_the_manifest(tmp_path / "model")
    with pytest.raises(ValueError, match="checkpoint: expected safetensors in"):
        SOLID.load(tmp_path / "model")
    file.write_bytes(whole)
    save_file(load_file(file), file)  # without the state: a file of some other program
    tell_the_manifest(tmp_path / "model")
    with pytest.raises(ValueError, match="expected format version 2"):
        SOLID.load(tmp_path / "model")
    file.write_bytes(whole)
    config = tmp_path / "model" / "config.yaml"
    config.write_text(config.read_text().replace("dim: 16", "dim: 32"), encoding="utf-8")
    tell_the_manifest(tmp_path / "model")
    with pytest.raises(ValueError, match=r"checkpoint: expected .* got .* in"):
        SOLID.load(tmp_path / "model")


def test_a_flipped_bit_anywhere_is_refused(
    fitted: SOLID, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    folder = fitted.save(tmp_path / "model")
    history = world[0].item_ids.head(3).to_list()
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in [0, len(whole) - 1, *rng.integers(0, len(whole), 8)]:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bytes(flipped))
            with pytest.raises(ValueError, match="load: expected"):
                SOLID.load(folder)
        path.write_bytes(whole)
    assert SOLID.load(folder).recommend([history], 3) == fitted.recommend([history], 3)


READS = ("verify_folder", "Config.from_yaml", "load_checkpoint", "Catalogue.load", "restore_model")


@pytest.mark.parametrize("read", [*READS, "WithNeighbours.load"])
def test_a_folder_replaced_between_two_reads_is_loaded_as_one_model(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models have the same sizes, so that a mixture of them would pass for a model."""
    old, new = (untrained(60, [f"{name} {item}" for item in range(60)], seed) for seed, name in enumerate("ab"))
    folder, times = old.save(tmp_path / "model"), []
    at_each_call(monkeypatch, read, lambda: times.append(read) or len(times) > 1 or new.save(folder, overwrite=True))
    loaded = SOLID.load(folder)
    assert loaded.version == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert loaded.recommend([[10, 20, 30]], 9) == new.recommend([[10, 20, 30]], 9)
    for name, tensor in new.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert abs(loaded.neighbours.knn.similarity - new.neighbours.knn.similarity).max() == 0
    assert len(times) == 2


@pytest.mark.parametrize("read", READS)
def test_a_folder_replaced_again_and_again_is_refused_in_a_sentence(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [untrained(60, seed=seed) for seed in (1, 2)]
    folder, turn = models[0].save(tmp_path / "model"), itertools.cycle(models[::-1])
    at_each_call(monkeypatch, read, lambda: next(turn).save(folder, overwrite=True))
    with pytest.raises(ValueError, match=r"^load: expected a folder that stays while it is read, got .*, replaced 5 t"):
        SOLID.load(folder)


def at_each_call(monkeypatch: pytest.MonkeyPatch, name: str, happens: Callable[[], Any]) -> None:
    """Let something happen before each call of a function, or of a class's, that `model_folder` reads by."""
    owner, _, function = f"solid_ext.model_folder.{name}".rpartition(".")
    original = pkgutil.resolve_name(f"{owner}.{function}")

    def called(*arguments: Any, **named: Any) -> Any:
        happens()
        return original(*arguments, **named)

    monkeypatch.setattr(
        f"{owner}.{function}", staticmethod(called) if inspect.isclass(pkgutil.resolve_name(owner)) else called
    )


def test_the_version_is_that_of_the_folder_a_model_was_loaded_from(
    fitted: SOLID, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    folder = fitted.save(tmp_path / "model")
    loaded = SOLID.load(folder)
    assert fitted.version is None
    assert loaded.version == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert loaded.add_items({"item_id": ["one more"]}).version is None
    assert loaded.fit(world[0]).version is None


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items.head(50),
        lambda items: pl.concat([items, items.tail(1)]),
        lambda items: items.with_columns(item_id=pl.lit(items["item_id"][0])),
        lambda items: items.with_columns(item_id=pl.lit(None)),
        lambda items: items.head(0),
        lambda items: items.rename({"item_id": "id"}),
        lambda items: items.with_columns(item_id=pl.concat_list("item_id")),
        lambda items: items.with_columns(item_id=pl.struct("item_id")),
    ],
)
def test_other_items_than_the_models_are_refused(change: Any, fitted: SOLID, tmp_path: Path) -> None:
    folder = fitted.save(tmp_path / "model")
    change(pl.read_parquet(folder / "items.parquet")).write_parquet(folder / "items.parquet")
    with pytest.raises(ValueError, match=r"load: expected .*items\.parquet"):
        SOLID.load(folder)
    tell_the_manifest(folder)
    with pytest.raises(ValueError, match=r"load: expected .*items\.parquet|Catalogue\.load: expected (a column|ids)"):
        SOLID.load(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "checkpoint: expected"),  # the defaults, which this model has not
        ("blocks: 1000000", "blocks: expected at most 1,000"),
        ("dim: 65536", "checkpoint: expected"),
        ("length: 65536\ndim: 65536", "checkpoint: expected"),
        ("backbone: gru", r"got 'gru'; did you mean gru4rec\?"),
        ("dim: {a: 1}", "got a mapping inside another"),
    ],
)
def test_another_configuration_is_refused_before_memory_is_taken(
    text: str, sentence: str, fitted: SOLID, tmp_path: Path
) -> None:
    folder = fitted.save(tmp_path / "model")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"load: expected [\d,]+ bytes in .*config\.yaml"):
        SOLID.load(folder)
    tell_the_manifest(folder)
    with pytest.raises(ValueError, match=sentence):
        SOLID.load(folder)


def test_tensors_of_another_size_are_refused(fitted: SOLID, tmp_path: Path) -> None:
    folder = fitted.save(tmp_path / "model")
    tensors, state = load_checkpoint(folder / "model.safetensors")
    changes = (
        {"semantics": torch.zeros(0, 10**18, dtype=torch.int64)},
        {"semantics": torch.zeros(61)},
        {"semantics": tensors["semantics"][:-1]},
        {"item_embedding.weight": torch.zeros(61, 0)},
        {"item_embedding.weight": torch.full((61, 16), torch.inf)},
        {"item_embedding.features": torch.zeros(61, 3)},
    )
    for change in changes:
        save_checkpoint(folder / "model.safetensors", {**tensors, **change}, state)
        tell_the_manifest(folder)
        with pytest.raises(ValueError, match=r"(load|checkpoint): expected .*(semantics|item_embedding)"):
            SOLID.load(folder)
    save_checkpoint(folder / "model.safetensors", tensors, {**state, "num_items": "all"})
    tell_the_manifest(folder)
    with pytest.raises(ValueError, match="load: expected all different items"):
        SOLID.load(folder)


def test_a_folder_that_is_no_model_is_never_deleted(fitted: SOLID, tmp_path: Path) -> None:
    for name in ("p", "q.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    fitted.save(tmp_path / "q")
    fitted.save(tmp_path / "q", overwrite=True)
    (tmp_path / "link").symlink_to("q")
    for name, sentence in (
        ("p", r"a folder of its own to overwrite, got .*p, which has no manifest\.json"),
        ("file", "a folder to overwrite, got .*file, a file"),
        ("link", "a folder to overwrite, got .*link, a link to .*name that folder"),
    ):
        with pytest.raises(ValueError, match=f"save: expected {sentence}"):
            SOLID.load(tmp_path / "q").save(tmp_path / name, overwrite=True)
    for name in ("p", "q.partial"):
        assert (tmp_path / name / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "p", "q", "q.partial"]
    for nowhere in ("/proc/x", tmp_path / "file" / "x"):
        with pytest.raises(ValueError, match="save: expected a folder that can be written, got"):
            fitted.save(nowhere)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "q").iterdir()} == {
        oct((tmp_path / "file").stat().st_mode & 0o777)
    }


FULL = """
import resource, signal, sys
from solid_ext import SOLID
model = SOLID.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    model.save(sys.argv[1], overwrite=True)
except ValueError as error:
    print(error)
"""


def test_a_full_disk_gets_a_sentence_and_leaves_what_was_there(fitted: SOLID, tmp_path: Path) -> None:
    folder = fitted.save(tmp_path / "model")
    printed = subprocess.run(
        [sys.executable, "-c", FULL, str(folder)], capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("save: expected a folder that can be written, got") or "write: expected a file" in printed
    assert printed.count("\n") == 1
    assert os.listdir(tmp_path) == ["model"]
    history = fitted.training.dataset.item_ids.head(3).to_list()
    assert SOLID.load(folder).recommend([history], 3) == fitted.recommend([history], 3)


def test_a_model_of_an_earlier_version_is_told_what_to_do(fitted: SOLID, tmp_path: Path) -> None:
    folder = fitted.save(tmp_path / "model")
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"load: expected manifest\.json with the checksums of .*, got none \(a model"):
        SOLID.load(folder)


def test_a_folder_of_one_training_is_not_anothers(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    first = SOLID(TINY).fit(world[0], folder=tmp_path)
    again = SOLID(TINY).fit(world[0], folder=tmp_path)
    assert again.training.stages == first.training.stages
    with pytest.raises(ValueError, match=r"resume: expected learning_rate=0.003 as in .*, got 0.3"):
        SOLID(TINY, learning_rate=0.3).fit(world[0], folder=tmp_path)
    other = synthetic_dataset(400, 60, 6, predictability=1.0, drift=0.0, seed=9)[0]
    with pytest.raises(ValueError, match=r"resume: expected the dataset of"):
        SOLID(TINY).fit(other, folder=tmp_path)
    with FileLock(tmp_path / ".solid_ext.lock"), pytest.raises(ValueError, match="fit: expected a folder that nobody"):
        SOLID(TINY).fit(world[0], folder=tmp_path)


def test_what_is_no_reporter_or_semantics_is_refused_before_the_data_is_read(
    fitted: SOLID, world: tuple[Dataset, SyntheticTruth]
) -> None:
    for reporter in (5, print, "silent"):
        with pytest.raises(
            TypeError, match="fit: expected reporter None or an object with the methods begin, step, epo"
        ):
            SOLID(TINY).fit("no such file", reporter=reporter)
    for semantics in (5, np.array([0, 1])):
        with pytest.raises(TypeError, match=r"fit: expected semantics None or those that .*make_semantics makes, got"):
            SOLID(TINY).fit("no such file", semantics=semantics)
    with pytest.raises(ValueError, match="fit: expected semantics of the dataset's 60 items, got those of 2"):
        SOLID(TINY).fit(world[0], semantics=Semantics(np.array([0, 1, 2]), 2, "id"))


def test_an_unknown_backbone_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"backbone: expected one of din, .* got 'gru'; did you mean gru4rec\?"):
        SOLID(backbone="gru")


def test_features_tell_what_no_interaction_does() -> None:
    """Two tastes; the last item, of the first taste by its title alone, is in nobody's training part."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 8)
    items = rng.integers(1, 21, users.size) + 20 * (users % 2)
    items[7::160] = 41  # as the test item of every twentieth user, all of the first taste
    titles = ["apple"] * 20 + ["brick"] * 20 + ["apple"]
    data = load_dataset((users, items, np.arange(users.size)), items={"item_id": range(1, 42), "title": titles})
    histories = torch.from_numpy(np.stack([items[16 * user : 16 * user + 5] for user in range(100)]))
    others = histories % 20 + 21

    def gap(known: bool) -> float:
        quick = Config().replace(dim=16, epochs=12, eval_negatives=9, num_semantics=2, semantics="text")
        static = method_config(quick, "static")
        model = (
            SOLID(static, item_features=known, neighbours=False, batch_size=64, validation="sampled:user_auc")
            .fit(data)
            .model
        )
        assert model is not None
        with torch.inference_mode():
            model.item_embedding.weight[41] = 0  # as random as it started
            first, second = (model.score(model.eval().encode(each), torch.tensor([41])) for each in (histories, others))
        return float((first - second).mean())

    assert gap(True) > 1
    assert gap(False) == 0


def test_neighbours_are_chosen_on_a_bounded_number_of_rows(
    world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solid_ext.train.neighbourhood.NEIGHBOUR_ROWS", 50)
    asked: list[int] = []

    def ranks(scorers: Sequence[Scorer], dataset: Dataset, rows: Rows, **options: Any) -> list[Any]:
        asked.extend([len(rows)] * len(scorers))
        return list(full_ranks_of_each(scorers, dataset, rows, **options))

    monkeypatch.setattr("solid_ext.evaluate.validation.full_ranks_of_each", ranks)
    solid = SOLID(TINY).fit(world[0])
    assert solid.neighbours is not None
    assert set(asked) == {50, world[0].num_users}
    assert asked.count(50) >= 13


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_fit_shows_its_progress_in_a_terminal_and_nothing_elsewhere(
    world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    SOLID(TINY).fit(world[0])
    assert capsys.readouterr() == ("", "")
    screen, asked = Screen(), Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    SOLID(TINY).fit(world[0])
    assert "stage2" in screen.getvalue()
    monkeypatch.setattr(sys, "stderr", asked)
    SOLID(TINY).fit(world[0], reporter=Silent())
    assert asked.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_a_fit_that_is_stopped_leaves_the_model_before_it(
    world: tuple[Dataset, SyntheticTruth], monkeypatch: pytest.MonkeyPatch
) -> None:
    solid = SOLID(TINY).fit(world[0])
    histories = [world[0].item_ids.head(4).to_list()]
    before, metrics, parts = solid.recommend(histories, 5), solid.evaluate(), dict(vars(solid))

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("solid_ext.train.neighbourhood.choose_neighbours", stop)
    with pytest.raises(KeyboardInterrupt):
        solid.fit(synthetic_dataset(300, 80, 6, predictability=1.0, seed=4)[0])
    assert all(vars(solid)[name] is part for name, part in parts.items())
    assert solid.recommend(histories, 5) == before
    assert solid.evaluate() == metrics


def weights(solid: SOLID) -> dict[str, torch.Tensor]:
    assert solid.model is not None
    return solid.model.state_dict()


def same(one: SOLID, other: SOLID) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_fits_in_two_threads_are_the_fits_alone(
    fitted: SOLID, world: tuple[Dataset, SyntheticTruth], one_thread: None
) -> None:
    configs = [TINY.replace(epochs=3, seed=seed) for seed in (0, 1)]
    alone = [SOLID(config).fit(world[0]) for config in configs]
    together = [SOLID(config) for config in configs]
    threads = [threading.Thread(target=solid.fit, args=(world[0],)) for solid in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(*pair) for pair in zip(alone, together, strict=True))


def test_a_forked_process_fits_although_a_thread_of_its_parent_does(world: tuple[Dataset, SyntheticTruth]) -> None:
    inside, on = threading.Event(), threading.Event()

    def hold() -> None:
        with isolated():
            inside.set()
            on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        with isolated():
            os._exit(0)
    on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_fit_leaves_the_callers_generator_alone(world: tuple[Dataset, SyntheticTruth]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    SOLID(TINY).fit(world[0])
    assert torch.equal(torch.rand(4), expected)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "surroundings",
    [
        lambda: default(torch.float64),
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["float64", "no_grad", "inference_mode", "autocast", "device"],
)
def test_whatever_surrounds_a_fit_the_seed_gives_the_same_model(
    surroundings: Any, world: tuple[Dataset, SyntheticTruth], one_thread: None
) -> None:
    plain = SOLID(TINY).fit(world[0])
    with surroundings():
        dtype = torch.get_default_dtype()
        solid = SOLID(TINY).fit(world[0])
        assert torch.get_default_dtype() == dtype
    assert same(plain, solid)
    assert solid.evaluate() == plain.evaluate()
    assert solid.fit(world[0]).training.stages[0].history  # and it can be fitted again outside


@pytest.mark.parametrize("config", [{"dim": 8}, 8, "c.yaml", {}])
def test_a_configuration_that_is_none_is_told_how_fields_are_given(config: Any) -> None:
    with pytest.raises(TypeError, match=r"SOLID: expected a Config, got \w+ \(SOLID\(\*\*fields\) takes .*from_yaml"):
        SOLID(config)
