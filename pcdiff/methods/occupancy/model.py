"""Correction of the shape model by the occupancy network, where the bone's surface is not single-valued along a ray."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pcdiff.geometry.occupancy import Head
from pcdiff.methods.occupancy.config import OccupancySettings
from pcdiff.methods.occupancy.features import OccupancyQueries, build_occupancy_features
from pcdiff.methods.occupancy.fused import OccupancyCorrection
from pcdiff.methods.occupancy.network import OccupancyNetwork
from pcdiff.nets.devices import on_device
from pcdiff.nets.states import load_network
from pcdiff.prior.fit import PriorFit
from pcdiff.tensor_files import read_tensors, write_tensors

__all__ = ["OccupancyCorrection", "OccupancyModel"]

OCCUPANCY_FORMAT = "pcdiff-occupancy-3"
REMEDY = "choose other weights, or train a network with tools/train_occupancy.py"
BATCH = 16_384  # query points at a time


@dataclass(frozen=True)
class OccupancyModel:
    """Several networks, whose log-odds are averaged over networks and over the head and its mirror image.

    mean: `settings.mean_shape` uint8, occupancy of the mean head, 255 where every head has bone.
    """

    networks: tuple[OccupancyNetwork, ...]
    mean: np.ndarray
    settings: OccupancySettings

    @classmethod
    def load(cls, path: Path) -> OccupancyModel:
        """Reads what `save` wrote.

        Raises InputError for another file or format, other settings, a damaged file, and weights that are not finite.
        """
        file = read_tensors(path, "weights of an occupancy network", REMEDY, OCCUPANCY_FORMAT, "pt")
        settings = file.config(OccupancySettings)
        mean = file.array("mean", "uint8", settings.mean_shape)
        states: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in file.tensors.items():
            member, _, parameter = name.partition(".")
            if parameter:
                states[member][parameter] = value
        make = partial(OccupancyNetwork, settings)
        networks = [load_network(make, states[member], path) for member in sorted(states)]
        return cls(tuple(networks), mean, settings)

    def save(self, path: Path, notes: dict[str, str] | None = None) -> None:
        """Writes the networks in half precision, the mean head, and the settings as JSON."""
        tensors = {
            f"{member}.{name}": value.to(torch.float16)
            for member, network in enumerate(self.networks)
            for name, value in network.state_dict().items()
        }
        tensors["mean"] = torch.from_numpy(self.mean)
        metadata = {"format": OCCUPANCY_FORMAT, "config": self.settings.model_dump_json(), "license": "CC-BY-NC-SA-4.0"}
        write_tensors(path, tensors, metadata | (notes or {}))

    def build_queries(self, fit: PriorFit, head: Head) -> OccupancyQueries:
        """The query points around the defects of a fitted skull."""
        return build_occupancy_features(fit, head, self.mean, self.settings)

    def predict_correction(self, fit: PriorFit, head: Head, device: str = "cpu") -> OccupancyCorrection | None:
        """Where the networks add bone to the completed tables, or remove it; None where they change nothing."""
        queries, settings = self.build_queries(fit, head), self.settings
        tables = queries.table_log_odds
        odds = tables.copy()
        odds[tuple(queries.index.T)] = self.log_odds(queries, device) + settings.offset
        add = (tables <= 0) & (odds > 0)
        remove = (tables > 0) & (odds < settings.removal) & (queries.bone < 0.5)
        changed = _large_regions(add, tables <= -settings.off_surface, settings.min_region)
        changed |= _large_regions(remove, remove, settings.min_region)
        if not changed.any():
            return None
        correction = np.where(changed, odds - tables, 0).astype(np.float32)
        return OccupancyCorrection(queries.lattice, correction, settings)

    @torch.inference_mode()
    def log_odds(self, queries: OccupancyQueries, device: str = "cpu") -> np.ndarray:
        """(N,) log-odds of missing bone at the query points."""
        networks = [on_device(network, device) for network in self.networks]
        total = np.zeros(len(queries.index), np.float32)
        for view in (queries, queries.mirrored()):
            for first in range(0, len(total), BATCH):
                some = slice(first, first + BATCH)
                features = torch.from_numpy(view.features(some)).to(device).float()
                tables = torch.from_numpy(queries.table_log_odds[tuple(queries.index[some].T)]).to(device)
                for network in networks:
                    total[some] += network(features, tables).cpu().numpy()
        return total / (2 * len(networks))


def _large_regions(changed: np.ndarray, counted: np.ndarray, min_points: int) -> np.ndarray:
    """Connected regions (corners count) of (I, J, K) bool that hold at least `min_points` of the points `counted`."""
    labels, count = ndimage.label(changed, np.ones((3, 3, 3)))
    large = np.bincount(labels[counted], minlength=count + 1) >= min_points
    large[0] = False
    return large[labels]
