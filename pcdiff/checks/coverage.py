"""Complete, no false positive area, restores the shape, smooth transition: read off the view from inside."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pcdiff.checks.criteria import Criteria
from pcdiff.checks.ray_view import HEIGHTS, View
from pcdiff.checks.report import Check, Figure

STEP = HEIGHTS[1] - HEIGHTS[0]
ALONG_RIM = 1.5  # mm, Gaussian width of the means on either side of the rim: voxels' stairs are no steps
AT_RIM = 2.5  # mm from either outer surface in which a step is read
STEEP = 1.0  # mm that the height of neighbouring rays differs by on a rim's wall, which is not outer surface
EDGE = 3.0  # mm from the rim within which shape is the transition's matter
MIRRORED = 0.2  # least share of the surface with bone on the other side, to speak of symmetry
INTACT = 0.5  # mm that bone may lack of its expected surface and still be whole there


def complete(view: View, criteria: Criteria) -> Check:
    """Light-tight? Each ray from the cranial centre through a defect must meet implant or bone.

    An opening counts where a disc of `max_gap_mm` passes; narrower ones (clearance, drain holes) are measured only.
    """
    open_ = ((view.bone + view.implant).max(-1) < 0.5) & (view.defect > 0)
    leak = ndimage.binary_opening(np.pad(open_, 1), _disc(criteria.max_gap_mm / 2 / view.pitch))[1:-1, 1:-1]
    depth = ndimage.distance_transform_edt(np.pad(open_, 1))
    widest = max(0.0, 2 * float(depth.max()) - 0.5) * view.pitch
    figures = []
    for k in range(1, int(view.defect.max(initial=0)) + 1):
        here = view.defect == k
        area = view.area[here].sum()
        closed = 1 - view.area[here & leak].sum() / area
        label = f"defect {k}: " if view.defect.max() > 1 else ""
        figures += [
            Figure(f"{label}share closed", closed, "", least=criteria.min_closed),
            Figure(f"{label}share closed, narrow gaps counted", 1 - view.area[here & open_].sum() / area, ""),
            Figure(f"{label}size of the defect", area / 100, "cm2"),
        ]
    figures.append(Figure("widest opening", widest, "mm"))
    worst = min((figure.value for figure in figures if figure.least is not None), default=1.0)
    words = (
        f"The implant closes {worst:.1%} of {'each' if view.defect.max(initial=0) > 1 else 'the'} defect; "
        f"the widest opening is {widest:.1f} mm across."
    )
    return Check("complete", "Covers the whole defect", words, tuple(figures))


def no_false_positive_area(view: View, criteria: Criteria) -> Check:
    """Implant that lies over whole bone, outside or inside the skull.

    Bone is whole on a side where it reaches the expected surface to `INTACT` mm: a slanting cut's bevel is not, and the
    implant that fills it is no false positive.
    """
    (bone_top, top), (bone_bottom, bottom) = view.top, view.bottom
    excess = np.zeros_like(view.mm)
    covered = np.zeros(view.mm.shape, bool)
    with np.errstate(invalid="ignore"):
        sides = (
            (bone_top > -INTACT, bone_top[..., None] < HEIGHTS, top - bone_top),
            (bone_bottom < view.inner + INTACT, bone_bottom[..., None] > HEIGHTS, bone_bottom - bottom),
        )
        for whole, beyond, lift in sides:
            length = (view.implant * beyond).sum(-1) * STEP * view.mm
            over = whole & (lift * view.mm > criteria.overhang_mm) & (length > criteria.overhang_mm)
            excess += np.where(over, length, 0)
            covered |= over
    area, volume = float(view.area[covered].sum()) / 100, float((view.area * excess).sum()) / 1000
    words = f"{area:.2f} cm2 of bone lie under or over implant ({volume:.2f} ml of it)."
    figures = (
        Figure("area over bone", area, "cm2", most=criteria.max_overhang_cm2),
        Figure("volume over bone", volume, "ml", most=criteria.max_overhang_ml),
    )
    return Check("no_false_positive_area", "Does not run past the defect", words, figures)


def restores_shape(view: View, criteria: Criteria) -> Check:
    """Heights of the implant's outer surface above the prior's completed one, and above the mirrored other side."""
    inside = ndimage.distance_transform_edt(np.pad(_of_implant(view), 1))[1:-1, 1:-1] * view.pitch > EDGE
    off = np.abs(view.top[1] * view.mm)[inside & (view.defect > 0)]
    asymmetry = ((view.top[1] - view.mirrored) * view.mm)[inside & (view.defect > 0) & np.isfinite(view.mirrored)]
    figures: list[Figure] = []
    words = []
    if off.size:
        figures += [
            Figure("distance to the expected surface, mean", float(off.mean()), "mm"),
            Figure(
                "distance to the expected surface, 95th percentile",
                float(np.percentile(off, 95)),
                "mm",
                most=criteria.max_prior_mm,
            ),
        ]
        words.append(f"The outer surface lies {off.mean():.1f} mm from the one expected of this head on average")
    share = asymmetry.size / max(off.size, 1)
    if share >= MIRRORED:
        figures += [
            Figure(
                "difference to the mirrored side, mean",
                float(np.abs(asymmetry).mean()),
                "mm",
                most=criteria.max_asymmetry_mm,
            ),
            Figure("height above the mirrored side, mean", float(asymmetry.mean()), "mm"),
        ]
        words.append(f"differs from the mirrored side by {np.abs(asymmetry).mean():.1f} mm")
    else:
        words.append("there is no intact other side to compare it with")
    figures.append(Figure("share of the surface with an intact other side", share, ""))
    return Check("restores_shape", "Restores the skull's shape", f"{' and '.join(words)}.".capitalize(), tuple(figures))


def smooth_transition(view: View, criteria: Criteria) -> Check:
    """The step along the rim: implant outermost beside bone outermost, both heights above one smooth surface."""
    implant = _of_implant(view)
    bone = np.isfinite(view.top[0]) & ~implant
    sides = []
    for own, top in ((implant, view.top[1]), (bone, view.top[0])):
        where = own & ~_steep(np.where(own, top * view.mm, np.nan))
        sigma = ALONG_RIM / view.pitch
        weight = ndimage.gaussian_filter(where.astype(float), sigma)
        height = ndimage.gaussian_filter(np.where(where, top * view.mm, 0), sigma) / np.maximum(weight, 1e-6)
        distance = ndimage.distance_transform_edt(~where) * view.pitch if where.any() else np.full(where.shape, np.inf)
        sides.append((height, (weight > 0.1) & (distance <= AT_RIM)))
    rim = sides[0][1] & sides[1][1] & (implant | bone)
    step = (sides[0][0] - sides[1][0])[rim]
    if not step.size:
        return Check("smooth_transition", "Smooth transition", "No bone beside the implant to compare with.", ())
    mean, p95 = float(np.abs(step).mean()), float(np.percentile(np.abs(step), 95))
    side = "above" if step.mean() > 0 else "below"
    words = (
        f"At the rim the implant's outer surface is {mean:.2f} mm off the bone's on average, {p95:.2f} mm at the 95th "
        f"percentile; on the whole it stands {abs(step.mean()):.2f} mm {side} it."
    )
    figures = (
        Figure("step, mean", mean, "mm", most=criteria.max_step_mean_mm),
        Figure("step, 95th percentile", p95, "mm", most=criteria.max_step_p95_mm),
        Figure("step outward, mean", float(step.mean()), "mm"),
    )
    return Check("smooth_transition", "Smooth transition", words, figures)


def bone_thickness(view: View) -> float:
    """mm, mean of whole bone beside the defects; NaN where there is none."""
    (bone_top, top), (bone_bottom, _) = view.top, view.bottom
    distance = ndimage.distance_transform_edt(view.defect == 0) * view.pitch
    with np.errstate(invalid="ignore"):
        whole = (bone_top > -INTACT) & np.isnan(top) & (distance > EDGE)
    return float(((bone_top - bone_bottom) * view.mm)[whole].mean()) if whole.any() else float("nan")


def _of_implant(view: View) -> np.ndarray:
    """Rays on which the implant, not bone, is outermost."""
    return np.isfinite(view.top[1]) & ~(view.top[1] <= view.top[0])


def _steep(height: np.ndarray) -> np.ndarray:
    """(U, V) mm, NaN where unknown -> bool: rays that meet a wall, not an outer surface."""
    known = np.isfinite(height)
    low = ndimage.minimum_filter(np.where(known, height, np.inf), 3)
    high = ndimage.maximum_filter(np.where(known, height, -np.inf), 3)
    return known & (high - low > STEEP)


def _disc(radius: float) -> np.ndarray:
    size = int(np.floor(radius))
    y, x = np.mgrid[-size : size + 1, -size : size + 1]
    return np.hypot(x, y) <= radius
