"""Segmentations with several labels: values of one volume, or layers of a file; what is there, and one as a mask."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from pcdiff.errors import ChoiceError, InputError
from pcdiff.imaging.formats.header import shown
from pcdiff.imaging.formats.image import Image, Segment, by, check_memory

MAX_VALUE = 65535
MAX_LABELS = 256
MASK_BYTES = 2  # of memory for a voxel, to read and check a mask
DATASET, MAX_DATASET = "dataset.json", 2**20  # bytes


@dataclass(frozen=True)
class Label:
    """A label that a file names or holds. number: the one that `--label` takes. name: empty if the file gives none."""

    number: int
    name: str
    value: int
    layer: int
    ml: float

    def __str__(self) -> str:
        return f"{self.number}{': ' * bool(self.name)}{self.name} ({self.ml:.1f} ml)"


class NNUNetDataset(BaseModel):
    """The `dataset.json` of nnU-Net: name -> value or values (version 2), or value -> name (version 1)."""

    labels: dict[str, Annotated[int, Field(strict=True)] | str | list[int]]


def find_labels(path: Path, image: Image) -> list[Label]:
    """The labels of an image, in the order of their numbers; reads all values.

    The number is the label's value, or, in a file with several layers, its place in the list. Raises InputError for
    values that are no labels, and where memory does not suffice for a mask.
    """
    check_memory(path, image.shape, MASK_BYTES)
    with image:
        counts, several = _count(path, image), image.layers > 1
    segments = image.segments or (() if several else _dataset_names(path))
    named = {(segment.layer, segment.value): segment.name for segment in segments}
    order = [*named, *sorted(counts.keys() - named.keys())] if several else sorted(named.keys() | counts.keys())
    voxel_ml = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
    labels = []
    for place, (layer, value) in enumerate(order, 1):
        alone = sum(each[0] == layer for each in order) == 1
        unnamed = (f"layer {layer + 1}" + ("" if alone else f", value {value}")) if several else ""
        name = named.get((layer, value), unnamed)
        labels.append(Label(place if several else value, name, value, layer, counts[layer, value] * voxel_ml))
    return labels


def choose_label(path: Path, labels: list[Label], wanted: str) -> Label:
    """The label of that number or name, in any case. Raises InputError for none, for several, and for an empty one."""
    found = [label for label in labels if wanted.strip() == str(label.number)]
    found = found or [label for label in labels if wanted.strip().casefold() == label.name.casefold()]
    if len(found) != 1:
        count = len(found) or "none"
        raise InputError(f"{path}: --label {shown(wanted)} names {count} of its labels; choose one of {listed(labels)}")
    if not found[0].ml:
        raise InputError(f"{path}: label {found[0]} holds no voxel; choose one of {listed(labels)}")
    return found[0]


def label_values(image: Image, label: Label) -> np.ndarray:
    """(I, J, K) bool: the voxels of a label."""
    flat = np.zeros(math.prod(image.shape), bool)
    start = 0
    for layer, run in image.runs_by_layer():
        if layer == label.layer:
            np.equal(run, label.value, out=flat[start : start + run.size])
            start += run.size
    return flat.reshape(image.shape, order="F")


def several_labels(path: Path, image: Image, labels: list[Label]) -> ChoiceError:
    """The error for a file in which one label must be chosen."""
    count = sum(label.ml > 0 for label in labels)
    if image.layers == 1:
        what = f"expected a mask with two values, 0 and one other, got {count} labels"
    else:
        size = by((image.layers, *image.shape) if image.interleaved else (*image.shape, image.layers))
        what = f"expected a 3D image with one value per voxel, got size {size} with {count} labels"
    choose, remedy = "choose the bone with --label N or --label NAME", "save the bone as a mask of its own"
    return ChoiceError(f"{path}: {what}", choose, listed(labels), remedy)


def listed(labels: list[Label]) -> str:
    """The labels that hold voxels, in one line."""
    return "; ".join(str(label) for label in labels if label.ml) or "none"


def _count(path: Path, image: Image) -> Counter[tuple[int, int]]:
    """Voxels by (layer, value), without those of value 0."""
    counts: Counter[tuple[int, int]] = Counter()
    for layer, run in image.runs_by_layer():
        if not run.size:
            continue
        low, high = run.min(), run.max()
        if not (low >= 0 and high <= MAX_VALUE) or (run.dtype.kind == "f" and not np.array_equal(run, np.rint(run))):
            soft = low >= 0 and high <= 1
            hint = "; are these a network's probabilities? threshold them at 0.5" if soft else ""
            raise _no_labels(path, image, f"values of {low:g} to {high:g}{hint}")
        found = np.bincount(run.astype(np.int64, copy=False))
        for value in np.flatnonzero(found):
            if value:
                counts[layer, int(value)] += int(found[value])
        if len(counts) > MAX_LABELS + image.layers:
            raise _no_labels(path, image, f"more than {MAX_LABELS} different values")
    return counts


def _no_labels(path: Path, image: Image, values: str) -> InputError:
    if image.layers > 1:
        return InputError(
            f"{path}: expected a 3D image with one value per voxel, got {image.layers} volumes (a time series?) with "
            f"{values}; export one volume"
        )
    return InputError(
        f"{path}: --label chooses in a segmentation with whole numbers from 0 to {MAX_VALUE}, got {values}; "
        "leave it out"
    )


def _dataset_names(path: Path) -> tuple[Segment, ...]:
    """The labels that nnU-Net names in `dataset.json`, beside its predictions or above `labelsTr`, if there is one."""
    folders = [path.parent, *([path.parent.parent] if path.parent.name.lower().startswith("labels") else [])]
    file = next((folder / DATASET for folder in folders if (folder / DATASET).is_file()), None)
    if file is None or file.stat().st_size > MAX_DATASET:
        return ()
    try:
        labels = NNUNetDataset.model_validate(json.loads(file.read_bytes())).labels
    except (ValidationError, ValueError, RecursionError):  # names are a help only; numbers choose as well
        return ()
    found = []
    for key, given in labels.items():
        name, value = (key, given) if isinstance(given, int) else (str(given), int(key) if key.isdecimal() else 0)
        if not isinstance(given, list) and 0 < value <= MAX_VALUE:
            found.append(Segment(shown(name), value))
    return tuple(found)
