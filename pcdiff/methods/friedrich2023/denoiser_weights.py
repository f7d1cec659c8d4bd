"""Map between the original's names of the noise network's weights and ours, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pcdiff.errors import InputError
from pcdiff.methods.friedrich2023.config import PaperNetworkConfig
from pcdiff.methods.friedrich2023.denoiser import ATTENTION, DOWN, UP, PaperDenoiser

Pair = tuple[str, str]  # (theirs, ours)


def denoiser_names() -> dict[str, str]:
    """{the original's name: ours} of every tensor of `PaperDenoiser`."""
    pairs: list[Pair] = []
    for stage, (_, convs, _, widths) in enumerate(DOWN):
        theirs, ours = f"sa_layers.{stage}", f"down.{stage}"
        for conv in range(convs):
            pairs += _pvconv(f"{theirs}.{conv}", f"{ours}.convs.{conv}", attention=stage == ATTENTION)
        grouping = f"{theirs}.{convs}" if convs else theirs
        pairs += _point_layers(f"{grouping}.mlps.0.layers", f"{ours}.point", len(widths))
    pairs += _attention("global_att", "attention")
    for stage, (widths, convs, _) in enumerate(UP):
        theirs, ours = f"fp_layers.{stage}", f"up.{stage}"
        pairs += _point_layers(f"{theirs}.0.mlp.layers", f"{ours}.point", len(widths))
        for conv in range(convs):
            pairs += _pvconv(f"{theirs}.{conv + 1}", f"{ours}.convs.{conv}", attention=False)
    pairs += _point_layers("classifier.0.layers", "head", 1)
    pairs += [*_affine("classifier.2", "out"), *_affine("embedf.0", "time_1"), *_affine("embedf.2", "time_2")]
    return {f"model.{theirs}": ours for theirs, ours in pairs}


def denoiser_state_from(foreign: Mapping[str, Tensor], config: PaperNetworkConfig) -> dict[str, Tensor]:
    """The original's tensors by our names and in our shapes. Raises InputError with the names that do not fit."""
    if not any(name.startswith("model.") for name in foreign):  # saved without the class around the network
        foreign = {f"model.{name}": value for name, value in foreign.items()}
    names = denoiser_names()
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in PaperDenoiser(config).state_dict().items()}
    if missing := sorted(names.keys() - foreign.keys()):
        raise InputError(f"expected the paper's noise network, got one without {_some(missing)}")
    if unexpected := sorted(foreign.keys() - names.keys()):
        raise InputError(f"expected the paper's noise network, got one with an unknown {_some(unexpected)}")
    state = {}
    for theirs, ours in names.items():
        value, shape = foreign[theirs], shapes[ours]
        if tuple(value.shape) != tuple(_as_convolution(theirs, torch.empty(shape, device="meta")).shape):
            raise InputError(f"{theirs}: expected the values of {tuple(shape)}, got shape {tuple(value.shape)}")
        if not value.is_floating_point():
            raise InputError(f"{theirs}: expected floats, got {value.dtype}; is this another network's file?")
        state[ours] = value.float().reshape(shape)
    return state


def denoiser_state_to(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our `state_dict` by the original's names and in its shapes; the inverse of `denoiser_state_from`."""
    return {theirs: _as_convolution(theirs, state[ours]) for theirs, ours in denoiser_names().items()}


def _as_convolution(theirs: str, value: Tensor) -> Tensor:
    """A matrix in the shape of the original's convolution of size 1, which computes the same product."""
    if value.ndim != 2 or "embedf" in theirs or ".fc." in theirs:
        return value
    if ".mlps." in theirs:
        return value[:, :, None, None]
    if ".voxel_layers.6." in theirs:
        return value[:, :, None, None, None]
    return value[:, :, None]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _affine(theirs: str, ours: str) -> Iterator[Pair]:
    for part in ("weight", "bias"):
        yield f"{theirs}.{part}", f"{ours}.{part}"


def _point_layers(theirs: str, ours: str, depth: int) -> Iterator[Pair]:
    """Each layer is a convolution, a norm and a Swish, which the original numbers one after another."""
    for layer in range(depth):
        yield from _affine(f"{theirs}.{3 * layer}", f"{ours}.linears.{layer}")
        yield from _affine(f"{theirs}.{3 * layer + 1}", f"{ours}.norms.{layer}")


def _attention(theirs: str, ours: str) -> Iterator[Pair]:
    for their, our in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out"), ("norm", "norm")):
        yield from _affine(f"{theirs}.{their}", f"{ours}.{our}")


def _pvconv(theirs: str, ours: str, attention: bool) -> Iterator[Pair]:
    for number, part in ((0, "conv_1"), (1, "norm_1"), (4, "conv_2"), (5, "norm_2")):
        yield from _affine(f"{theirs}.voxel_layers.{number}", f"{ours}.{part}")
    if attention:
        yield from _attention(f"{theirs}.voxel_layers.6", f"{ours}.attention")
    else:
        for number, part in ((0, "squeeze"), (2, "excite")):
            yield f"{theirs}.voxel_layers.7.fc.{number}.weight", f"{ours}.gate.{part}.weight"
    yield from _point_layers(f"{theirs}.point_features.layers", f"{ours}.point", 1)
