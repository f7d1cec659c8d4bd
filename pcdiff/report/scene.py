"""What can be shown of a case: surfaces and points by name. Window, page, pictures and report draw the same scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.surface import distance_to
from pcdiff.report.colours import (
    AROUND_BONE,
    BAD_HIGH,
    BAD_HIGH_RIM,
    CANDIDATE_COLOURS,
    ERROR_MM,
    IMPLANT,
    IMPLANT_POINTS,
    MARK,
    SAMPLING_POINTS,
    SHAPE_MODEL_POINTS,
    TRUTH,
    Colour,
    Scale,
)
from pcdiff.report.contents import CaseContents
from pcdiff.report.surfaces import Shape, beads, cell_means, simplify, smooth_normals

IMPLANT_VERTICES = 30_000
CANDIDATE_VERTICES = 8_000
CLOUD_POINTS = 6_000
MARK_MM = 2.5  # half the size of a fixation mark
SHOWN_CANDIDATES = 8
GAP_MM = 3.0  # upper end of the scale of gaps
RIM_COSINE = 0.7  # between normal and radius: below it the surface faces the bone beside it
OFF_RIM = -1.0  # the gap where the surface does not face bone: under its scale
THICKER, THINNER = 1.5, 0.5  # ends of the scale of thickness, as shares of the bone's


@dataclass(frozen=True)
class Field:
    """Values at the vertices of a surface, (V,), in mm, and the ends of their colour scale. ticks: value, text."""

    name: str
    title: str
    values: np.ndarray
    low: float
    high: float
    scale: Scale = BAD_HIGH
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Surface:
    """A named shape. shown: at the start. fields: what it can be coloured by."""

    name: str
    shape: Shape
    shown: bool = True
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Cloud:
    """Named points.

    frames: (T, N, 3) mm, LPS, one per sampling step; T is 1 for points that do not move. captions: (T,), one a frame.
    colour: linear RGB. shown: at the start.
    """

    name: str
    frames: np.ndarray
    colour: Colour
    captions: tuple[str, ...] = ("",)
    shown: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything that can be shown of a case, in mm, LPS. surfaces: first the skull, then the implant, then others."""

    title: str
    surfaces: tuple[Surface, ...]
    clouds: tuple[Cloud, ...] = ()

    @property
    def skull(self) -> Surface:
        """The defective skull."""
        return self.surfaces[0]

    @property
    def implant(self) -> Surface:
        """The implant."""
        return self.surfaces[1]


def case_scene(contents: CaseContents) -> Scene:
    """Skull, implant, the first candidates, the true implant and the points of a case.

    With a true implant, the implant can be coloured by the distance to it.
    """
    surfaces = [Surface("skull", contents.skull.shape), _implant(contents)]
    for n, number in enumerate(sorted(contents.candidates)[:SHOWN_CANDIDATES]):
        colour = CANDIDATE_COLOURS[n % len(CANDIDATE_COLOURS)]
        shape, _ = _display_shape(contents.candidates[number], colour, CANDIDATE_VERTICES)
        surfaces.append(Surface(f"candidate {number}", shape, shown=False))
    if marks := contents.record.get("fixation"):
        points = np.array([mark["point"] for mark in marks], float)
        surfaces.append(Surface("fixation marks", beads(points, MARK, MARK_MM)))
    if contents.truth is not None:
        shape, _ = _display_shape(contents.truth, TRUTH, CANDIDATE_VERTICES)
        surfaces.append(Surface("true implant", shape, shown=False))
    return Scene(contents.title, tuple(surfaces), tuple(_clouds(contents.points or {})))


def _implant(contents: CaseContents) -> Surface:
    shape, cell = _display_shape(contents.mesh, IMPLANT, IMPLANT_VERTICES)
    fields = list(_vertex_fields(contents, cell))
    if contents.truth is not None:
        error = cell_means(np.abs(distance_to(contents.truth, contents.mesh.vertices)), cell)
        fields.append(_bad_high("error", "distance to the true implant", error, ERROR_MM))
    return Surface("implant", shape, fields=tuple(fields))


def _display_shape(mesh: Mesh, colour: Colour, vertices: int) -> tuple[Shape, np.ndarray]:
    """The mesh with at most so many vertices, and (V,) int: the new vertex of each old one."""
    shape, cell = simplify(Shape(mesh.vertices, mesh.vertex_normals, mesh.faces, colour), vertices)
    return replace(shape, normals=smooth_normals(shape.normals, shape.faces)), cell


def _vertex_fields(contents: CaseContents, cell: np.ndarray) -> Iterator[Field]:
    """The known fields at the display's vertices; a field that is 0 everywhere, or nowhere finite, is left out."""
    known = {
        name: np.where(np.isfinite(values), values, values[np.isfinite(values)].max())
        for name, values in contents.vertex_fields.items()
        if values[np.isfinite(values)].any()
    }
    if "thickness_mm" in known:
        yield _thickness(cell_means(known["thickness_mm"], cell), contents)
    if "gap_mm" in known:
        mesh = contents.mesh
        skull = contents.skull.volume
        radius = mesh.vertices - skull.to_mm((np.array(skull.mask.shape) - 1) / 2)
        cosine = (mesh.vertex_normals * radius).sum(axis=1) / np.maximum(np.linalg.norm(radius, axis=1), 1e-9)
        rim = cell_means((np.abs(cosine) < RIM_COSINE).astype(float), cell) > 0.5
        gap = np.where(rim, np.maximum(cell_means(known["gap_mm"], cell), 0), OFF_RIM)
        ticks = (("0 (touches)" if mm == 0 else f"{mm:g} or more" if mm == GAP_MM else f"{mm:g}") for mm in range(4))
        yield Field(
            "gap",
            "gap to the bone at the rim (hide the skull), mm",
            gap.astype(np.float32),
            0.0,
            GAP_MM,
            BAD_HIGH_RIM,
            tuple(enumerate(ticks)),
        )
    if "uncertainty" in known:
        values = cell_means(known["uncertainty"], cell)
        high = float(np.ceil(np.percentile(values, 99)) or 1)
        yield _bad_high("uncertainty", "uncertainty (standard deviation of the candidates)", values, high)


def _thickness(values: np.ndarray, contents: CaseContents) -> Field:
    """Around the thickness of the bone beside the implant, where it was measured."""
    bone = contents.figure("bone_thickness")
    if bone is None or bone <= 0:
        high = float(np.ceil(np.percentile(values, 99)) or 1)
        ticks = ((0.0, "0 (thin)"), (high / 2, f"{high / 2:.3g}"), (high, f"{high:.3g} (thick)"))
        return Field("thickness", "thickness, mm", values.astype(np.float32), 0.0, high, AROUND_BONE, ticks)
    low, high = THINNER * bone, THICKER * bone
    ticks = ((low, f"{low:.1f} or thinner"), (bone, f"{bone:.1f} (as the bone)"), (high, f"{high:.1f} or thicker"))
    return Field("thickness", "thickness, mm", values.astype(np.float32), low, high, AROUND_BONE, ticks)


def _bad_high(name: str, title: str, values: np.ndarray, high: float) -> Field:
    """A field whose best value is 0."""
    ticks = ((0.0, "0 (best)"), (high / 2, f"{high / 2:g}"), (high, f"{high:g} or more"))
    return Field(name, f"{title}, mm", values.astype(np.float32), 0.0, high, BAD_HIGH, ticks)


def _clouds(points: Mapping[str, np.ndarray]) -> Iterator[Cloud]:
    """The points of the shape model, of each candidate, and the candidates' points at each sampling step."""
    if not points:
        return
    numbers = sorted(int(name.removeprefix("candidate_")) for name in points if name.startswith("candidate_"))

    def named(title: str, number: int) -> str:
        return title if len(numbers) == 1 else f"{title} of candidate {number}"

    def colour(single: Colour, number: int) -> Colour:
        return single if len(numbers) == 1 else CANDIDATE_COLOURS[(number - 1) % len(CANDIDATE_COLOURS)]

    yield Cloud("points of the shape model", _thinned(points["prior"])[None], SHAPE_MODEL_POINTS)
    for number in numbers[:SHOWN_CANDIDATES]:
        frames = _thinned(points[f"candidate_{number}"])[None]
        yield Cloud(named("points", number), frames, colour(IMPLANT_POINTS, number))
    if "trajectory" in points:
        captions = tuple(str(caption) for caption in points["captions"])
        for number, frames in enumerate(points["trajectory"][:SHOWN_CANDIDATES], 1):
            yield Cloud(named("sampling steps", number), frames, colour(SAMPLING_POINTS, number), captions)


def _thinned(points: np.ndarray) -> np.ndarray:
    """At most CLOUD_POINTS of the points, at equal steps of their order."""
    return points[:: max(1, -(-len(points) // CLOUD_POINTS))]
