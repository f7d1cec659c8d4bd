"""Slices of the scan with the outlines of bone and implant: data for `web/slices.js`, and pictures for print.

Radiological convention: the patient's right is on the left of axial and coronal slices; sagittal slices face left.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.ndimage import map_coordinates

from pcdiff.geometry.grey import LEVEL_HU, WIDTH_HU, Grid, occupancy, tile_columns, tiled
from pcdiff.geometry.grid import voxels_of
from pcdiff.report.contents import CaseContents
from pcdiff.report.rim import RimPlane, rim_planes
from pcdiff.report.shown_skull import Shares
from pcdiff.report.templates import fill

BEYOND_MM = 15.0  # the sliders go so far beyond the implant
RIM_PICTURES = 4  # of the rim in print
RIM_MM = 60.0  # edge of a section through the rim
BARS_MM = (50.0, 20.0, 10.0, 5.0)  # lengths of a scale bar
BAR_SHARE = 0.34  # of a picture's width at most
MASK_GREY = 190  # of bone in a mask
# Plane -> direction to the right and downwards in the picture, LPS.
PLANES = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}
SIDES = (("R", "L"), ("A", "P"), ("I", "S"))  # of negative and positive millimetres along each axis, LPS
OBLIQUE = 0.4  # a direction's component from which on its letter is shown


@dataclass(frozen=True)
class Plane:
    """A rectangle in the head. corner: (3,) mm, its upper left. right, down: (3,) unit. width, height: mm.

    step: mm between the points that are looked at. title: for people.
    """

    title: str
    corner: np.ndarray
    right: np.ndarray
    down: np.ndarray
    width: float
    height: float
    step: float = 1.0

    def sampled(self, values: np.ndarray, grid: Grid) -> np.ndarray:
        """(rows, columns) float: the values of a grid, interpolated; 0 outside of it."""
        rows = np.arange(0, self.height + 1e-6, self.step)[:, None, None]
        columns = np.arange(0, self.width + 1e-6, self.step)[None, :, None]
        points = self.corner - np.array(grid.low) + rows * self.down + columns * self.right
        return map_coordinates(values, np.moveaxis(points, -1, 0), np.float32, order=1)


class Slices:
    """The grey values, bone and implant of a case, and where to look at them."""

    def __init__(self, contents: CaseContents) -> None:
        self.grey, self.bone = contents.skull.grey, contents.skull.shares
        self.grid = self.bone.grid
        points = contents.implant.to_mm(voxels_of(contents.implant.mask))
        # The implant's voxel nearest its centre: of two pieces it lies in one, not between them.
        self.focus = points[np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()]
        self.low, self.high = points.min(axis=0), points.max(axis=0)
        first = np.floor(self.low) - 1
        x, y, z = (int(n) for n in np.ceil(self.high) + 2 - first)
        own = Grid((float(first[0]), float(first[1]), float(first[2])), (x, y, z))
        self.implant = Shares(own, occupancy(contents.implant, own))
        self.midplane = contents.record.get("midplane")
        self.rim = _rim(contents, np.array(self.grid.low) + np.array(self.grid.shape) / 2)

    def html(self) -> Markup:
        """Panels with sliders, linked to each other and to the 3D view, and pictures for print and without scripts."""
        return fill(
            "slices.html",
            data=self._data(),
            stills=[self._still(plane) for plane in self.planes()],
            panels=[*PLANES, *(["rim"] if self.rim else [])],
            mirrored=self.midplane is not None,
            window=None if self.grey is None else f"level {LEVEL_HU} HU, width {WIDTH_HU} HU",
        )

    def planes(self) -> Iterator[Plane]:
        """The planes of the pictures for print: three through the implant's middle, and RIM_PICTURES across its rim."""
        low, extent = np.array(self.grid.low), np.array(self.grid.shape) - 1.0
        for name, (right, down) in PLANES.items():
            across = 3 - int(np.flatnonzero(right)[0]) - int(np.flatnonzero(down)[0])
            corner = np.where(np.array(down) < 0, low + extent, low)
            corner[across] = self.focus[across]
            title = f"{name} slice at {position(across, self.focus[across])}"
            width, height = float(extent @ np.array(right)), float(extent @ np.abs(down))
            yield Plane(title, corner, np.array(right, float), np.array(down, float), width, height)
        for n in range(min(RIM_PICTURES, len(self.rim))):
            plane = self.rim[n * len(self.rim) // RIM_PICTURES]
            corner = plane.point - RIM_MM / 2 * plane.across + RIM_MM / 2 * plane.outward
            title = f"rim at {place(plane.point)}"
            yield Plane(title, corner, plane.across, -plane.outward, RIM_MM, RIM_MM, 0.5)

    def _still(self, plane: Plane) -> Markup:
        bone, implant = (plane.sampled(shares.values, shares.grid) for shares in (self.bone, self.implant))
        grey = bone * (MASK_GREY / 255) if self.grey is None else plane.sampled(self.grey.values, self.grid)
        length = next((bar for bar in BARS_MM if bar <= BAR_SHARE * plane.width), BARS_MM[-1])
        return fill(
            "still.html",
            plane=plane,
            picture=_data_uri(np.round(grey).astype(np.uint8), "WEBP", quality=75),
            outlines={"bone": _path(bone, plane.step), "implant": _path(implant, plane.step)},
            sides=[letters(direction) for direction in (-plane.right, plane.right, -plane.down, plane.down)],
            bar=length,
        )

    def _data(self) -> dict[str, Any]:
        """For `web/slices.js`."""
        grey = None if self.grey is None else "data:image/webp;base64," + base64.b64encode(self.grey.picture).decode()
        return {
            "head": _grid_data(self.grid),
            "grey": grey,
            "maskGrey": MASK_GREY / 255,
            "bone": _data_uri(tiled(self.bone.values), "PNG"),
            "implant": _grid_data(self.implant.grid) | {"picture": _data_uri(tiled(self.implant.values), "PNG")},
            "planes": {name: {"right": right, "down": down} for name, (right, down) in PLANES.items()},
            "focus": _rounded(self.focus),
            "low": _rounded(np.floor(self.low - BEYOND_MM)),
            "high": _rounded(np.ceil(self.high + BEYOND_MM)),
            "rimSize": RIM_MM,
            "rim": [
                {"point": _rounded(plane.point), "across": _rounded(plane.across), "outward": _rounded(plane.outward)}
                for plane in self.rim
            ],
            "midplane": self.midplane,
        }


def position(axis: int, mm: float) -> str:
    """A coordinate along an LPS axis as a radiologist reads it: (1, -37.2) -> "A 37 mm"."""
    return f"{SIDES[axis][int(mm >= 0)]} {abs(mm):.0f} mm"


def place(point: np.ndarray) -> str:
    """A point as a radiologist reads it: "R 41, A 12, S 71 mm"."""
    return ", ".join(position(axis, mm).removesuffix(" mm") for axis, mm in enumerate(point)) + " mm"


def letters(direction: Sequence[float] | np.ndarray) -> str:
    """The sides of the patient that a unit direction, LPS, points to, the main one first: "P", "LA"."""
    shown = [axis for axis in np.argsort(-np.abs(direction)) if abs(direction[axis]) > OBLIQUE]
    return "".join(SIDES[axis][int(direction[axis] > 0)] for axis in shown)


def _rim(contents: CaseContents, centre: np.ndarray) -> list[RimPlane]:
    """Without the gap to bone, as of an implant that was not checked, the rim is not known."""
    if "gap_mm" not in contents.vertex_fields:
        return []
    fitting = contents.record["settings"].get("fitting")
    clearance = fitting.get("clearance") if isinstance(fitting, dict) else 0.0
    clearance = float(clearance) if isinstance(clearance, int | float) else 0.0
    return rim_planes(contents.mesh, contents.vertex_fields["gap_mm"], clearance, centre)


def _path(shares: np.ndarray, step: float) -> str:
    """The outline of shares (rows, columns), 0 to 255, as the path of an SVG in mm."""
    from skimage.measure import find_contours

    lines = (np.round((line - 1) * step, 1) for line in find_contours(np.pad(shares, 1), 127.5))
    return "".join("M" + "L".join(f"{column:g},{row:g}" for row, column in line) for line in lines)


def _data_uri(picture: np.ndarray, kind: str, **options: Any) -> str:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(picture).save(file, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _grid_data(grid: Grid) -> dict[str, Any]:
    return {"low": list(grid.low), "shape": list(grid.shape), "columns": tile_columns(grid.shape)}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]
