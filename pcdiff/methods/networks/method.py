"""The learned baselines as methods: the share of missing bone on the lattice, read on the scan's grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.grid import largest_components
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import Field
from pcdiff.methods.networks.config import Kind
from pcdiff.methods.networks.model import REMEDY, BaselineModel
from pcdiff.methods.registry import WeightsFiles
from pcdiff.methods.volumetric.features import LATTICE, defect_windows, windows_occupancy
from pcdiff.prior.defects import disc
from pcdiff.prior.direction_map import MAP, Pose
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior

REACH_MM = 4.5  # beyond the rays of the defects: a network's bevel may lie there


@dataclass(frozen=True)
class BaselineMethod:
    """Of the shape model only its pose and the places of the defects are used.

    Of what the network predicts the largest pieces are kept, one for each defect, as entries of the challenges do.
    Nothing is drawn at random, so there is one candidate.
    """

    prior: ShapePrior
    model: BaselineModel

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`."""
        around = defect_windows(fit)
        bone = windows_occupancy(head_occupancy(skull), fit.pose, self.model.windows(around))
        share = self.model.completed_share(bone, around, device)
        share *= self._at_defects(share > 0, fit)
        share *= ndimage.binary_dilation(largest_components(share >= Field.level, fit.defects))
        return Proposal([Field(on_grid(share, fit.pose, skull))])

    def _at_defects(self, where: np.ndarray, fit: PriorFit) -> np.ndarray:
        """(I, J, K) bool: the lattice points of `where` within `REACH_MM` of a ray through a defect to be closed."""
        near = ndimage.binary_dilation(MAP.to_image(fit.defect > 0, False), disc(REACH_MM))
        at_defects = where.copy()
        at_defects[where] = MAP.nearest(near.astype(np.uint8), np.argwhere(where) * LATTICE.step + LATTICE.low) > 0
        return at_defects


def on_grid(values: np.ndarray, pose: Pose, skull: Volume) -> np.ndarray:
    """`LAYOUT.shape` -> (I, J, K) float32 on the skull's grid, interpolated linearly; 0 beyond the lattice."""
    to_patient = np.eye(4)
    to_patient[:3, :3], to_patient[:3, 3] = pose.linear, pose.shift
    to_lattice = lattice_index() @ np.linalg.inv(to_patient) @ skull.affine
    found = np.zeros(skull.mask.shape, np.float32)
    if not (inside := np.argwhere(values > 0)).size:
        return found
    low, high = inside.min(0) - 1, inside.max(0) + 1
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
    to_voxel = np.linalg.inv(to_lattice)
    voxels = corners @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    first = np.clip(np.floor(voxels.min(0)).astype(int), 0, skull.mask.shape)
    last = np.clip(np.ceil(voxels.max(0)).astype(int) + 1, 0, skull.mask.shape)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    offset = to_lattice[:3, :3] @ first + to_lattice[:3, 3]
    shape = tuple((last - first).tolist())
    found[box] = ndimage.affine_transform(values, to_lattice[:3, :3], offset, shape, order=1)
    return found


def lattice_index() -> np.ndarray:
    """(4, 4) affine: model mm -> index of the lattice."""
    affine = np.eye(4) / LATTICE.step
    affine[:3, 3] = -LATTICE.low / LATTICE.step
    affine[3, 3] = 1
    return affine


def load(files: WeightsFiles, kind: Kind) -> BaselineMethod:
    """The method with the weights of the files. Raises InputError for a file of another kind."""
    assert files.own is not None
    model = BaselineModel.load(Path(files.own))
    if model.config.network.kind != kind:
        raise InputError(f"{files.own}: expected weights of {kind}, got those of {model.config.network.kind}; {REMEDY}")
    return BaselineMethod(ShapePrior.load(files.prior), model)


load_encoder_decoder = partial(load, kind="encoder_decoder")
load_slices = partial(load, kind="slices")
load_patches = partial(load, kind="patches")
load_coarse_to_fine = partial(load, kind="coarse_to_fine")
load_sparse = partial(load, kind="sparse")
