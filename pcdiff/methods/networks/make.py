"""A network by its config."""

from __future__ import annotations

from collections.abc import Callable

from pcdiff import install_hint
from pcdiff.errors import InputError
from pcdiff.methods.networks.base import BoneNetwork
from pcdiff.methods.networks.config import NetworkConfig

MISSING = "the networks of the field are made of MONAI's blocks, which are not installed: run"


def make_network(config: NetworkConfig) -> BoneNetwork:
    """An untrained network. Imports MONAI for those that are made of its blocks; raises InputError without it."""
    channels, widths = config.channels, config.widths
    if config.kind == "sparse":
        from pcdiff.methods.networks.sparse import Sparse

        return Sparse(channels, widths)
    try:
        from pcdiff.methods.networks.coarse_to_fine import CoarseToFine
        from pcdiff.methods.networks.encoder_decoder import EncoderDecoder, NnUNet
        from pcdiff.methods.networks.patches import Patches
        from pcdiff.methods.networks.slices import Slices
    except ImportError as error:
        raise InputError(f"{MISSING} {install_hint('baselines')} ({error})") from error
    if config.block == "nnunet":
        return NnUNet(channels, widths)
    if config.kind == "slices":
        return Slices(channels, config.block, widths)
    volumes: dict[str, Callable[..., BoneNetwork]]
    volumes = {"encoder_decoder": EncoderDecoder, "patches": Patches, "coarse_to_fine": CoarseToFine}
    return volumes[config.kind](channels, config.block, widths)
