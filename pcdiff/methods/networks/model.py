"""A learned baseline with its mean head and config: its file, and the share of missing bone that it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from pcdiff.methods.networks.base import BoneNetwork
from pcdiff.methods.networks.config import BaselineConfig
from pcdiff.methods.networks.make import make_network
from pcdiff.methods.volumetric.config import LAYOUT
from pcdiff.methods.volumetric.features import Window
from pcdiff.methods.volumetric.model import run_in_windows
from pcdiff.methods.volumetric.surroundings import at_rim
from pcdiff.nets.devices import on_device
from pcdiff.nets.states import load_network
from pcdiff.tensor_files import check_layout, read_tensors, write_tensors

BASELINE_FORMAT = "pcdiff-baseline-1"
REMEDY = "choose other weights, name the method that these belong to (--method), or train it by its recipe"
WHOLE: Window = (slice(0, 80), slice(0, 112), slice(0, 104))  # sides are multiples of `LAYOUT.window_multiple`


@dataclass(frozen=True)
class BaselineModel:
    """The network; mean: as that of `VolumetricModel`, None for a network that does not read it."""

    network: BoneNetwork
    mean: np.ndarray | None
    config: BaselineConfig

    @classmethod
    def load(cls, path: Path) -> BaselineModel:
        """Reads what `save` wrote; the network is in evaluation mode.

        Raises InputError for another file, format or layout, a config of another version, another mean head, a damaged
        file, and weights that are not finite.
        """
        file = read_tensors(path, "weights of a network that predicts missing bone", REMEDY, BASELINE_FORMAT, "pt")
        config = file.config(BaselineConfig)
        check_layout(file.path, "lattice or other channels", config.layout, LAYOUT)
        mean = file.array("mean", "uint8", LAYOUT.shape) if "mean" in config.network.inputs else None
        state = {name: value for name, value in file.tensors.items() if name != "mean"}
        return cls(load_network(lambda: make_network(config.network), state, path), mean, config)

    def save(self, path: Path, notes: Mapping[str, str] | None = None) -> None:
        """Writes the weights in half precision, the mean head if it is read, and the config as JSON.

        notes: go into the metadata.
        """
        tensors = {name: value.half() for name, value in self.network.state_dict().items()}
        if self.mean is not None:
            tensors["mean"] = torch.from_numpy(self.mean)
        metadata = {"format": BASELINE_FORMAT, "config": self.config.model_dump_json(), "license": "CC-BY-NC-SA-4.0"}
        write_tensors(path, tensors, metadata | dict(notes or {}))

    def windows(self, around: Sequence[Window]) -> Sequence[Window]:
        """The windows that the network is run in; around: those around the defects."""
        return [WHOLE] if self.network.whole and around else around

    def completed_share(
        self, bone: np.ndarray, around: Sequence[Window], device: str = "cpu", mirror: bool = True
    ) -> np.ndarray:
        """`LAYOUT.shape` float32: the share of missing bone; at the rim, of the completed bone; 0 outside the windows.

        Half of a lattice point's surroundings can be missing bone and half be present: the surface of the share of
        missing bone would lie inside the implant there.

        Args:
            bone: `LAYOUT.shape` float32, share of bone.
            around: windows around the defects, see `volumetric.features.defect_windows`.
            device: of the network.
            mirror: average the log-odds of the head and of its mirror image.
        """
        network = on_device(self.network, device)
        windows = self.windows(around)
        mean = np.zeros(LAYOUT.shape, np.uint8) if self.mean is None else self.mean
        odds = run_in_windows(network, mean, bone, windows, None, device, mirror)
        missing = expit(np.where(np.isfinite(odds), odds, -np.inf))
        share: np.ndarray = np.where(at_rim(missing, bone), np.minimum(missing + bone, 1), missing).astype(np.float32)
        return share
