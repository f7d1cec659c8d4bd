"""Virtual craniotomy: a healthy skull becomes a defective skull and the implant that fits it.

The outline of each defect is drawn at random for its kind (`defect_kinds`) and for the skull. Everything is in patient
millimetres, LPS: +x left, +y posterior, +z superior.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pcdiff.data.defect_kinds import KINDS, DefectKind, anywhere, random_curve, rectangle
from pcdiff.data.outline import CENTRE_BELOW_TOP, SAMPLING, Cranium, Outline, quadratic_terms
from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices, largest_components, voxels_of
from pcdiff.geometry.volume import Volume

BRIDGE = 8.0  # mm of bone between two defects
ML_RANGE = (10.0, 150.0)  # of a defect; of all defects of a skull
MAX_PLACEMENTS = 80  # tried for one defect
MAX_CRANIOTOMIES = 8  # tried for defects whose implant is in one piece
MIN_PIECE_SHARE = 0.85  # of the bone inside an outline that must be connected
RADIUS_STEPS = 9  # of the bisection for the volume


def simulate_craniotomy(
    skull: Volume, kind: str, rng: np.random.Generator, defects: int | None = None
) -> tuple[Volume, Volume]:
    """Cuts defects into a healthy skull.

    Args:
        skull: Mask of a healthy skull.
        kind: A name in `KINDS`.
        rng: The same state gives the same defects.
        defects: Their number, 1 (the default) to 3, with bone between them.

    Returns:
        The defective skull and the implant. They are disjoint, together they are the skull, and the implant has one
        piece per defect.

    Raises:
        InputError: Unknown kind, number out of range, no skull in the mask, bone in loose parts, or no room for the
            defects.
    """
    cranium = Cranium.from_volume(skull)
    for _ in range(MAX_CRANIOTOMIES):
        pieces = [_cut_piece(skull, cranium, outline) for outline in draw_outlines(kind, rng, cranium, defects)]
        if all(share >= MIN_PIECE_SHARE for *_, share in pieces):
            implant = np.zeros_like(skull.mask)
            for box, piece, _ in pieces:
                implant[box] |= piece
            return skull.with_mask(skull.mask & ~implant), skull.with_mask(implant)
    raise InputError(f"expected bone in one piece, got loose parts in every {kind} defect; clean the mask first")


def _cut_piece(skull: Volume, cranium: Cranium, outline: Outline) -> tuple[tuple[slice, ...], np.ndarray, float]:
    """One piece of implant: its box in the grid, its mask there, and its share of all the bone inside the outline."""
    index = skull.to_index(cranium.bone[outline.contains(cranium.bone)])
    margin = 4 * SAMPLING / skull.spacing
    low = np.maximum(np.floor(index.min(axis=0) - margin).astype(int), 0)
    bone = skull.crop(low, np.ceil(index.max(axis=0) + margin).astype(int) + 1)

    inside = np.zeros_like(bone.mask)
    index = voxels_of(bone.mask)
    inside[tuple(index[outline.contains(bone.to_mm(index))].T)] = True
    piece = largest_components(inside)
    share = np.count_nonzero(piece) / np.count_nonzero(inside)
    return box_slices(low, low + bone.mask.shape), piece | _detached(bone.mask, piece), share


def _detached(bone: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Bone that touches the piece, but no longer the skull: the cut has freed it, so it leaves with the piece.

    Both masks are crops whose border runs through the skull around the defect: bone at the border is skull.
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
    """Random outlines of the defects of one skull, with positions, shapes and volumes that suit it.

    Arguments and errors as in `simulate_craniotomy`.
    """
    if kind not in KINDS:
        raise InputError(f"expected a kind of defect out of {', '.join(KINDS)}; got {kind!r}; name one of them")
    defects = 1 if defects is None else defects
    if defects not in (1, 2, 3):
        raise InputError(f"expected 1 to 3 defects, got {defects}; choose fewer")
    rules = KINDS[kind]
    sizes = rng.triangular(*rules.ml, size=defects) * (1.0, 0.65, 0.45)[defects - 1]
    sizes = np.clip(sizes * min(1.0, 0.95 * ML_RANGE[1] / sizes.sum()), 1.05 * ML_RANGE[0], None)
    side = rng.choice([-1.0, 1.0])

    outlines: list[Outline] = []
    taken = np.zeros((0, 3))  # bone inside the outlines so far, mm
    for ml in sizes:
        for attempt in range(MAX_PLACEMENTS):
            # An earlier defect may take up the positions of a kind: after half the attempts a defect may lie anywhere.
            placement = anywhere if outlines and attempt > MAX_PLACEMENTS // 2 else rules.placement
            smaller = max(ml * 0.99**attempt, 1.05 * ML_RANGE[0])
            outline = _outline_of_volume(kind, placement(rng, side, defects), smaller, rng, cranium)
            inside = cranium.bone[outline.contains(cranium.bone)]
            if _is_valid(outline, inside, taken, rules, cranium):
                break
        else:
            raise InputError(f"expected room for {defects} {kind} defect(s), found none; choose fewer, or another kind")
        outlines.append(outline)
        taken = np.r_[taken, inside]
        side = -side
    return outlines


def _is_valid(outline: Outline, inside: np.ndarray, taken: np.ndarray, rules: DefectKind, cranium: Cranium) -> bool:
    """Whether a defect lies high enough, has a rim of bone, and leaves a bridge of bone to the other defects."""
    return bool(
        len(inside)
        and inside[:, 2].min() > cranium.centre[2] + rules.min_height
        and outline.rim_has_bone(cranium.bone, 2 * SAMPLING).mean() >= rules.min_rim
        and (not len(taken) or cKDTree(taken).query(inside)[0].min() > BRIDGE + SAMPLING)
    )


def _outline_of_volume(
    kind: str, position: tuple[float, float], ml: float, rng: np.random.Generator, cranium: Cranium
) -> Outline:
    """A random outline at a position (azimuth, elevation); its radius is bisected until it holds `ml` of bone."""
    rules = KINDS[kind]
    towards = _direction(*position)
    offset = cranium.surface - cranium.centre
    radius = np.linalg.norm(offset, axis=1)
    nearest = np.argsort(-(offset @ towards) / radius)[:12]
    point = cranium.centre + towards * np.median(radius[nearest])
    w = _direction(position[0], rng.normal(45, 4)) if rules.rectangular else _normal(cranium.surface, point, towards)
    # Up on the curve's plane is superior, or anterior where the plane is level.
    u = np.cross([0.0, -1.0, 0.0] if w[2] > 0.75 and not rules.rectangular else [0.0, 0.0, 1.0], w)
    u /= np.linalg.norm(u)
    axes = np.stack([u, np.cross(w, u), w])
    aspect = rng.uniform(*rules.aspect)
    curve = rectangle(aspect) if rules.rectangular else random_curve(rules, aspect, rng)
    bevel = rng.uniform(0.3, 1.0) / CENTRE_BELOW_TOP

    def at(size: float) -> Outline:
        # The rim lies lower than the middle of the defect by the sagitta of a sphere as large as a head.
        origin = point - w * size**2 / (2 * CENTRE_BELOW_TOP)
        outer = _smooth_radius(cranium, axes, size)
        if not rules.rectangular:
            burr_holes, bevels = np.zeros((0, 3)), np.full(2, bevel)
        else:
            # The front side is coronal, the floor axial: they meet at a right angle, `size` below the plane.
            burr_holes = size * np.array([[side * aspect, 1.0, 0.108 * aspect] for side in (-1.0, 1.0)])
            bevels = np.array([0, 1 / size])
        return Outline(kind, origin, axes, size * curve, bevels, burr_holes, cranium.centre, outer)

    small, large = 8.0, rules.max_radius
    for _ in range(RADIUS_STEPS):
        middle = (small + large) / 2
        if cranium.ml[at(middle).contains(cranium.bone)].sum() < ml:
            small = middle
        else:
            large = middle
    return at((small + large) / 2)


def _normal(surface: np.ndarray, point: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Unit normal of the outer surface around a point; the ray `towards` it where the surface is too rough."""
    near = surface[np.linalg.norm(surface - point, axis=1) < 30]
    if len(near) < 10:
        return towards
    normal = np.linalg.svd(near - near.mean(axis=0), full_matrices=False)[2][2]
    normal *= np.sign(normal @ towards) or 1.0
    return normal if normal @ towards > np.cos(np.radians(35)) else towards


def _smooth_radius(cranium: Cranium, axes: np.ndarray, size: float) -> np.ndarray:
    """(6,) quadratic of the outer radius around the defect, by Cauchy-weighted least squares: orbits count little."""
    radius = np.linalg.norm(cranium.surface - cranium.centre, axis=1)
    local = (cranium.surface - cranium.centre) @ axes.T / radius[:, None]
    reach = np.cos(min(1.4 * size / CENTRE_BELOW_TOP + 0.2, np.pi / 2))
    near = (local[:, 2] > reach) & (cranium.surface[:, 2] > cranium.centre[2] - 40)
    terms, radius = quadratic_terms(local[near]), radius[near]
    weight = np.ones(len(radius))
    for _ in range(3):
        root = np.sqrt(weight)
        outer = np.linalg.lstsq(terms * root[:, None], radius * root, rcond=None)[0]
        weight = 1 / (1 + ((radius - terms @ outer) / 3) ** 2)
    return outer


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    """(3,) unit, LPS, of an azimuth and an elevation in degrees, see `Placement`."""
    a, e = np.radians([azimuth, elevation])
    return np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)])
