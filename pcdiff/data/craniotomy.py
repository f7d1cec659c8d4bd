"""Virtual craniotomy: a healthy skull is cut into a defective skull and the implant that fits it.

A cutter is an `Outline`: a closed curve on the tangent plane of the skull, swept along the saw's direction. It needs
only the cranial centre and the outer surface (`Cranium`), so the same cutters serve voxel masks (`cut`) and maps of
directions (training). Everything is in patient millimetres, LPS: +x left, +y posterior, +z superior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices, largest_components
from pcdiff.geometry.volume import Volume

CENTRE_BELOW_TOP = 75.0  # mm; about half the height of an adult brain case
SAMPLING = 3.0  # mm between the bone samples that choose place and size
ABOVE, BELOW = 10.0, 25.0  # mm around the smooth outer surface: all of the vault, but not the base beneath it
BRIDGE = 8.0  # mm of bone that stay between two defects
ML_RANGE = (10.0, 150.0)
ATTEMPTS = 80  # places tried for a defect
CUTS = 8  # and defects tried for a cut in one piece
WHOLE = 0.85  # the least share of the bone in the cutter that must hang together
ANGLES = np.linspace(0, 2 * np.pi, 360, endpoint=False)


@dataclass(frozen=True)
class Cranium:
    """What a cutter must know of a skull.

    centre:  (3,) mm, the cranial centre.
    surface: (N, 3) mm, the outermost bone along many directions from the centre.
    bone:    (M, 3) mm, points spread through the bone; `ml` (M,) is the volume that each stands for.
    """

    centre: np.ndarray
    surface: np.ndarray
    bone: np.ndarray
    ml: np.ndarray

    @classmethod
    def from_volume(cls, skull: Volume) -> Cranium:
        """Sampled every 3 mm from the largest piece of bone; the centre lies 75 mm under the vertex.

        Raises InputError for a mask without a skull in it.
        """
        stride = np.maximum(1, np.round(SAMPLING / skull.spacing)).astype(int)
        coarse = skull.mask[:: stride[0], :: stride[1], :: stride[2]]
        samples = np.argwhere(largest_components(coarse, corners=True))
        if len(samples) < 1000:
            raise InputError(f"expected a skull, got {skull.ml:.1f} ml of bone: give the mask of a whole vault")
        bone = skull.to_mm(samples * stride)
        top = np.sort(bone[:, 2])[-20]  # a few stray samples must not lift the vertex
        low, high = np.percentile(bone[bone[:, 2] > top - 60], [0.5, 99.5], axis=0)
        centre = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, top - CENTRE_BELOW_TOP])

        radius = np.linalg.norm(bone - centre, axis=1)
        cell = cKDTree(_sphere(2500)).query((bone - centre) / np.maximum(radius, 1e-6)[:, None])[1]
        outwards = np.lexsort((radius, cell))
        last = np.r_[np.flatnonzero(np.diff(cell[outwards])), len(outwards) - 1]
        ml = np.full(len(bone), skull.voxel_ml * stride.prod())
        return cls(centre, bone[outwards[last]], bone, ml)

    @classmethod
    def from_rays(
        cls, centre: np.ndarray, directions: np.ndarray, outer: np.ndarray, inner: np.ndarray, steradian: np.ndarray
    ) -> Cranium:
        """From a map of directions: (N, 3) unit rays that meet bone from `inner` to `outer` (N,) mm off the centre.

        steradian: (N,) solid angle of each ray. The bone of a ray is its solid angle's share of a spherical shell.
        """
        ml = steradian * (outer**3 - inner**3) / 3 / 1000
        middle = (outer + inner) / 2
        return cls(centre, centre + outer[:, None] * directions, centre + middle[:, None] * directions, ml)


@dataclass(frozen=True)
class Outline:
    """A cutter: the solid that a saw's closed curve sweeps through the vault.

    origin: (3,) mm, on the plane of the curve, at the height of the rim. axes: (3, 3), rows u, v and outward w.
    radii:  (360,) mm, the curve's radius at every degree from u towards v.
    flare:  (2,) 1/mm, how u and v widen outwards: 0 saws along w, 1/R saws towards a point R beneath the plane.
    burrs:  (K, 3) discs u, v, radius in mm: burr holes beside the curve.
    centre: (3,) mm, the cranial centre. outer: (6,) mm, quadratic in direction: smooth radius of the outer surface.
    """

    kind: str
    origin: np.ndarray
    axes: np.ndarray
    radii: np.ndarray
    flare: np.ndarray
    burrs: np.ndarray
    centre: np.ndarray
    outer: np.ndarray

    def contains(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm -> (N,) bool: inside the cutter, and no deeper than the vault."""
        inside = self._in_shell(points)
        inside[inside] = self.beyond(points[inside]) < 0
        return inside

    def beyond(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm -> (N,) mm outside the curve, on its plane, along the line from the curve's middle; < 0 inside."""
        plane, widened = self._on_plane(points)
        u, v = plane.T
        gap = np.hypot(u, v) - np.interp(np.arctan2(v, u), ANGLES, self.radii, period=2 * np.pi)
        for *middle, radius in self.burrs:
            # A drill does not widen: round about its own axis, the wall's line through its middle.
            away = (plane - middle) * widened / np.sqrt(1 + (self.flare * middle) ** 2)
            gap = np.minimum(gap, np.hypot(*away.T) - radius)
        return gap

    def rim(self, points: np.ndarray, width: float) -> np.ndarray:
        """(N, 3) mm -> the 24 sectors of the frame of `width` mm around the defect: (24,) bool, is there bone?"""
        near = points[self._in_shell(points)]
        gap = self.beyond(near)
        u, v = self._on_plane(near[(gap > 0) & (gap < width)])[0].T
        sector = np.floor(np.arctan2(v, u) / (2 * np.pi) * 24).astype(int) % 24
        return np.bincount(sector, minlength=24) > 0

    def _on_plane(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) mm, where each point's wall line meets the plane, and (N, 2) how much wider the cutter is there."""
        local = (points - self.origin) @ self.axes.T
        widened = np.maximum(1 + local[:, 2:] * self.flare, 1e-3)
        return local[:, :2] / widened, widened

    def _in_shell(self, points: np.ndarray) -> np.ndarray:
        radius = np.linalg.norm(points - self.centre, axis=1)
        direction = (points - self.centre) @ self.axes.T / np.maximum(radius, 1e-6)[:, None]
        depth = radius - _quadratic(direction) @ self.outer
        return (depth > -BELOW) & (depth < ABOVE) & (direction[:, 2] > 0)


Place = Callable[[np.random.Generator, float, int], tuple[float, float]]  # side, defects -> azimuth, elevation


@dataclass(frozen=True)
class _Kind:
    """How a class of defects is drawn. Degrees: azimuth from anterior (0) to left (90), elevation from horizontal."""

    place: Place
    ml: tuple[float, float, float]  # least, most likely, most; of the only defect
    aspect: tuple[float, float] = (0.7, 1.4)  # width / height
    squareness: tuple[float, float] = (2.0, 4.5)  # exponent of the superellipse: 2 is round
    wobble: float = 0.08  # relative size of the random Fourier terms
    turn: float = 180.0  # the curve is turned by up to so much
    largest: float = 85.0  # mm, mean radius of the curve
    floor: float = -20.0  # mm above the cranial centre, the lowest cut
    framed: float = 0.95  # share of the rim that must be bone
    jagged: bool = False
    boxed: bool = False


def _anywhere(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    # The area of a band of a sphere goes with the sine of its elevation.
    return float(rng.uniform(-180, 180)), float(np.degrees(np.arcsin(rng.uniform(0.05, 1.0))))


def _frontal_vertex(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    if defects == 1:
        return float(rng.normal(0, 5)), float(rng.uniform(48, 82))
    return side * float(rng.uniform(50, 80)), float(rng.uniform(40, 55))


def _forehead(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    return side * abs(float(rng.normal(25 if defects == 1 else 40, 10))), float(rng.uniform(-10, 8))


def _temple(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    return side * float(rng.uniform(70, 120)), float(rng.uniform(15, 42))


def _posterior_vault(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    # As measured on 18 cases of SkullFix: a right-angled notch astride the midline, 79 +- 7 mm wide, 62 +- 7 long,
    # 46 +- 4 high, its floor 31 +- 4 mm above the cranial centre, burr holes of 4.3 mm radius at the front corners.
    return 180 - float(rng.normal(0, 3.5)) - (0 if defects == 1 else 50 * side), float(rng.normal(52, 4.5))


KINDS: dict[str, _Kind] = {
    "bilateral": _Kind(_frontal_vertex, (60, 90, 140), aspect=(1.2, 1.7), turn=12),
    "frontoorbital": _Kind(_forehead, (15, 35, 80), aspect=(0.9, 1.6), turn=25, floor=-42, framed=0.6),
    "parietotemporal": _Kind(_temple, (20, 50, 110), aspect=(0.9, 1.5), turn=40),
    "random_1": _Kind(_anywhere, (11, 22, 44)),
    "random_2": _Kind(_anywhere, (48, 65, 115)),
    "skullfix": _Kind(_posterior_vault, (23, 45, 72), aspect=(1.0, 1.25), largest=46, boxed=True),
    "irregular": _Kind(_anywhere, (11, 40, 120), squareness=(2, 3), wobble=0.3, jagged=True),
}


def cut(skull: Volume, kind: str, rng: np.random.Generator, defects: int | None = None) -> tuple[Volume, Volume]:
    """A healthy skull -> (defective skull, implant): disjoint, their union the skull, one piece of implant per defect.

    kind: one of KINDS, the five of SkullBreak, SkullFix's (Kodym et al., Data in Brief 2021), or `irregular`.
    defects: 1 to 3 (None: 1), with bone between them. The same state of `rng` gives the same cut.
    Raises InputError: unknown kind, number of defects out of range, no skull in the mask, bone in pieces, no room.
    """
    cranium = Cranium.from_volume(skull)
    for _ in range(CUTS):
        pieces = [_saw(skull, cranium, outline) for outline in draw_outlines(kind, rng, cranium, defects)]
        if all(share >= WHOLE for *_, share in pieces):
            implant = np.zeros_like(skull.mask)
            for box, piece, _ in pieces:
                implant[box] |= piece
            return skull.with_mask(skull.mask & ~implant), skull.with_mask(implant)
    raise InputError(f"expected bone in one piece, got loose parts wherever {kind} was cut: clean the mask first")


def _saw(skull: Volume, cranium: Cranium, outline: Outline) -> tuple[tuple[slice, ...], np.ndarray, float]:
    """One piece of implant: its box in the grid, its mask there, and its share of all the bone in the cutter."""
    index = skull.to_index(cranium.bone[outline.contains(cranium.bone)])
    margin = 4 * SAMPLING / skull.spacing
    low = np.maximum(np.floor(index.min(axis=0) - margin).astype(int), 0)
    bone = skull.crop(low, np.ceil(index.max(axis=0) + margin).astype(int) + 1)
    box = box_slices(low, low + bone.mask.shape)

    reached = np.zeros_like(bone.mask)
    index = np.argwhere(bone.mask)
    reached[tuple(index[outline.contains(bone.to_mm(index))].T)] = True
    piece = largest_components(reached)
    share = np.count_nonzero(piece) / np.count_nonzero(reached)
    return box, piece | _stranded(bone.mask, piece), share


def _stranded(bone: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """What the cut has freed without being in the cutter: remaining bone that touches the piece, but not the skull.

    In a crop whose border runs through the skull around the defect, so that what reaches the border is skull.
    """
    labels, count = ndimage.label(bone & ~piece)
    loose = np.zeros(count + 1, bool)
    loose[labels[ndimage.binary_dilation(piece)]] = True
    border = np.ones_like(piece)
    border[1:-1, 1:-1, 1:-1] = False
    loose[labels[border]] = False
    loose[0] = False
    return loose[labels]


def draw_outlines(kind: str, rng: np.random.Generator, cranium: Cranium, defects: int | None = None) -> list[Outline]:
    """Cutters for one defect of a kind, in mm: places, shapes and sizes fitted to this head. Errors as in `cut`."""
    if kind not in KINDS:
        raise InputError(f"expected a kind of defect out of {', '.join(KINDS)}; got {kind!r}: name one of them")
    defects = 1 if defects is None else defects
    if defects not in (1, 2, 3):
        raise InputError(f"expected 1 to 3 defects, got {defects}: ask for fewer, or cut again")
    rules = KINDS[kind]
    sizes = rng.triangular(*rules.ml, size=defects) * (1.0, 0.65, 0.45)[defects - 1]
    sizes = np.clip(sizes * min(1.0, 0.95 * ML_RANGE[1] / sizes.sum()), 1.05 * ML_RANGE[0], None)
    side = rng.choice([-1.0, 1.0])

    outlines: list[Outline] = []
    taken = np.zeros((0, 3))
    for ml in sizes:
        for attempt in range(ATTEMPTS):
            # A later defect may find its kind's place taken: then it lies anywhere.
            place = _anywhere if outlines and attempt > ATTEMPTS // 2 else rules.place
            outline = _sized(kind, place(rng, side, defects), max(ml * 0.99**attempt, 1.05 * ML_RANGE[0]), rng, cranium)
            mine = cranium.bone[outline.contains(cranium.bone)]
            if (
                len(mine)
                and mine[:, 2].min() > cranium.centre[2] + rules.floor
                and outline.rim(cranium.bone, 2 * SAMPLING).mean() >= rules.framed
                and (not outlines or cKDTree(taken).query(mine)[0].min() > BRIDGE + SAMPLING)
            ):
                break
        else:
            raise InputError(
                f"expected room for {defects} defect(s), found none for {kind}: try fewer, or another kind"
            )
        outlines.append(outline)
        taken = np.r_[taken, mine]
        side = -side
    return outlines


def _sized(kind: str, place: tuple[float, float], ml: float, rng: np.random.Generator, cranium: Cranium) -> Outline:
    """A random outline of a kind at a place, its size bisected until it holds `ml` of bone, or is the largest."""
    rules = KINDS[kind]
    towards = _direction(*place)
    offset = cranium.surface - cranium.centre
    radius = np.linalg.norm(offset, axis=1)
    nearest = np.argsort(-(offset @ towards) / radius)[:12]
    point = cranium.centre + towards * np.median(radius[nearest])
    w = _direction(place[0], rng.normal(45, 4)) if rules.boxed else _normal(cranium.surface, point, towards)
    # Up in the curve's plane is superior, or anterior where the plane is level.
    u = np.cross([0.0, -1.0, 0.0] if w[2] > 0.75 and not rules.boxed else [0.0, 0.0, 1.0], w)
    u /= np.linalg.norm(u)
    axes = np.stack([u, np.cross(w, u), w])
    aspect = rng.uniform(*rules.aspect)
    curve = _box(aspect) if rules.boxed else _curve(rules, aspect, rng)
    cone = rng.uniform(0.3, 1.0) / CENTRE_BELOW_TOP

    def at(size: float) -> Outline:
        # Rims lie lower than the middle of the defect by the sagitta of a sphere as large as a head.
        origin = point - w * size**2 / (2 * CENTRE_BELOW_TOP)
        outer = _smooth_radius(cranium, axes, size)
        if not rules.boxed:
            return Outline(kind, origin, axes, size * curve, np.full(2, cone), np.zeros((0, 3)), cranium.centre, outer)
        # Front wall coronal, floor axial: they meet at a right angle, `size` beneath the plane.
        burrs = size * np.array([[s * aspect, 1.0, 0.108 * aspect] for s in (-1.0, 1.0)])
        return Outline(kind, origin, axes, size * curve, np.array([0, 1 / size]), burrs, cranium.centre, outer)

    small, large = 8.0, rules.largest
    for _ in range(9):
        middle = (small + large) / 2
        if cranium.ml[at(middle).contains(cranium.bone)].sum() < ml:
            small = middle
        else:
            large = middle
    return at((small + large) / 2)


def _curve(rules: _Kind, aspect: float, rng: np.random.Generator) -> np.ndarray:
    """(360,) radii of mean 1: a turned superellipse with Fourier terms; jagged ones also with bays and corners."""
    turned = ANGLES - np.radians(rng.uniform(-rules.turn, rules.turn))
    p = rng.uniform(*rules.squareness)
    flat = np.abs(np.cos(turned)) / aspect**0.5, np.abs(np.sin(turned)) * aspect**0.5
    radii = (flat[0] ** p + flat[1] ** p) ** (-1 / p)
    for k in range(2, 10 if rules.jagged else 6):
        a, b = rng.normal(0, rules.wobble / k, 2)
        radii *= 1 + a * np.cos(k * ANGLES) + b * np.sin(k * ANGLES)
    if rules.jagged:
        for _ in range(rng.integers(1, 4)):
            away = np.angle(np.exp(1j * (ANGLES - rng.uniform(0, 2 * np.pi))))
            radii *= 1 - rng.uniform(0.15, 0.4) * np.exp(-0.5 * (away / np.radians(rng.uniform(10, 25))) ** 2)
        corners = np.sort(rng.uniform(0, 2 * np.pi, 40))
        radii *= 1 + np.interp(ANGLES, corners, rng.normal(0, 0.03, 40), period=2 * np.pi)
    radii = np.maximum(radii, 0.35)
    return radii / radii.mean()


def _box(aspect: float) -> np.ndarray:
    """(360,) radii of a rectangle of half height 1 and half width `aspect`."""
    flat = np.abs(np.cos(ANGLES)) / aspect, np.abs(np.sin(ANGLES))
    return 1 / np.maximum(*flat)


def _normal(surface: np.ndarray, point: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Unit normal of the outer surface around a point; the ray itself where the bone is too rough to tell."""
    near = surface[np.linalg.norm(surface - point, axis=1) < 30]
    if len(near) < 10:
        return towards
    normal = np.linalg.svd(near - near.mean(axis=0), full_matrices=False)[2][2]
    normal *= np.sign(normal @ towards) or 1.0
    return normal if normal @ towards > np.cos(np.radians(35)) else towards


def _smooth_radius(cranium: Cranium, axes: np.ndarray, size: float) -> np.ndarray:
    """(6,) quadratic of the outer radius around the defect, by Cauchy-weighted least squares: orbits hardly pull."""
    radius = np.linalg.norm(cranium.surface - cranium.centre, axis=1)
    local = (cranium.surface - cranium.centre) @ axes.T / radius[:, None]
    reach = np.cos(min(1.4 * size / CENTRE_BELOW_TOP + 0.2, np.pi / 2))
    near = (local[:, 2] > reach) & (cranium.surface[:, 2] > cranium.centre[2] - 40)
    terms, radius = _quadratic(local[near]), radius[near]
    weight = np.ones(len(radius))
    for _ in range(3):
        root = np.sqrt(weight)
        outer = np.linalg.lstsq(terms * root[:, None], radius * root, rcond=None)[0]
        weight = 1 / (1 + ((radius - terms @ outer) / 3) ** 2)
    return outer


def _quadratic(direction: np.ndarray) -> np.ndarray:
    u, v = direction[:, 0], direction[:, 1]
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    a, e = np.radians([azimuth, elevation])
    return np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)])


def _sphere(count: int) -> np.ndarray:
    """(count, 3) unit vectors spread evenly: the golden spiral."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.pi * (3 - 5**0.5) * np.arange(count)
    return np.stack([np.cos(turn) * np.sqrt(1 - z * z), np.sin(turn) * np.sqrt(1 - z * z), z], axis=1)
