"""The file of the denoiser's weights, with its config and feature layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.methods.surface.config import LAYOUT, SurfaceConfig
from pcdiff.methods.surface.network import SurfaceDenoiser
from pcdiff.tensor_files import check_layout, read_tensors

DENOISER_FORMAT = "pcdiff-denoiser-3"
REMEDY = "choose other weights, or train a network with `pcdiff train`"


def load_denoiser(path: Path) -> tuple[SurfaceDenoiser, SurfaceConfig]:
    """Reads what `save_denoiser` wrote; the network is in evaluation mode.

    Raises:
        InputError: another file or format, a config of another version, or another feature layout.
    """
    file = read_tensors(path, "weights of a denoiser", REMEDY, DENOISER_FORMAT, "pt")
    config = file.config(SurfaceConfig)
    check_layout(file.path, "feature layout", config.layout, LAYOUT)
    network = SurfaceDenoiser(config.network, config.diffusion.sigma_data)
    try:
        network.load_state_dict({name: value.float() for name, value in file.tensors.items()})
    except RuntimeError as error:
        raise InputError(f"{path}: weights of another version's network; train anew, or use its version") from error
    return network.eval(), config


def save_denoiser(path: Path, state: Mapping[str, Tensor], config: SurfaceConfig, notes: Mapping[str, str]) -> None:
    """Writes weights in half precision with their config; `notes` go into the metadata."""
    metadata = {"format": DENOISER_FORMAT, "config": config.model_dump_json(), "license": "CC-BY-NC-SA-4.0", **notes}
    tensors = {name: value.to(torch.float16).contiguous() for name, value in state.items()}
    with written_beside(path) as beside:
        beside.write_bytes(save(tensors, metadata))
