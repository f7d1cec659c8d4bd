"""What a report shows of a skull, whatever its implant: so it can be drawn while the implant is designed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pcdiff.geometry.grey import GreyHead, Grid, occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.report.colours import BONE
from pcdiff.report.surfaces import Shape, shape_of

SKULL_VERTICES = 60_000  # below 2**16, so that 16-bit indices suffice


@dataclass(frozen=True)
class Shares:
    """The share of a mask at each point of a grid. values: (x, y, z) uint8, 255 for all of the cube of 1 mm."""

    grid: Grid
    values: np.ndarray


@dataclass(frozen=True)
class ShownSkull:
    """A defective skull, its surface for display and its bone on the grid of the slices; both made when asked for.

    grey: the grey values of a CT; None for a mask.
    """

    volume: Volume
    grey: GreyHead | None = None

    def draw(self) -> None:
        """Makes what is otherwise made when it is asked for."""
        _ = self.shape, self.shares

    @cached_property
    def shape(self) -> Shape:
        """The surface."""
        return shape_of(self.volume, BONE, SKULL_VERTICES)

    @cached_property
    def shares(self) -> Shares:
        """The bone, on the grid of the grey values where there are any."""
        grid = Grid.around(self.volume) if self.grey is None else self.grey.grid
        return Shares(grid, occupancy(self.volume, grid))
