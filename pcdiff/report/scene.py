"""What there is to look at of a case, said once: the window, the page, the picture and the report all draw this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh, read_stl
from pcdiff.geometry.surface import distance_to, vertex_normals, volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.report.render import BONE, IMPLANT
from pcdiff.report.surfaces import Shape, gathered, shape_of, simplified, smooth_normals

SKULL_VERTICES = 60_000  # as many as 16 bits count, with room
IMPLANT_VERTICES = 30_000
CANDIDATE_VERTICES = 8_000
CLOUD_POINTS = 6_000
SHOWN_CANDIDATES = 8
# Linear RGB; told apart by the colour-blind too (after Okabe & Ito 2008).
CANDIDATES = ((0.79, 0.35, 0.0), (0.0, 0.34, 0.17), (0.60, 0.19, 0.38), (0.09, 0.45, 0.81))
TRUTH = (0.35, 0.02, 0.45)
PRIOR_POINTS, POINTS, MOVING = (0.70, 0.29, 0.02), (0.02, 0.22, 0.36), (0.65, 0.05, 0.10)
# What a case folder or a ground truth says of each place of the implant: the scale's ends in mm, None for the data's.
FIELDS = {
    "thickness": ("thickness_mm", "thickness", "mm", (0.0, None)),
    "gap": ("gap_mm", "gap to the bone", "mm", (0.0, 3.0)),
    "uncertainty": ("uncertainty", "uncertainty: standard deviation of the candidates", "mm", (0.0, None)),
}
ERROR_MM = 3.0


@dataclass(frozen=True)
class Field:
    """A figure at each vertex of a surface, and the ends of its scale. unit: empty for a share."""

    name: str
    title: str
    unit: str
    values: np.ndarray
    low: float
    high: float


@dataclass(frozen=True)
class Surface:
    """A shape by name. shown: from the start. fields: what it can be coloured by."""

    name: str
    shape: Shape
    shown: bool = True
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Cloud:
    """Points by name. frames: (T, N, 3) mm, LPS, one place after the other, or (1, N, 3) for points that stay.

    captions: what each frame is; colour: linear RGB.
    """

    name: str
    frames: np.ndarray
    colour: tuple[float, float, float]
    captions: tuple[str, ...] = ("",)
    shown: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything that can be shown of a case, in patient millimetres (LPS). The first surface is the bone."""

    title: str
    surfaces: tuple[Surface, ...]
    clouds: tuple[Cloud, ...] = field(default=())

    def surface(self, name: str) -> Surface | None:
        """By name, None where there is none."""
        return next((surface for surface in self.surfaces if surface.name == name), None)


def case_scene(folder: Path, skull: Volume, truth: Path | None = None) -> Scene:
    """Skull, implant, candidates and points of a case folder; truth: the true implant, a volume or an STL.

    With a truth the implant can be coloured by its distance to it, and it can be shown itself. Raises InputError for
    files that cannot be read.
    """
    true = None if truth is None else _read_surface(truth)
    surfaces = [Surface("skull", shape_of(skull, BONE, SKULL_VERTICES))]
    surfaces.append(_implant(folder, true))
    stls = sorted((folder / "candidates").glob("implant_*.stl"), key=_number)[:SHOWN_CANDIDATES]
    for place, path in enumerate(stls):
        shape = _shape(read_stl(path), CANDIDATES[place % len(CANDIDATES)], CANDIDATE_VERTICES)[0]
        surfaces.append(Surface(f"candidate {_number(path)}", shape, shown=False))
    if true is not None:
        surfaces.append(Surface("true implant", _shape(true, TRUTH, CANDIDATE_VERTICES)[0], shown=False))
    return Scene(folder.resolve().name, tuple(surfaces), tuple(_clouds(folder / "points.npz")))


def _implant(folder: Path, true: Mesh | None) -> Surface:
    mesh = read_stl(folder / "implant.stl")
    shape, home = _shape(mesh, IMPLANT, IMPLANT_VERTICES)
    fields = []
    for name, (values, (key, title, unit, (low, high))) in _arrays(folder / "surface.npz", len(mesh.vertices)).items():
        del key
        at = gathered(values, home)
        top = high if high is not None else float(np.ceil(np.percentile(values, 99)) or 1)
        fields.append(Field(name, title, unit, at.astype(np.float32), float(low or 0.0), top))
    if true is not None:
        error = gathered(np.abs(distance_to(true, mesh.vertices)), home)
        fields.append(Field("error", "distance to the true implant", "mm", error.astype(np.float32), 0.0, ERROR_MM))
    return Surface("implant", shape, fields=tuple(fields))


def _shape(mesh: Mesh, colour: tuple[float, float, float], vertices: int) -> tuple[Shape, np.ndarray]:
    shape, home = simplified(Shape(mesh.vertices, vertex_normals(mesh), mesh.faces, colour), vertices)
    return replace(shape, normals=smooth_normals(shape.normals, shape.faces)), home


def _arrays(path: Path, vertices: int) -> dict[str, tuple[np.ndarray, tuple]]:
    """The fields of surface.npz, one value per vertex of the STL; one that is 0 everywhere is left out."""
    if not path.is_file():
        return {}
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name, settings in FIELDS.items():
            if settings[0] in arrays.files:
                values = np.asarray(arrays[settings[0]], np.float64)
                if values.shape != (vertices,):
                    raise InputError(f"{path}: expected {vertices} values of {settings[0]}, got {values.shape}")
                finite = np.isfinite(values)
                if values[finite].any():
                    found[name] = (np.where(finite, values, values[finite].max()), settings)
    return found


def _clouds(path: Path) -> list[Cloud]:
    """Points that `sample --keep-points` left: the prior's, each candidate's, and their way there."""
    if not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as arrays:
        clouds = [Cloud("prior's points", _some(arrays["prior"])[None], PRIOR_POINTS)]
        count = sum(name.startswith("candidate_") for name in arrays.files)
        names = [f"candidate_{k}" for k in range(1, count + 1)]
        for place, name in enumerate(names[:SHOWN_CANDIDATES]):
            colour = POINTS if len(names) == 1 else CANDIDATES[place % len(CANDIDATES)]
            title = "points" if len(names) == 1 else f"points of candidate {place + 1}"
            clouds.append(Cloud(title, _some(arrays[name])[None], colour))
        if "trajectory" in arrays.files:
            captions = tuple(str(caption) for caption in arrays["captions"])
            for place, frames in enumerate(arrays["trajectory"][:SHOWN_CANDIDATES]):
                title = "diffusion" if len(names) == 1 else f"diffusion of candidate {place + 1}"
                colour = MOVING if len(names) == 1 else CANDIDATES[place % len(CANDIDATES)]
                clouds.append(Cloud(title, frames, colour, captions))
    return clouds


def _some(points: np.ndarray) -> np.ndarray:
    """At most CLOUD_POINTS of them, evenly in their order."""
    return points[:: max(1, -(-len(points) // CLOUD_POINTS))]


def _read_surface(path: Path) -> Mesh:
    return read_stl(path) if path.suffix.lower() == ".stl" else volume_to_mesh(read_volume(path))


def _number(path: Path) -> int:
    return int(path.stem.rpartition("_")[2]) if path.stem.rpartition("_")[2].isdigit() else 0


def bounds(shapes: Sequence[Shape]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner, (3,) mm each, of all shapes together."""
    return (
        np.min([shape.vertices.min(axis=0) for shape in shapes], axis=0),
        np.max([shape.vertices.max(axis=0) for shape in shapes], axis=0),
    )
