"""Where rays do not describe the bone, places do: the tables of a completion, overruled by the network of
places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy import ndimage
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes
from torch import Tensor

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.occupancy import Head
from pcdiff.geometry.points import PointCloud
from pcdiff.methods.occupancy.features import (
    CERTAIN,
    MEAN_SHAPE,
    Lattice,
    OccupancyQueries,
    Rays,
    along_rays,
    build_occupancy_features,
    logit,
)
from pcdiff.methods.occupancy.network import OccupancyNetwork
from pcdiff.nets.devices import on_device
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import PriorFit

FORMAT = "pcdiff-places-2"
BATCH = 16_384  # places judged at a time
# Bone is built from less than even odds on: a DSC of D is best served by all places whose probability exceeds D / 2
# (Lipton et al. 2014): 0.38 where places speak at all.
LIFT = 0.5  # log-odds
REMOVE = -0.5  # lifted log-odds beneath which the network takes away what the rays have: that asks for more
OFF = 1.0  # log-odds of the rays beyond which a place lies off their tables
SMALLEST = 40  # such places that hang together: fewer are a matter of tenths of a millimetre, which rays know better
FINER = 2  # of the lattice, for the surface
SMOOTH = 0.7  # steps of the finer lattice, for the normals


@dataclass(frozen=True)
class OccupancyCorrection:
    """What the places say against the rays: log-odds to add to theirs, (I, J, K), 0 where both agree."""

    lattice: Lattice
    correction: np.ndarray


@dataclass(frozen=True)
class OccupancyModel:
    """Networks of places, of which each sees the head and its mirror image and whose log-odds are averaged.

    mean: the mean head they compare with, MEAN_SHAPE uint8, 255 where every head has bone.
    """

    networks: tuple[OccupancyNetwork, ...]
    mean: np.ndarray

    @classmethod
    def load(cls, path: Path) -> OccupancyModel:
        """Reads what `save` wrote. Raises InputError for any other file."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InputError(f"{path}: expected weights of format {FORMAT}, got another file")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: expected a network of places, got {error}; train or choose others") from error
        mean = tensors.pop("mean").numpy()
        states: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            member, _, own = name.partition(".")
            states[member][own] = value.float()
        try:
            networks = tuple(_network(states[member]) for member in sorted(states))
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{path}: weights of another version's network; train anew, or use its version") from error
        if mean.shape != MEAN_SHAPE:
            raise InputError(f"{path}: expected a mean head of {MEAN_SHAPE}, got {mean.shape}; train anew")
        return cls(networks, mean)

    def save(self, path: Path, notes: dict[str, str] | None = None) -> None:
        """Half precision, with the mean head."""
        tensors = {
            f"{member}.{name}": value.to(torch.float16).contiguous()
            for member, network in enumerate(self.networks)
            for name, value in network.state_dict().items()
        }
        tensors["mean"] = torch.from_numpy(self.mean)
        metadata = {"format": FORMAT, "license": "CC-BY-NC-SA-4.0", **(notes or {})}
        with written_beside(path) as beside:
            beside.write_bytes(save(tensors, metadata))

    def predict_correction(self, fit: PriorFit, head: Head, device: str = "cpu") -> OccupancyCorrection | None:
        """Where bone is missing that the rays do not know of, or is not although they say so; None where nowhere."""
        places = build_occupancy_features(fit, head, self.mean)
        odds = places.logit.copy()
        odds[tuple(places.index.T)] = self.odds(places, device) + LIFT
        add = (places.logit <= 0) & (odds > 0)
        remove = (places.logit > 0) & (odds < REMOVE) & (places.bone < 0.5)
        overruled = _regions(add, places.logit <= -OFF) | _regions(remove, remove)
        if not overruled.any():
            return None
        return OccupancyCorrection(places.lattice, np.where(overruled, odds - places.logit, 0).astype(np.float32))

    @torch.inference_mode()
    def odds(self, places: OccupancyQueries, device: str = "cpu") -> np.ndarray:
        """(N,) log-odds of missing bone at the places to be judged."""
        networks = [on_device(network, device) for network in self.networks]
        said = np.zeros(len(places.index), np.float32)
        for seen in (places, places.mirrored()):
            for first in range(0, len(said), BATCH):
                some = slice(first, first + BATCH)
                features = torch.from_numpy(seen.features(some)).to(device).float()
                rays = torch.from_numpy(places.logit[tuple(places.index[some].T)]).to(device)
                for network in networks:
                    said[some] += network(features, rays).cpu().numpy()
        return said / (2 * len(networks))


def fused_surfaces(
    fit: PriorFit, table_radii: Sequence[tuple[np.ndarray, np.ndarray]], verdict: OccupancyCorrection
) -> list[PointCloud]:
    """The surface of what rays and places say together, for each pair of table_radii: (R,) outer radius and thickness.

    Labelled like `PriorFit.completed_surface`: in a defect's rays, or where the places overruled them, a point is of
    that defect.
    """
    lattice = verdict.lattice.finer(FINER)
    pixels, radius = along_rays(lattice.points)
    index = np.argwhere(np.ones(lattice.shape, bool)).T / FINER
    correction = map_coordinates(verdict.correction, index, order=1).reshape(lattice.shape)
    rays = Rays.of(fit)
    (edge,) = rays.at(pixels, "edge")
    defect = MAP.to_image(fit.defect)
    defect = defect[tuple(ndimage.distance_transform_edt(defect == 0, return_distances=False, return_indices=True))]
    clouds = []
    for outer, thickness in table_radii:
        top, bottom = rays.moved(fit, outer, np.maximum(thickness, 1.0)).at(pixels, "outer", "inner")
        odds = np.pad(logit(top - radius, radius - bottom, edge) + correction, 1, constant_values=-CERTAIN)
        vertices = marching_cubes(odds.astype(np.float32), 0.0)[0]
        slope = np.stack(np.gradient(ndimage.gaussian_filter(odds, SMOOTH)), -1)
        normals = -np.stack([map_coordinates(slope[..., axis], vertices.T, order=1) for axis in range(3)], -1)
        normals = normals @ np.linalg.inv(fit.pose.linear)  # normals transform by the inverse transpose
        place = vertices - 1  # the padding
        at = lattice.low + lattice.step * place
        own = map_coordinates(edge, place.T, order=1, mode="nearest") > 0
        own |= np.abs(map_coordinates(correction, place.T, order=1, mode="nearest")) > 0
        clouds.append(
            PointCloud(
                fit.pose.to_patient(at),
                normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9),
                np.where(own, map_coordinates(defect, along_rays(at)[0], order=0, mode="nearest"), 0),
            )
        )
    return clouds


def _network(state: dict[str, Tensor]) -> OccupancyNetwork:
    network = OccupancyNetwork(state["enter.weight"].shape[0])
    network.load_state_dict(state)
    return network.eval()


def _regions(overruled: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """What of (I, J, K) bool hangs together, corners too, and holds `SMALLEST` of the places `counted` at least."""
    labels, count = ndimage.label(overruled, np.ones((3, 3, 3)))
    large = np.bincount(labels[counted], minlength=count + 1) >= SMALLEST
    large[0] = False
    return large[labels]
