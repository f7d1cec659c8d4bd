"""The U-Net with its mean head and config: its file, and log-odds of missing bone around the defects of a skull."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcdiff.methods.volumetric.config import LAYOUT, VolumetricConfig
from pcdiff.methods.volumetric.features import LATTICE, Window, mirrored, network_inputs
from pcdiff.methods.volumetric.lattice import TableMaps
from pcdiff.nets.devices import half_precision, on_device
from pcdiff.nets.states import load_network
from pcdiff.nets.unet3d import UNet3d
from pcdiff.tensor_files import check_layout, read_tensors, write_tensors

UNET_FORMAT = "pcdiff-unet-2"
REMEDY = "choose other weights, name the method that these belong to (--method), or train with `pcdiff train unet`"


@dataclass(frozen=True)
class VolumetricModel:
    """The network; mean: `LAYOUT.shape` uint8, occupancy of the mean head, 255 where every head has bone."""

    network: UNet3d
    mean: np.ndarray
    config: VolumetricConfig

    @classmethod
    def load(cls, path: Path) -> VolumetricModel:
        """Reads what `save` wrote; the network is in evaluation mode.

        Raises InputError for another file, format or layout, a config of another version, another mean head, a damaged
        file, and weights that are not finite.
        """
        file = read_tensors(path, "weights of a volumetric U-Net", REMEDY, UNET_FORMAT, "pt")
        config = file.config(VolumetricConfig)
        check_layout(file.path, "lattice or other channels", config.layout, LAYOUT)
        mean = file.array("mean", "uint8", LAYOUT.shape)
        state = {name: value for name, value in file.tensors.items() if name != "mean"}
        return cls(load_network(config.network.make, state, path), mean, config)

    def save(self, path: Path, notes: Mapping[str, str] | None = None) -> None:
        """Writes the weights in half precision, the mean head, and the config as JSON; notes go into the metadata."""
        tensors = {name: value.half() for name, value in self.network.state_dict().items()}
        tensors["mean"] = torch.from_numpy(self.mean)
        metadata = {"format": UNET_FORMAT, "config": self.config.model_dump_json(), "license": "CC-BY-NC-SA-4.0"}
        write_tensors(path, tensors, metadata | dict(notes or {}))

    def predict(
        self,
        bone: np.ndarray,
        windows: Sequence[Window],
        maps: TableMaps | None = None,
        device: str = "cpu",
        mirror: bool = True,
    ) -> np.ndarray:
        """`LAYOUT.shape` float32: log-odds of missing bone; with `maps`, what is to be added to those of the tables.

        NaN outside all windows; where windows overlap, the mean.

        Args:
            bone: `LAYOUT.shape` float32, share of bone.
            windows: see `features.defect_windows`.
            maps: the completed tables; None hides them from the network.
            device: of the network.
            mirror: average the log-odds of the head and of its mirror image.
        """
        network = on_device(self.network, device)
        return run_in_windows(network, self.mean, bone, windows, maps, device, mirror)


@torch.inference_mode()
def run_in_windows(
    network: nn.Module,
    mean: np.ndarray,
    bone: np.ndarray,
    windows: Sequence[Window],
    maps: TableMaps | None,
    device: str,
    mirror: bool,
) -> np.ndarray:
    """See `VolumetricModel.predict`; network: on the device, from fine and coarse channels to log-odds."""
    total, count = np.zeros(LATTICE.shape, np.float32), np.zeros(LATTICE.shape, np.float32)
    share = mean.astype(np.float32) / 255
    for window, (fine, coarse) in zip(windows, network_inputs(bone, share, windows, maps), strict=True):
        found = _run(network, fine, coarse, device)
        if mirror:
            found = (found + _run(network, *mirrored(fine, coarse), device).flip(0)) / 2
        total[window] += found.numpy()
        count[window] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _run(network: nn.Module, fine: Tensor, coarse: Tensor, device: str) -> Tensor:
    """(I, J, K) log-odds, float32 on the CPU; computed in bfloat16, as in training, where the device is fast at it."""
    with half_precision(device):
        odds = network(fine.to(device), coarse.to(device))
    return odds[0].float().cpu()
