"""What surrounds each place near a defect, on a lattice: for bone that rays from the cranial centre do not describe.

Rays say where two tables lie along a direction. At the forehead that leaves out the orbit's roof and rim; there each
place of a lattice in model space is judged by the bone around it, the mirrored bone, and the mean head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.ndimage import map_coordinates

from pcdiff.geometry.occupancy import Head
from pcdiff.prior.direction_map import MAP, PIXEL, Pose
from pcdiff.prior.fit import PriorFit

STEP = 2.0  # mm between places
MARGIN = 22.0  # mm around the missing tables in which bone may be missing too: the orbit's roof reaches so far back
RIM = 4.0  # mm beyond a defect's border, along the map, that the rays' tables go on
SLOPE = 0.5  # mm from a wall to odds of e, and `CERTAIN` at most
CERTAIN = 5.0
NEAR = 6.0  # mm outside the rays' tables in which a place is judged whatever else is there
MIRRORED, USUAL = 0.1, 0.15  # occupancy on the other side, or of the mean head, that makes a place worth judging
MEAN_LOW = np.array([-100.0, -120.0, -110.0])  # model mm, the first place of the mean head
MEAN_SHAPE = (101, 116, 106)
MIRROR = np.array([-1.0, 1, 1])
# what a place sees: map, points along a side of the cube around it, places from point to point
PATCHES = (
    ("bone", 3, 1),
    ("mirrored", 3, 1),
    ("mean", 3, 1),
    ("bone, 2 mm", 5, 2),
    ("mirrored, 2 mm", 5, 2),
    ("bone, 4 mm", 5, 4),
    ("mirrored, 4 mm", 5, 4),
    ("bone, 7 mm", 5, 6),
    ("mirrored, 7 mm", 3, 6),
    ("mean, 2 mm", 3, 2),
    ("outer", 3, 2),
    ("inner", 3, 2),
)
OWN, X = 14, 8  # what it knows by itself; where among it the left-right coordinate stands
FEATURES = OWN + sum(side**3 for _, side, _ in PATCHES)
PAD = max(side // 2 * step for _, side, step in PATCHES)


@dataclass(frozen=True)
class Lattice:
    """OccupancyQueries in model space: low (3,) mm is the first; (I, J, K) of them, `step` mm apart along the model's
    axes.
    """

    low: np.ndarray
    shape: tuple[int, int, int]
    step: float = STEP

    @property
    def points(self) -> np.ndarray:
        """(I, J, K, 3) model mm."""
        axes = [low + self.step * np.arange(n) for low, n in zip(self.low, self.shape, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1)

    def finer(self, times: int) -> Lattice:
        """The same box with `times` as many steps along each side."""
        i, j, k = ((n - 1) * times + 1 for n in self.shape)
        return Lattice(self.low, (i, j, k), self.step / times)


@dataclass(frozen=True)
class Rays:
    """What the rays say of any point: completed tables over the defects and the band around them, as maps.

    outer, inner, outer_std, thickness_std: (SIZE, SIZE) mm. edge: (SIZE, SIZE) mm from the defect's border, > 0 in it.
    """

    outer: np.ndarray
    inner: np.ndarray
    outer_std: np.ndarray
    thickness_std: np.ndarray
    edge: np.ndarray

    @classmethod
    def of(cls, fit: PriorFit) -> Rays:
        """By the prior's own tables."""
        defect = MAP.to_image(fit.defect > 0, False)
        edge = ndimage.distance_transform_edt(defect) - ndimage.distance_transform_edt(~defect)
        return cls(
            _filled(fit, fit.outer),
            _filled(fit, fit.outer - fit.thickness),
            _filled(fit, fit.std[0]),
            _filled(fit, fit.std[1]),
            (edge * PIXEL).astype(np.float32),
        )

    def moved(self, fit: PriorFit, outer: np.ndarray, thickness: np.ndarray) -> Rays:
        """The same with other table_radii: (R,) model mm."""
        return replace(self, outer=_filled(fit, outer), inner=_filled(fit, outer - thickness))

    def at(self, pixels: np.ndarray, *names: str) -> list[np.ndarray]:
        """(...) values of maps, by name, at pixels (2, ...)."""
        return [map_coordinates(getattr(self, name), pixels, order=1, mode="nearest") for name in names]


def _filled(fit: PriorFit, values: np.ndarray) -> np.ndarray:
    """(R,) -> (SIZE, SIZE) float32: the values over defects and band, the nearest of them elsewhere."""
    known = np.full(len(values), np.nan)
    known[fit.targets] = values[fit.targets]
    return MAP.filled(known).astype(np.float32)


def along_rays(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (..., 3) model mm -> (2, ...) pixels of the map and (...) mm from the centre."""
    radius = np.linalg.norm(points, axis=-1)
    return np.moveaxis(MAP.to_pixel(points / np.maximum(radius, 1e-6)[..., None]), -1, 0), radius


def logit(below_outer: np.ndarray, above_inner: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Log-odds that a place is bone by what the rays say: mm inside of the nearest wall, over `SLOPE`, clipped."""
    return np.clip(np.minimum(np.minimum(below_outer, above_inner), edge + RIM) / SLOPE, -CERTAIN, CERTAIN)


@dataclass(frozen=True)
class OccupancyQueries:
    """A lattice around the defects and the places of it that are to be judged.

    logit: (I, J, K) float32, what the rays say. bone: (I, J, K) float32 in [0, 1], what stands.
    index: (N, 3) int, the places to be judged. Their features are made by `features`: all at once take much memory.
    """

    lattice: Lattice
    logit: np.ndarray
    bone: np.ndarray
    index: np.ndarray
    _own: np.ndarray
    _maps: dict[str, np.ndarray]

    def features(self, some: slice | np.ndarray = slice(None)) -> np.ndarray:
        """(n, FEATURES) float16 of some of the places to be judged."""
        index = self.index[some]
        parts = [self._own[tuple(index.T)]]
        for name, side, step in PATCHES:
            along = (np.arange(side) - side // 2) * step
            cube = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1).reshape(-1, 3)
            at = index[:, None] + cube + PAD
            parts.append(self._maps[name][at[..., 0], at[..., 1], at[..., 2]])
        return np.concatenate(parts, 1).astype(np.float16)

    def mirrored(self) -> OccupancyQueries:
        """As the mirrored head would give them; the mean head is symmetric."""
        low = self.lattice.low * MIRROR - [(self.lattice.shape[0] - 1) * self.lattice.step, 0, 0]
        own = self._own[::-1].copy()
        own[..., X] *= -1
        return OccupancyQueries(
            Lattice(low, self.lattice.shape, self.lattice.step),
            self.logit[::-1],
            self.bone[::-1],
            [self.lattice.shape[0] - 1, 0, 0] + self.index * MIRROR.astype(int),
            own,
            {name: values[::-1] for name, values in self._maps.items()},
        )


def missing_surface_points(fit: PriorFit) -> np.ndarray:
    """(N, 3) model mm: points of the tables that the defects lack, of the outer table and, roughly, of the
    inner.
    """
    rays = np.flatnonzero((fit.defect > 0) & np.isfinite(fit.outer))
    table_radii = MAP.directions[rays] * fit.outer[rays, None]
    return np.concatenate([table_radii, 0.9 * table_radii])


def lattice_around(fit: PriorFit, shift: np.ndarray | float = 0.0) -> Lattice:
    """The lattice that holds the missing tables and a margin; shift: (3,) mm."""
    points = missing_surface_points(fit)
    low = np.floor((points.min(0) - MARGIN) / STEP) * STEP + shift
    i, j, k = np.ceil((points.max(0) + MARGIN - low) / STEP).astype(int).tolist()
    return Lattice(low, (i, j, k))


def occupancy_at(head: Head, pose: Pose, points: np.ndarray) -> np.ndarray:
    """Share of bone (...) float32 at points (..., 3) model mm of a posed head; 0 outside its grid."""
    to_index = np.linalg.inv(head.affine)
    index = pose.to_patient(points) @ to_index[:3, :3].T + to_index[:3, 3]
    values = map_coordinates(head.occupancy, index.reshape(-1, 3).T, order=1, output=np.float32)
    return values.reshape(points.shape[:-1]) / 255


def build_occupancy_features(
    fit: PriorFit, head: Head, mean: np.ndarray, lattice: Lattice | None = None, moved: np.ndarray | float = 0.0
) -> OccupancyQueries:
    """What the places around a fitted skull's defects see.

    head: the skull's. mean: MEAN_SHAPE uint8, the mean head's occupancy. moved: (2, I, J, K, 3) mm, where in the head
    each place and each mirrored place is taken from: a deformation of the head; training draws them.
    """
    lattice = lattice_around(fit) if lattice is None else lattice
    places = lattice.points
    here, there = np.broadcast_to(moved, (2, *places.shape))
    there = places * MIRROR + there
    here = places + here
    bone, mirrored = occupancy_at(head, fit.pose, here), occupancy_at(head, fit.pose, there)
    usual = map_coordinates(mean, ((places - MEAN_LOW) / STEP).reshape(-1, 3).T, order=1, output=np.float32)
    usual = usual.reshape(lattice.shape) / 255

    pixels, radius = along_rays(here)
    outer, inner, outer_std, thickness_std, edge = Rays.of(fit).at(
        pixels, "outer", "inner", "outer_std", "thickness_std", "edge"
    )
    below, above = np.clip(outer - radius, -10, 10), np.clip(radius - inner, -10, 10)
    edge = np.clip(edge, -16, 16)
    depth = np.minimum(np.minimum(below, above), edge + RIM)
    odds = logit(below, above, edge)
    x, y, z = np.moveaxis(places / 60, -1, 0)
    to_bone = np.minimum(ndimage.distance_transform_edt(bone < 0.5), 15) / 5 if (bone > 0.5).any() else 0 * bone + 3
    to_mirrored = (
        np.minimum(ndimage.distance_transform_edt(mirrored < 0.5), 8) / 4 if (mirrored > 0.5).any() else 0 * bone + 2
    )
    own = np.stack(
        [
            *(below / 4, above / 4, outer_std, thickness_std, edge / 8, np.tanh(edge / 4), np.tanh(depth)),
            *(odds / CERTAIN, x, np.abs(x), y, z, to_bone, to_mirrored),
        ],
        -1,
    )

    def smooth(values: np.ndarray, mm: float) -> np.ndarray:
        return ndimage.gaussian_filter(values, mm / STEP, mode="constant")

    maps = {
        "bone": bone,
        "mirrored": mirrored,
        "mean": usual,
        "bone, 2 mm": smooth(bone, 2),
        "mirrored, 2 mm": smooth(mirrored, 2),
        "bone, 4 mm": 2 * smooth(bone, 4),
        "mirrored, 4 mm": 2 * smooth(mirrored, 4),
        "bone, 7 mm": 3 * smooth(bone, 7),
        "mirrored, 7 mm": 3 * smooth(mirrored, 7),
        "mean, 2 mm": smooth(usual, 2),
    }
    padded = {name: np.pad(values, PAD).astype(np.float16) for name, values in maps.items()}
    for name, values in (("outer", below), ("inner", above)):
        padded[name] = np.pad(np.clip(values / 4, -2, 2), PAD, mode="edge").astype(np.float16)
    index = np.round((missing_surface_points(fit) - lattice.low) / lattice.step).astype(int)
    wall = np.zeros(lattice.shape, bool)
    wall[tuple(index[((index >= 0) & (index < lattice.shape)).all(1)].T)] = True
    close = (
        ndimage.distance_transform_edt(~wall) * lattice.step < MARGIN
    )  # two defects share a lattice as wide as a head
    worth = (bone < 0.5) & close & ((depth > -NEAR) | (mirrored > MIRRORED) | (usual > USUAL))
    return OccupancyQueries(
        lattice,
        odds.astype(np.float32),
        bone,
        np.argwhere(worth),
        np.clip(own, -4, 4).astype(np.float16),
        padded,
    )
