"""Map between the original's names of the point-to-volume network's weights and ours, in both directions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pcdiff.errors import InputError
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationConfig, VoxelisationNetwork

WRAPPED = "module."  # DataParallel and DistributedDataParallel put this before every name


def weight_map(config: VoxelisationConfig) -> dict[str, str]:
    """{the original's name: ours} of every parameter of a network of this size, in the original's order."""
    return dict(_pairs(config))


def voxelisation_state_from(foreign: dict[str, Tensor], config: VoxelisationConfig | None = None) -> dict[str, Tensor]:
    """The original's `state_dict` by our names, ready for `VoxelisationNetwork(config).load_state_dict`.

    foreign: names such as `encoder.fc_pos.weight`, all with or all without `module.` before them. config: None for the
    published size.
    Raises InputError for a missing or unexpected name, a wrong shape, or a value that is no tensor of floats.
    """
    config = VoxelisationConfig() if config is None else config
    wrapped = bool(foreign) and all(name.startswith(WRAPPED) for name in foreign)
    found = {name.removeprefix(WRAPPED) if wrapped else name: value for name, value in foreign.items()}
    names = weight_map(config)
    for name in names:
        if name not in found:
            raise InputError(f"voxelisation weights: expected {name}, found none; is this another network's file?")
    for name in found:
        if name not in names:
            raise InputError(
                f"voxelisation weights: expected the published network, got an unknown {name}; is this another's file?"
            )
    shapes = _shapes(config)
    for theirs, ours in names.items():
        value = found[theirs]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise InputError(f"voxelisation weights: expected {theirs} to be a tensor of floats, got another value")
        if value.shape != shapes[ours]:
            raise InputError(
                f"voxelisation weights: expected {theirs} of shape {tuple(shapes[ours])}, got {tuple(value.shape)}; "
                "the checkpoint is of another size"
            )
    return {ours: found[theirs].detach().float().clone() for theirs, ours in names.items()}


def voxelisation_state_to(state: dict[str, Tensor], config: VoxelisationConfig | None = None) -> dict[str, Tensor]:
    """Our `state_dict` by the original's names, without `module.`; the inverse of `voxelisation_state_from`."""
    config = VoxelisationConfig() if config is None else config
    return {theirs: state[ours].detach().clone() for theirs, ours in weight_map(config).items()}


def _shapes(config: VoxelisationConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in VoxelisationNetwork(config).state_dict().items()}


def _pairs(config: VoxelisationConfig) -> Iterator[tuple[str, str]]:
    blocks = range(config.blocks)
    yield from _both("encoder.fc_pos", "encoder.enter")
    for k in blocks:
        yield from _both(f"encoder.blocks.{k}.fc_0", f"encoder.blocks.{k}.first")
        yield from _both(f"encoder.blocks.{k}.fc_1", f"encoder.blocks.{k}.second")
        yield f"encoder.blocks.{k}.shortcut.weight", f"encoder.blocks.{k}.shortcut.weight"
    yield from _both("encoder.fc_c", "encoder.leave")
    for theirs, ours, count in (("encoders", "down", config.levels), ("decoders", "up", config.levels - 1)):
        for level in range(count):
            for half in range(2):
                there = f"encoder.unet3d.{theirs}.{level}.basic_module.SingleConv{half + 1}"
                here = f"encoder.unet.{ours}.{level}"
                yield from _both(f"{there}.groupnorm", f"{here}.{3 * half}")
                yield f"{there}.conv.weight", f"{here}.{3 * half + 1}.weight"
    yield from _both("encoder.unet3d.final_conv", "encoder.unet.leave")
    for theirs, ours in (("decoder_normal", "normals"), ("decoder_offset", "offsets")):
        for k in blocks:
            yield from _both(f"{theirs}.fc_c.{k}", f"{ours}.read.{k}")
        yield from _both(f"{theirs}.fc_p", f"{ours}.enter")
        for k in blocks:
            yield from _both(f"{theirs}.blocks.{k}.fc_0", f"{ours}.blocks.{k}.first")
            yield from _both(f"{theirs}.blocks.{k}.fc_1", f"{ours}.blocks.{k}.second")
        yield from _both(f"{theirs}.fc_out", f"{ours}.leave")


def _both(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for part in ("weight", "bias"):
        yield f"{theirs}.{part}", f"{ours}.{part}"
