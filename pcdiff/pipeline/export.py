"""The shipped weights as folders that other tools know: of Hugging Face, and a bundle of MONAI. Needs no network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from pcdiff import DISTRIBUTION, NOTICE, __version__
from pcdiff.errors import InputError
from pcdiff.files import absolute, sha256, shipped_file
from pcdiff.methods.registry import DEFAULT, shipped_methods, weights_files
from pcdiff.tensor_files import read_metadata

CARD = "MODEL_CARD.md"
FRONT_MATTER = {
    "license": "cc-by-nc-sa-4.0",
    "library_name": "pcdiff",
    "tags": ["medical-imaging", "cranial-implant", "shape-completion", "statistical-shape-model", "3d"],
}
USE = f"""
## Use

```sh
pip install {DISTRIBUTION}
pcdiff design skull.nrrd -o out --method {DEFAULT} --weights {DEFAULT}.safetensors
```

The package has the same weights inside; without `--weights` it uses them.
"""


def write_hub(folder: Path) -> list[Path]:
    """Writes a folder as the Hugging Face Hub shows it: README.md, config.json, LICENSE and the shipped weights.

    README.md is the model card with YAML front matter. config.json names the methods with their files, and for each
    file its sha256 and the settings it was made with. Returns the files. Raises InputError for a folder that holds
    something, and one that cannot be written.
    """
    weights = _shipped()
    with _new_folder(folder) as part:
        card = without_links(_card())
        front = yaml.safe_dump(FRONT_MATTER, sort_keys=False)
        (part / "README.md").write_text(f"---\n{front}---\n\n{card.rstrip()}\n{USE}", encoding="utf-8")
        config = {
            "library_name": "pcdiff",
            "pcdiff": __version__,
            "notice": NOTICE,
            "default_method": DEFAULT,
            "methods": {name: [path.name for path in weights_files(name)] for name in shipped_methods()},
            "files": {path.name: {"sha256": sha256(path), "metadata": _settings(path)} for path in weights},
        }
        _write_json(part / "config.json", config)
        for path in (*weights, weights[0].parent / "LICENSE"):
            shutil.copyfile(path, part / path.name)
    return sorted(folder.iterdir())


def write_bundle(folder: Path) -> list[Path]:
    """Writes a MONAI bundle: configs/metadata.json, configs/inference.json, models/, docs/README.md, LICENSE.

    Its inference calls `pipeline.case.design_case` with the weights in models/, so pcdiff must be installed where it
    runs. Returns the files. Raises InputError as `write_hub`.
    """
    weights = weights_files(DEFAULT)
    with _new_folder(folder) as part:
        for name in ("configs", "models", "docs"):
            (part / name).mkdir()
        _write_json(part / "configs" / "metadata.json", _bundle_metadata())
        _write_json(part / "configs" / "inference.json", INFERENCE)
        (part / "docs" / "README.md").write_text(without_links(_card()), encoding="utf-8")
        shutil.copyfile(weights[0].parent / "LICENSE", part / "LICENSE")
        for path in weights:
            shutil.copyfile(path, part / "models" / path.name)
    return sorted(path for path in folder.rglob("*") if path.is_file())


INFERENCE = {
    "imports": [
        "$from pathlib import Path",
        "$from pcdiff.pipeline.case import design_case",
        "$from pcdiff.pipeline.names import case_name",
        "$from pcdiff.pipeline.settings import Settings",
    ],
    "bundle_root": ".",
    "scan": "skull.nrrd",
    "output_dir": "out",
    "method": DEFAULT,
    "device": "cpu",
    "seed": 0,
    "weights": f"$Path(@bundle_root) / 'models' / '{DEFAULT}.safetensors'",
    "settings": "$Settings(@method, device=@device, seed=@seed, weights=@weights)",
    "run": ["$design_case(Path(@scan), Path(@output_dir) / case_name(Path(@scan)), @settings.load(), @settings)"],
}


def _bundle_metadata() -> dict[str, Any]:
    mask = {
        "type": "image",
        "num_channels": 1,
        "dtype": "uint8",
        "value_range": [0, 1],
        "is_patch_data": False,
        "spatial_shape": ["*", "*", "*"],
    }
    scan = mask | {"format": "segmentation", "modality": "CT", "channel_def": {"0": "bone of the defective skull"}}
    implant = mask | {"format": "segmentation", "channel_def": {"0": "implant"}}
    return {
        "version": __version__,
        "changelog": {__version__: "see CHANGELOG.md of pcdiff"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {DISTRIBUTION: __version__},
        "name": "pcdiff",
        "task": "Design of a patient-specific cranial implant",
        "description": "From a skull with a defect to the missing piece of bone, as a volume and as an STL",
        "authors": "the pcdiff authors",
        "copyright": "weights CC BY-NC-SA 4.0, code MIT",
        "data_source": "SkullFix (AutoImplant 2020), training cases 000 to 059",
        "data_type": "NRRD",
        "intended_use": NOTICE,
        "network_data_format": {"inputs": {"image": scan}, "outputs": {"pred": implant}},
    }


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside, which becomes `folder` if the block succeeds, else it is removed."""
    place = absolute(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{folder}: expected a new or an empty folder, found files; choose another")
    part = place.with_name(f".{place.name}.{uuid4().hex}")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror}); choose a writable folder") from error
    try:
        yield part
        if place.exists():
            place.rmdir()
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def without_links(text: str) -> str:
    """Markdown with the words of each link to another file of this repository, without the link."""
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


def _card() -> str:
    return shipped_file(CARD).read_text(encoding="utf-8")


def _shipped() -> list[Path]:
    """Every shipped weights file, each once."""
    return list(dict.fromkeys(path for name in shipped_methods() for path in weights_files(name)))


def _settings(path: Path) -> dict[str, Any]:
    """The metadata of a weights file; JSON in it as values."""
    found = read_metadata(path) if path.suffix == ".safetensors" else None
    return {name: json.loads(text) if text.startswith("{") else text for name, text in (found or {}).items()}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _version(name: str) -> str:
    """The version of an installed package, without its local part; empty without the package."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""
