"""Image features of items, from files named by their raw ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from solid_ext.data.dataset import Dataset
from solid_ext.data.semantics.clusters import concatenate_features
from solid_ext.data.semantics.extra import quiet_transformers, require

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
SIDE = 64  # pixels of the square that `colour` looks at
COLOUR_BINS, COLOUR_CELLS = 4, 2  # a histogram of 4 x 4 x 4 colours in each of 2 x 2 cells
ANGLE_BINS, ANGLE_CELLS = 8, 4  # a histogram of 8 edge directions in each of 4 x 4 cells
BATCH = 32


def image_features(dataset: Dataset, folder: str | Path, *, encoder: str = "colour") -> np.ndarray:
    """Return features of the items' images.

    Args:
        dataset: whose raw item ids name the files: `<item_id>.jpg` (or .jpeg, .png, .webp, .gif, .bmp).
        folder: of those files; other files in it are passed over.
        encoder: "colour": colour and edge-direction histograms by Pillow, no model; else the folder or name of a CLIP
            model with safetensors weights, of which the projected image embedding is taken.

    Returns:
        `[V + 1, F] float32`; row 0 and the rows of items without an image are zero.

    Raises:
        ValueError: no folder, no image of any item, an image that cannot be read, two images of one item, an encoder
            that is not installed or cannot be read.

    Source: docs/method.md#module-1-item-to-semantic; Radford et al., CLIP, ICML 2021; Dalal and Triggs, HOG, CVPR 2005.
    """
    files = _item_files(dataset, Path(folder))
    paths = [files[item] for item in sorted(files)]
    rows = _colour(paths) if encoder == "colour" else _clip(paths, encoder)
    features = np.zeros((dataset.num_items + 1, rows.shape[1]), dtype=np.float32)
    features[1 + np.array(sorted(files))] = rows
    return features


def _item_files(dataset: Dataset, folder: Path) -> dict[int, Path]:
    """The image file of each item that has one, by the item's place in the catalogue."""
    if not folder.is_dir():
        raise ValueError(f"image_folder: expected a folder of images, got {str(folder)!r}, which is none")
    place = {str(raw): index for index, raw in enumerate(dataset.item_ids.to_list())}
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.stem in place:
            item = place[path.stem]
            if item in files:
                raise ValueError(f"image_folder: expected one image an item, got {files[item].name} and {path.name}")
            files[item] = path
    if not files:
        example = f"{dataset.item_ids[0]}.jpg" if dataset.num_items else "ITEM.jpg"
        raise ValueError(
            f"image_folder: expected images named by item id, like {example}, in {str(folder)!r}, got none"
        )
    return files


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"image_folder: expected a readable image, got {str(path)!r} ({error})") from error


def _colour(paths: list[Path]) -> np.ndarray:
    """Histograms of colours and of edge directions, side by side, the two with equal weight."""
    colours, angles = [], []
    for path in paths:
        pixels = np.asarray(_open(path).resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32) / 256
        step = (pixels * COLOUR_BINS).astype(np.int64)
        colour = (step[..., 0] * COLOUR_BINS + step[..., 1]) * COLOUR_BINS + step[..., 2]
        colours.append(_cell_histogram(colour, np.ones((SIDE, SIDE)), COLOUR_BINS**3, COLOUR_CELLS))
        down, right = np.gradient(pixels.mean(axis=2))
        turn = np.arctan2(down, right) % np.pi / np.pi
        angle = np.minimum((turn * ANGLE_BINS).astype(np.int64), ANGLE_BINS - 1)
        angles.append(_cell_histogram(angle, np.hypot(down, right), ANGLE_BINS, ANGLE_CELLS))
    return concatenate_features(np.stack(colours), np.stack(angles))


def _cell_histogram(value: np.ndarray, weight: np.ndarray, bins: int, cells: int) -> np.ndarray:
    """Square roots of the weighted histograms of `value` in cells x cells equal squares: `[cells * cells * bins]`."""
    cell = np.arange(SIDE) * cells // SIDE
    index = (cell[:, None] * cells + cell) * bins + value
    return np.sqrt(np.bincount(index.ravel(), weight.ravel(), minlength=cells * cells * bins))


def _clip(paths: list[Path], encoder: str) -> np.ndarray:
    import torch

    library = require("transformers", f"image_encoder {encoder}", "image")
    # The processor on Pillow, where transformers has two: the other one needs torchvision and rounds differently.
    processor_class = getattr(library, "CLIPImageProcessorPil", None) or library.CLIPImageProcessor
    local = Path(encoder).is_dir()
    with quiet_transformers():
        try:
            processor = processor_class.from_pretrained(encoder, local_files_only=local)
            model = library.CLIPVisionModelWithProjection.from_pretrained(
                encoder, local_files_only=local, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"image_encoder: expected colour or a CLIP model with safetensors weights, got {encoder!r} "
                f"({str(error).splitlines()[0]})"
            ) from error
    model.eval()
    with torch.inference_mode():
        return np.concatenate([model(**inputs).image_embeds.numpy() for inputs in _batches(paths, processor)])


def _batches(paths: list[Path], processor: Any) -> Iterator[Any]:
    for first in range(0, len(paths), BATCH):
        images = [_open(path) for path in paths[first : first + BATCH]]
        yield processor(images=images, return_tensors="pt")
