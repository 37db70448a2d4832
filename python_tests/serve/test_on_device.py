"""A device against the server: the same lists and scores for a fresh blob, by every backbone and kind of layers."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from python_tests.untrained import untrained
from solid_ext import SOLID
from solid_ext.device import DeviceModel
from solid_ext.device.model import PERSONAL
from solid_ext.device.tensors import digest_of
from solid_ext.models.backbones import BACKBONES
from solid_ext.serve import OnDevice
from solid_ext.serve.on_device import generated_layers, popular_items

ITEMS = 150
KINDS: dict[str, dict[str, Any]] = {
    "low rank": {},
    "full and wide": {"low_rank": False, "generator_dim": 24},
    "long history": {"low_rank": False, "generator_length": 20},
    "bias": {"personal_bias": True},
    "static": {"semantic_trunk": False, "item_branch": False},
    "of the paper": {"target": "mlp", "dynamic_residual": False, "low_rank": False, "blocks": 2},
}


def histories() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, ITEMS, length) * 10).tolist() for length in (1, 2, 6, 7, 40)]


def exported(folder: Path, **fields: Any) -> tuple[SOLID, DeviceModel]:
    solid = untrained(ITEMS, **fields)
    solid.export_device(folder / "device")
    return solid, DeviceModel(folder / "device")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_fresh_blob_gives_the_servers_lists_and_scores(backbone: str, kind: str, tmp_path: Path) -> None:
    solid, device = exported(tmp_path, backbone=backbone, **KINDS[kind])
    for history in histories():
        device.load(solid.personalize(history))
        for k, without in ((20, True), (100, False)):
            served = solid.recommend([history], k, exclude_history=without)[0]
            found = device.recommend(k, exclude_history=without)
            assert [entry.item for entry in found] == [entry.item for entry in served]
            np.testing.assert_allclose([e.score for e in found], [e.score for e in served], rtol=1e-5, atol=1e-5)
            assert [entry.title for entry in found] == [entry.title for entry in served]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_events_move_the_backbone_and_not_the_layers(backbone: str, tmp_path: Path) -> None:
    solid, device = exported(tmp_path, backbone=backbone, low_rank=False)
    model, old, new = solid.model, [30, 40, 50], [70, 10]
    device.load(solid.personalize(old))
    added = device.scores() - torch_scores(solid, old, old)
    for item in new:
        device.observe(item)
    np.testing.assert_allclose(device.scores(), torch_scores(solid, old, old + new) + added, rtol=1e-5, atol=1e-5)
    assert model is not None
    assert not {30, 40, 50, 70, 10} & {entry.item for entry in device.recommend(100)}


def torch_scores(solid: SOLID, layers_of: list[int], backbone_of: list[int]) -> np.ndarray:
    """The network's logits [V] by layers that one history generates and a state that another one gives."""
    model = solid.model
    assert model is not None
    old, new = (torch.tensor([[item // 10 + 1 for item in history]]) for history in (layers_of, backbone_of))
    with torch.no_grad():
        state = model.user_state(new, model._layers(model._conditions(old)))
        return model.score(state, torch.arange(1, ITEMS + 1))[0].numpy()


def test_a_newcomer_gets_what_is_popular_and_then_layers_of_nobody_in_particular(tmp_path: Path) -> None:
    solid, device = exported(tmp_path)
    with pytest.warns(UserWarning, match="newcomer"):
        served = solid.recommend([[]], 20)[0]
    for new in (device, device.load(solid.personalize([]))):
        assert [tuple(entry) for entry in new.recommend(20)] == [tuple(entry) for entry in served]
    assert device.observe(70).recommend(5) == DeviceModel(tmp_path / "device").observe(70).recommend(5)


def test_the_generated_layers_are_those_that_the_operation_applies() -> None:
    model = untrained(ITEMS, low_rank=False, dynamic_residual=False).model
    assert model is not None
    sequences, state = torch.tensor([[3, 4, 5], [7, 0, 0]]), torch.randn(2, 16)
    with torch.no_grad():
        conditions = model._conditions(sequences)
        first, last = generated_layers(model, conditions)
        hidden = torch.tanh(torch.einsum("bi,bio->bo", state, first[:, :-1]) + first[:, -1])
        expected = torch.einsum("bi,bio->bo", hidden, last[:, :-1]) + last[:, -1]
        torch.testing.assert_close(model._layers(conditions)(state), expected, rtol=1e-4, atol=1e-6)


def test_a_blob_is_a_few_kilobytes_and_says_what_it_holds() -> None:
    solid = untrained(ITEMS, low_rank=False)
    history = [(place % ITEMS) * 10 for place in range(200)]
    blob = load(solid.personalize(history))
    assert blob["layers.0"].shape == blob["layers.1"].shape == (17, 16)
    assert (blob["window"] + 1).tolist() == [item // 10 + 1 for item in history[-6:]]
    assert sorted({*blob["window"], *blob["seen"]}) == list(range(ITEMS))
    assert len(blob["neighbours.items"]) <= 100 + ITEMS
    half = solid.personalize(history, dtype="float16")
    assert len(half) < len(solid.personalize(history))
    assert load(half)["layers.0"].dtype == np.float16


def test_a_blob_of_another_static_part_is_refused(tmp_path: Path) -> None:
    solid, device = exported(tmp_path)
    with torch.no_grad():
        solid.model.gate.add_(0.5)  # the version follows what is written to the model
    before = device.observe(30).recommend(5)
    with pytest.raises(ValueError, match=r"load: expected a blob of the static part \w{12}, got one of \w{12} \(pers"):
        device.load(solid.personalize([30]))
    with pytest.raises(ValueError, match="load: expected safetensors, got 3 bytes that are none"):
        device.load(b"no!")
    whole = solid.personalize([30])
    with pytest.raises(ValueError, match="load: expected safetensors, got"):
        device.load(whole[:-8])
    assert device.recommend(5) == before


def test_a_blob_that_was_changed_or_does_not_fit_is_refused_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    solid, device = exported(tmp_path)
    blob = solid.personalize([30, 40])
    before = device.load(blob).recommend(5)
    rng = np.random.default_rng(0)
    for place in rng.integers(8, len(blob), 60):
        torn = bytearray(blob)
        torn[place] ^= 1 << int(rng.integers(8))
        with suppress(ValueError):  # or a bit of the header that says nothing
            device.load(torn)
        assert device.recommend(5) == before
    arrays, metadata = load(blob), {"format": PERSONAL, "static": solid.on_device().version}
    for name, array, sentence in (
        ("window", np.array([ITEMS], np.int32), "window as numbers of items below 150"),
        ("seen", np.array([0.5], np.float32), "seen as numbers of items"),
        ("layers.0", arrays["layers.0"] * np.float32("nan"), "finite weights"),
        ("layers.0", arrays["layers.0"][:-1], "layers.0 of shape"),
        ("window", np.zeros(1000, np.int32), "a window of at most"),
        ("other", np.zeros(1, np.int32), "expected a blob with "),
    ):
        changed = {**arrays, name: array}
        whole = save(changed, {**metadata, "sha256": digest_of(save(changed), metadata["static"])})
        with pytest.raises(ValueError, match=sentence):
            device.load(whole)
        assert device.recommend(5) == before
    with pytest.raises(ValueError, match="load: expected the file of a blob, got nowhere"):
        device.load("nowhere")
    with pytest.raises(TypeError, match="load: expected a blob's bytes or the path of its file, got int"):
        device.load(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a fitted model"):
        SOLID().personalize([30])


def test_a_flipped_bit_of_the_version_is_damage_and_no_other_version(tmp_path: Path) -> None:
    solid, device = exported(tmp_path)
    blob = bytearray(solid.personalize([30, 40]))
    blob[blob.index(solid.on_device().version.encode()) + 40] ^= 1
    with pytest.raises(ValueError, match="load: expected a blob as it was made, got another content"):
        device.load(blob)


def test_a_model_that_was_saved_and_loaded_has_the_version_of_its_weights(tmp_path: Path) -> None:
    solid, device = exported(tmp_path)
    loaded = SOLID.load(solid.save(tmp_path / "model"))
    exact = loaded.model.item_embedding.table

    def rounded() -> torch.Tensor:  # as another processor may compute it
        return torch.nextafter(exact(), torch.tensor(torch.inf))

    loaded.model.item_embedding.table = rounded  # type: ignore[method-assign]
    assert not np.array_equal(loaded.on_device().static["items"], solid.on_device().static["items"])
    assert loaded.on_device().version == solid.on_device().version
    device.load(loaded.personalize([30, 40]))


def test_what_the_model_has_not_is_refused_in_a_sentence(tmp_path: Path) -> None:
    solid, device = exported(tmp_path)
    with pytest.raises(ValueError, match="observe: expected an item of the model, got 'x', which is none"):
        device.observe("x")
    with pytest.raises(ValueError, match=r"recommend: expected k of 1 \.\. 100, got 101"):
        device.recommend(101)
    with pytest.raises(ValueError, match="personalize: expected items of the catalogue in history, got 'x'"):
        solid.personalize(["x"])
    with pytest.raises(ValueError, match="personalize: expected dtype float32 or float16, got 'int8'"):
        solid.personalize([30], dtype="int8")
    with pytest.raises(ValueError, match="export: expected dtype one of float32, float16, int8, got 'int4'"):
        solid.export_device(tmp_path / "other", dtype="int4")
    with pytest.raises(ValueError, match="export: expected a folder that does not exist yet"):
        solid.export_device(tmp_path / "device")
    tuned = untrained(ITEMS, semantic_trunk=False, item_branch=False, finetune_steps=1)
    with pytest.raises(ValueError, match="personalize: expected a model whose layers are generated"):
        tuned.personalize([30])
    assert not (tmp_path / "other").exists()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    path = tmp_path / "device" / "static.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="as it was written, got another content"):
        DeviceModel(tmp_path / "device")
    with pytest.raises(ValueError, match="device: expected a folder that `solid-ext export` wrote"):
        DeviceModel(tmp_path / "nowhere")


@pytest.mark.parametrize(("dtype", "size", "kept", "moved"), [("float16", 0.56, 0.99, 0.02), ("int8", 0.5, 0.95, 0.5)])
def test_a_rounded_part_is_smaller_and_its_loss_is_measured(
    dtype: Any, size: float, kept: float, moved: float, tmp_path: Path
) -> None:
    solid, whole = exported(tmp_path)
    said = solid.export_device(tmp_path / "small", dtype=dtype)
    assert json.loads((tmp_path / "small" / "manifest.json").read_text())["loss"] == said["loss"]
    static = {name: (tmp_path / name / "static.safetensors").stat().st_size for name in ("device", "small")}
    assert static["small"] < size * static["device"]
    assert said["bytes"] == static["small"]
    assert kept < said["loss"]["top10"] <= 1
    assert 0 < said["loss"]["score"] < moved
    blob = solid.personalize([30, 50])  # which any rounding of one model takes
    small = DeviceModel(tmp_path / "small").load(blob)
    rounded = solid.on_device().rounded(dtype)
    with torch.no_grad():
        expected = rounded.score(rounded.encode(torch.tensor([[4, 6]])), torch.arange(1, ITEMS + 1))[0].numpy()
    best = [entry.item // 10 for entry in whole.load(blob).recommend(20)]
    np.testing.assert_allclose(small.scores()[best], expected[best], rtol=1e-4, atol=1e-4)


def test_who_personalizes_often_makes_the_static_part_once() -> None:
    solid = untrained(ITEMS)
    assert solid.on_device() is solid.on_device()
    first = solid.on_device()
    with torch.no_grad():
        solid.model.gate.add_(1)
    assert solid.on_device() is not first
    assert isinstance(first, OnDevice)


def test_sizes_are_those_of_the_arrays_without_a_copy_of_the_item_vectors() -> None:
    solid = untrained(ITEMS)
    device = solid.on_device()
    sizes = device.sizes()
    assert "static" not in vars(device)
    assert sizes.static == sum(array.nbytes for array in device.static.values())
    popular = popular_items(solid.catalogue, device.about["length"]) + 1
    assert sizes.person == len(device.personalize(torch.from_numpy(popular)))
