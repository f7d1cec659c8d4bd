"""Fitted cuts in the memory of the training device, and windows of them, which are deformed and mirrored there.

Nothing is loaded from a disk or sent to the device while a network is trained: an H200 sees 450 windows a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pcdiff.methods.volumetric.config import LAYOUT, FusionConfig
from pcdiff.methods.volumetric.features import LATTICE, STEP, mirrored
from pcdiff.prior.direction_map import PIXEL, RADIUS, SIZE, map_axes
from pcdiff.training.recipes import WindowsConfig
from pcdiff.training.volumetric.fitted import FittedCase
from pcdiff.training.volumetric.heads import Heads

# Lattice points. A window has one of these shapes, the smallest that holds a defect: on a GPU each further shape costs
# memory and a search for the fastest convolutions.
SHAPES = ((56, 64, 64), (72, 72, 64), (80, 88, 72), (80, 112, 96))
KNOTS = (8, 10, 9)  # of a deformation over the lattice, 20 to 26 mm apart
MAPS = ("outer", "inner", "outer_std", "thickness_std", "border")
FUSION = FusionConfig()
LATTICE_SHAPE = np.array(LATTICE.shape)


@dataclass(frozen=True)
class Windows:
    """Windows of one shape, float32.

    fine, coarse: the network's input, see `features.network_inputs`. missing: (B, I, J, K) share of missing bone.
    tables: (B, I, J, K) log-odds of the completed tables, 0 where the shape model is hidden.
    """

    fine: Tensor
    coarse: Tensor
    missing: Tensor
    tables: Tensor


@dataclass(frozen=True)
class Place:
    """Where bone is missing: number of the cut, first lattice point and the one after the last, (3,) int each."""

    cut: int
    first: np.ndarray
    last: np.ndarray


class Cuts:
    """Fitted cuts on a device, five megabytes each.

    Args:
        files: of `FittedCase`.
        heads: of which the cuts were made; the mean head of a cut leaves out the heads that it was made of.
        config: of the windows.
        device: of all tensors.
    """

    def __init__(self, files: Sequence[Path], heads: Heads, config: WindowsConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.places: list[list[Place]] = [[] for _ in SHAPES]
        bone, missing, mean = (torch.empty(len(files), *LATTICE.shape, dtype=torch.uint8) for _ in range(3))
        maps = torch.empty(len(files), len(MAPS), SIZE, SIZE)
        for number, file in enumerate(files):
            case = FittedCase.load(file)
            bone[number], missing[number] = torch.from_numpy(case.bone), torch.from_numpy(case.missing)
            mean[number] = torch.from_numpy(heads.mean(without=case.used))
            maps[number] = torch.from_numpy(np.stack([getattr(case.maps, name) for name in MAPS]))
            for place in _places(number, case):
                self.places[self._shape_for(place)].append(place)
        self.bone, self.missing, self.mean, self.maps = (x.to(device) for x in (bone, missing, mean, maps))
        self.low = torch.tensor(LATTICE.low, dtype=torch.float32, device=device)

    def draw(self, count: int, rng: np.random.Generator) -> Windows:
        """Windows of one shape, `windows_of` them."""
        kind = int(rng.choice(len(SHAPES), p=self.shares))
        count = windows_of(kind, count)
        places = [self.places[kind][k] for k in rng.integers(len(self.places[kind]), size=count)]
        return self.windows(places, SHAPES[kind], rng)

    @property
    def shares(self) -> np.ndarray:
        """(len(SHAPES),) probabilities of the shapes."""
        number = np.array([len(places) for places in self.places])
        shares: np.ndarray = number / number.sum()
        return shares

    @property
    def sides(self) -> list[tuple[int, int, int]]:
        """Lattice points of the windows of all places."""
        return [shape for shape, places in zip(SHAPES, self.places, strict=True) for _ in places]

    def mean_count(self, count: int) -> float:
        """Mean number of windows that `draw` returns."""
        return float(self.shares @ [windows_of(kind, count) for kind in range(len(SHAPES))])

    def windows(self, places: Sequence[Place], shape: tuple[int, int, int], rng: np.random.Generator) -> Windows:
        """A window around each of some places; where exactly, and what happens to it, is drawn."""
        corners = np.stack([self._corner(place, np.array(shape), rng) for place in places])
        cuts = torch.tensor([place.cut for place in places], device=self.device)
        strips = self._points(corners, shape, rng)
        across = [slice(int(c[0]), int(c[0]) + shape[0]) for c in corners]
        within = torch.stack([strip[x] for strip, x in zip(strips, across, strict=True)])

        bone = self._read(self.bone[cuts], strips)
        both = [torch.stack([side[x] for side, x in zip(b, across, strict=True)]) for b in (bone, bone.flip(1))]
        mean = [self.mean[(place.cut, *_window(c, shape))] for place, c in zip(places, corners, strict=True)]
        fine = torch.stack([*both, torch.stack(mean).float() / 255], 1)
        missing = self._read(self.missing[cuts], within)
        shown = self._chosen(len(places), 1 - self.config.hidden, rng)
        tables, channels = torch.zeros_like(missing), self._no_tables(len(places), shape)
        if shown.any():
            tables = self._table_log_odds(self.maps[cuts], within) * shown
            channels = self._table_channels(self.maps[cuts], within) * shown[:, None]
        coarse = torch.cat([self._coordinates(corners, shape), channels], 1)
        return _mirror_some(Windows(fine, coarse, missing, tables), self._chosen(len(places), 0.5, rng) > 0)

    def _shape_for(self, place: Place) -> int:
        """Number of the smallest shape that holds a place and its margin; else of the largest."""
        if self.config.whole:
            return len(SHAPES) - 1
        first, last = np.maximum(place.first - self.config.margin, 0), place.last + self.config.margin
        size = np.minimum(last, LATTICE_SHAPE) - first + 1  # windows begin at even points
        return next((k for k, shape in enumerate(SHAPES) if (size <= shape).all()), len(SHAPES) - 1)

    def _corner(self, place: Place, shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(3,) int: the first lattice point of a window that holds a place and its margin, as far as they fit."""
        ends = (place.first - self.config.margin, place.last + self.config.margin - shape)
        low, high = np.sort([np.clip(end, 0, LATTICE_SHAPE - shape) for end in ends], 0)
        corner: np.ndarray = rng.integers(low, high + 1)
        return corner - corner % 2  # every second lattice point carries the coarse channels

    def _chosen(self, count: int, share: float, rng: np.random.Generator) -> Tensor:
        """(B, 1, 1, 1): 1 with a probability of `share`, else 0."""
        return torch.from_numpy((rng.random(count) < share).astype(np.float32)).to(self.device)[:, None, None, None]

    def _points(self, corners: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator) -> Tensor:
        """(B, 80, J, K, 3) mm: where the points of windows, over the whole width of the head, are read in the cuts.

        Some windows are posed anew and deformed: read elsewhere than at their own points.
        """
        config, count = self.config, len(corners)
        deformed = rng.random(count) < config.deformed
        knots = rng.standard_normal((count, 3, *KNOTS)) * rng.uniform(0.1, 1, (count, 1, 1, 1, 1)) * config.deform_mm
        moved = torch.from_numpy(knots.astype(np.float32)).to(self.device)
        moved = functional.interpolate(moved, LATTICE.shape, mode="trilinear", align_corners=True).movedim(1, -1)
        axes = [torch.arange(n, device=self.device, dtype=torch.float32) for n in LATTICE.shape]
        lattice = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) * STEP + self.low
        strips = []
        for k, corner in enumerate(corners):
            window = (slice(None), *_window(corner, shape)[1:])
            points = lattice[window]
            x, y, z = np.radians(rng.normal(0, config.turn_degrees, 3))
            turn = np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]]) * rng.normal(1, config.scale, 3)
            shift = rng.normal(0, config.shift_mm, 3)
            if deformed[k]:
                linear, offset = (torch.from_numpy(part).float().to(self.device) for part in (turn, shift))
                points = points @ linear.T + offset + moved[(k, *window)]
            strips.append(points)
        return torch.stack(strips)

    def _read(self, values: Tensor, points: Tensor) -> Tensor:
        """(B, *LATTICE.shape) uint8 at points (B, I, J, K, 3) mm -> (B, I, J, K) in [0, 1]; 0 beyond the lattice."""
        last = torch.tensor(LATTICE_SHAPE - 1, dtype=torch.float32, device=self.device)
        grid = ((points - self.low) / STEP * (2 / last) - 1).flip(-1)
        return functional.grid_sample(values[:, None].float() / 255, grid, align_corners=True)[:, 0]

    def _coordinates(self, corners: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
        """(B, 3, I/2, J/2, K/2), as `features.coordinates`."""
        first = torch.from_numpy(corners).float().to(self.device)
        channels = []
        for axis, (side, scale) in enumerate(zip(shape, LAYOUT.coordinate_scale_mm, strict=True)):
            places = torch.arange(0, side, 2, device=self.device) + first[:, axis : axis + 1]
            values = (places * STEP + self.low[axis] + STEP / 2) / scale
            view = [len(corners), 1, 1, 1]
            view[axis + 1] = side // 2
            channels.append(values.reshape(view).expand(-1, *(n // 2 for n in shape)))
        return torch.stack(channels, 1)

    def _no_tables(self, count: int, shape: tuple[int, int, int]) -> Tensor:
        """(B, 6, I/2, J/2, K/2) zeros."""
        return torch.zeros(count, len(LAYOUT.tables), *(n // 2 for n in shape), device=self.device)

    def _table_channels(self, maps: Tensor, points: Tensor) -> Tensor:
        """(B, 6, I/2, J/2, K/2), as `features.prior_tables`, in the middle of each block of points."""
        middle = functional.avg_pool3d(points.movedim(-1, 1), 2).movedim(1, -1)
        radius = middle.norm(dim=-1)
        outer, inner, outer_std, thickness_std, border = _sample_maps(maps, middle)
        below, above = (outer - radius).clamp(-10, 10) / 4, (radius - inner).clamp(-10, 10) / 4
        channels = [below, above, outer_std, thickness_std, border.clamp(-16, 16) / 8, torch.ones_like(border)]
        return torch.stack(channels, 1)

    def _table_log_odds(self, maps: Tensor, points: Tensor) -> Tensor:
        """(B, I, J, K), as `features.prior_log_odds`."""
        radius = points.norm(dim=-1)
        outer, inner, border = _sample_maps(
            maps[:, [MAPS.index(name) for name in ("outer", "inner", "border")]], points
        )
        depth = torch.minimum(torch.minimum(outer - radius, radius - inner), border + FUSION.extension_mm)
        return depth.div(FUSION.slope_mm).clamp(-FUSION.max_log_odds, FUSION.max_log_odds)


def windows_of(kind: int, count: int) -> int:
    """As many windows of a shape as have the points of `count` windows of the smallest shape; at least one."""
    return max(1, count * int(np.prod(SHAPES[0])) // int(np.prod(SHAPES[kind])))


def _places(number: int, case: FittedCase) -> list[Place]:
    """Of the missing bone in each window of a case; windows without any have none."""
    places = []
    for window in case.windows:
        index = np.argwhere(case.missing[window] >= 128)
        if len(index):
            start = np.array([side.start for side in window])
            places.append(Place(number, start + index.min(0), start + index.max(0) + 1))
    return places


def _window(corner: np.ndarray, shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    a, b, c = (slice(int(first), int(first) + side) for first, side in zip(corner, shape, strict=True))
    return a, b, c


def _sample_maps(maps: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """(B, C, SIZE, SIZE) images in the directions of points (B, I, J, K, 3) mm -> C of (B, I, J, K)."""
    grid = (_pixels(points) * (2 / (SIZE - 1)) - 1).flip(-1).flatten(2, 3)
    values = functional.grid_sample(maps, grid, padding_mode="border", align_corners=True)
    return values.unflatten(3, points.shape[2:4]).unbind(1)


def _pixels(points: Tensor) -> Tensor:
    """Points (..., 3) mm -> (..., 2) pixels of the direction map, as `DirectionMap.to_pixel`."""
    directions = points / points.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    local = directions @ torch.from_numpy(map_axes()).to(points)
    scale = (2 / (1 + local[..., 2]).clamp(min=1e-9)).sqrt() * (RADIUS / PIXEL)
    return local[..., :2] * scale[..., None] + (SIZE - 1) / 2


def _mirror_some(windows: Windows, chosen: Tensor) -> Windows:
    """Mirrors the chosen ones, (B, 1, 1, 1) bool."""
    fine, coarse = mirrored(windows.fine, windows.coarse)
    return Windows(
        torch.where(chosen[:, None], fine, windows.fine),
        torch.where(chosen[:, None], coarse, windows.coarse),
        torch.where(chosen, windows.missing.flip(1), windows.missing),
        torch.where(chosen, windows.tables.flip(1), windows.tables),
    )
