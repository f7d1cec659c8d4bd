"""Converts weights of pcdiff 0.1.0 to the present format: the same tensors, with the numbers tuned with them beside.

usage: python tools/upgrade_weights.py FOLDER

Rewrites prior.safetensors and denoiser.safetensors in the folder, and places.safetensors as occupancy.safetensors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from pcdiff.files import written_beside
from pcdiff.methods.anchored import weights as anchored
from pcdiff.methods.anchored.config import DenoiserConfig
from pcdiff.methods.occupancy import model as occupancy
from pcdiff.methods.occupancy.config import OccupancySettings
from pcdiff.prior import model as prior
from pcdiff.prior.settings import PriorSettings
from pcdiff.tensor_files import read_metadata, read_tensors


def prior_config(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> PriorSettings:
    """The numbers that were constants of the code when pcdiff-prior-1 was written."""
    return PriorSettings()


def denoiser_config(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> DenoiserConfig:
    """The stored config, with the present names, and the feature layout that was the only one."""
    config = json.loads(metadata["config"])
    config["network"]["context_dropout"] = config["network"].pop("hidden")
    return DenoiserConfig.model_validate(config)


def occupancy_config(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> OccupancySettings:
    """The numbers that were constants of the code, and the width of the networks."""
    return OccupancySettings(width=tensors["0.enter.weight"].shape[0])


# old name: old format, new name, new format, config
FILES: dict[str, tuple[str, str, str, Callable]] = {
    "prior.safetensors": ("pcdiff-prior-1", "prior.safetensors", prior.PRIOR_FORMAT, prior_config),
    "denoiser.safetensors": ("pcdiff-denoiser-1", "denoiser.safetensors", anchored.DENOISER_FORMAT, denoiser_config),
    "places.safetensors": ("pcdiff-places-2", "occupancy.safetensors", occupancy.OCCUPANCY_FORMAT, occupancy_config),
}


def upgrade(path: Path) -> Path:
    """Rewrites one file and checks that every tensor is the same bit for bit; returns the path of the new file."""
    old_format, name, new_format, make_config = FILES[path.name]
    old = read_tensors(path, "weights of pcdiff 0.1.0", "only those can be converted", old_format)
    config = make_config(old.metadata, old.tensors)
    metadata = old.metadata | {"format": new_format, "config": config.model_dump_json()}
    target = path.with_name(name)
    with written_beside(target) as beside:
        beside.write_bytes(save(old.tensors, metadata))
        new = read_tensors(beside, "the weights just written", "report this", new_format)
        assert new.tensors.keys() == old.tensors.keys()
        for key, value in old.tensors.items():
            written = new.tensors[key]
            assert (written.dtype, written.shape) == (value.dtype, value.shape), key
            assert written.tobytes() == value.tobytes(), key
    if target != path:
        path.unlink()
    return target


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    for path in sorted(args.folder.glob("*.safetensors")):
        if path.name in FILES and (read_metadata(path) or {}).get("format") == FILES[path.name][0]:
            print(f"{path} -> {upgrade(path)}")


if __name__ == "__main__":
    main()
