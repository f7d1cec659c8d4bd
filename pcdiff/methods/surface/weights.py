"""The file of the denoiser's weights, with its config and feature layout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pcdiff.methods.surface.config import LAYOUT, SurfaceConfig
from pcdiff.methods.surface.network import SurfaceDenoiser
from pcdiff.nets.states import load_network
from pcdiff.tensor_files import check_layout, read_tensors, write_tensors

DENOISER_FORMAT = "pcdiff-denoiser-3"
REMEDY = "choose other weights, name the method that these belong to (--method), or train with `pcdiff train diffusion`"


def load_denoiser(path: Path) -> tuple[SurfaceDenoiser, SurfaceConfig]:
    """Reads what `save_denoiser` wrote; the network is in evaluation mode.

    Raises:
        InputError: another file or format, a config of another version, another feature layout, a damaged file, and
            weights that are not finite.
    """
    file = read_tensors(path, "weights of a denoiser", REMEDY, DENOISER_FORMAT, "pt")
    config = file.config(SurfaceConfig)
    check_layout(file.path, "feature layout", config.layout, LAYOUT)
    make = partial(SurfaceDenoiser, config.network, config.diffusion.sigma_data)
    return load_network(make, file.tensors, path), config


def save_denoiser(path: Path, state: Mapping[str, Tensor], config: SurfaceConfig, notes: Mapping[str, str]) -> None:
    """Writes weights in half precision with their config; `notes` go into the metadata."""
    metadata = {"format": DENOISER_FORMAT, "config": config.model_dump_json(), "license": "CC-BY-NC-SA-4.0", **notes}
    write_tensors(path, {name: value.to(torch.float16) for name, value in state.items()}, metadata)
