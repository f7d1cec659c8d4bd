"""Coverage, overlap with bone, shape, and the step at the rim: measured on rays from the cranial centre."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pcdiff.checks.criteria import Criteria
from pcdiff.checks.ray_view import HEIGHTS, RayView
from pcdiff.checks.report import CONTINUATION_MEAN, STEP_MEAN, Check, Figure

HEIGHT_STEP = HEIGHTS[1] - HEIGHTS[0]
RIM_SMOOTHING_MM = 1.5  # width of the Gaussian along the rim: the stairs of voxels are no steps
RIM_REACH_MM = 2.5  # a step is measured this near to the outer surfaces of implant and of bone
STEEP_MM = 1.0  # difference in height of neighbouring rays from which they meet the side of a rim, no outer surface
RIM_WIDTH_MM = 3.0  # nearer to the rim the surface belongs to the transition; its shape is not compared
MIN_CONTINUED_MM2 = 100.0  # area near the rim from which the distance to the continued bone is measured
MIN_MIRRORED = 0.2  # share of the surface with bone on the other side from which symmetry is measured
BEVEL_MM = 0.5  # bone is intact where it lacks no more than this of its expected surface


def complete(view: RayView, criteria: Criteria) -> Check:
    """Coverage: the share of rays through each defect that meet implant or bone.

    An opening counts if a disc of `max_gap_mm` passes through it; narrower ones (clearance, drain holes) are measured
    without a limit.
    """
    open_ = ((view.bone + view.implant).max(-1) < 0.5) & (view.defect > 0)
    wide = ndimage.binary_opening(np.pad(open_, 1), _disc(criteria.max_gap_mm / 2 / view.pitch))[1:-1, 1:-1]
    depth = ndimage.distance_transform_edt(np.pad(open_, 1))
    widest = max(0.0, 2 * float(depth.max()) - 0.5) * view.pitch
    defects = int(view.defect.max(initial=0))
    figures = []
    for number in range(1, defects + 1):
        here = view.defect == number
        area = view.area[here].sum()
        covered, covered_in_all = (1 - view.area[here & gaps].sum() / area for gaps in (wide, open_))
        defect, suffix = (f"Defect {number}: ", f"_{number}") if defects > 1 else ("", "")
        narrow = f"{defect}Coverage, gaps below {criteria.max_gap_mm:g} mm included"
        figures += [
            Figure(f"coverage{suffix}", f"{defect}Coverage", covered, minimum=criteria.min_closed),
            Figure(f"coverage_with_narrow_gaps{suffix}", narrow, covered_in_all),
            Figure(f"defect_area{suffix}", f"{defect}Area of the defect", area / 100, "cm2"),
        ]
    figures.append(Figure("widest_gap", "Widest gap", widest, "mm"))
    worst = min((figure.value for figure in figures if figure.minimum is not None), default=1.0)
    words = (
        f"The implant covers {worst:.1%} of {'each' if defects > 1 else 'the'} defect; "
        f"the widest gap is {widest:.1f} mm wide."
    )
    return Check("complete", "Covers the whole defect", words, tuple(figures))


def no_false_positive_area(view: RayView, criteria: Criteria) -> Check:
    """Overlap: implant over or under intact bone, outside or inside the skull.

    Bone is intact on a side where it reaches the expected surface to `BEVEL_MM`. The bevel of a slanting cut is not,
    and the implant that fills it is no overlap.
    """
    (bone_top, top), (bone_bottom, bottom) = view.top, view.bottom
    excess = np.zeros_like(view.mm)
    covered = np.zeros(view.mm.shape, bool)
    with np.errstate(invalid="ignore"):
        sides = (
            (bone_top > -BEVEL_MM, bone_top[..., None] < HEIGHTS, top - bone_top),
            (bone_bottom < view.inner + BEVEL_MM, bone_bottom[..., None] > HEIGHTS, bone_bottom - bottom),
        )
        for intact, beyond, lift in sides:
            length = (view.implant * beyond).sum(-1) * HEIGHT_STEP * view.mm
            over = intact & (lift * view.mm > criteria.overhang_mm) & (length > criteria.overhang_mm)
            excess += np.where(over, length, 0)
            covered |= over
    area, volume = float(view.area[covered].sum()) / 100, float((view.area * excess).sum()) / 1000
    words = f"Overlap with the bone's surface: {area:.2f} cm2 ({volume:.2f} ml)."
    name = "Overlap with the bone's surface"
    figures = (
        Figure("overlap_area", name, area, "cm2", maximum=criteria.max_overhang_cm2),
        Figure("overlap_volume", f"{name}, volume", volume, "ml", maximum=criteria.max_overhang_ml),
    )
    return Check("no_false_positive_area", "Ends at the edge of the defect", words, figures)


def restores_shape(view: RayView, criteria: Criteria) -> Check:
    """Height of the outer surface above the continued bone, the expected surface, and the mirrored other side."""
    inside = ndimage.distance_transform_edt(np.pad(_is_implant(view), 1))[1:-1, 1:-1] * view.pitch > RIM_WIDTH_MM
    off = np.abs(view.top[1] * view.mm)[inside & (view.defect > 0)]
    asymmetry = ((view.top[1] - view.mirrored) * view.mm)[inside & (view.defect > 0) & np.isfinite(view.mirrored)]
    figures: list[Figure] = []
    words = []
    above = ((view.top[1] - view.continued) * view.mm)[inside & (view.defect > 0) & np.isfinite(view.continued)]
    if above.size * view.pitch**2 >= MIN_CONTINUED_MM2:
        mean = float(np.abs(above).mean())
        name = "Distance to the continued bone"
        figures += [
            Figure(CONTINUATION_MEAN, f"{name}, mean", mean, "mm", maximum=criteria.max_continuation_mm),
            Figure("continuation_height", "Height above the continued bone, mean", float(above.mean()), "mm"),
        ]
        side = "above" if above.mean() > 0 else "below"
        words.append(
            f"Near its rim the outer surface lies {mean:.1f} mm on average from the bone around continued over it "
            f"({abs(above.mean()):.1f} mm {side} it)"
        )
    else:
        words.append("The bone around cannot be continued here: the rim lies below the vault")
    if off.size:
        name, mean, p95 = "Distance to the expected surface", float(off.mean()), float(np.percentile(off, 95))
        figures += [
            Figure("surface_distance_mean", f"{name}, mean", mean, "mm"),
            Figure(
                "surface_distance_p95", f"{name}, 95th percentile", p95, "mm", maximum=criteria.max_surface_distance_mm
            ),
        ]
        words.append(f"Mean distance to the surface that the shape model expects of this head: {mean:.1f} mm")
    share = asymmetry.size / max(off.size, 1)
    if share >= MIN_MIRRORED:
        name, mean = "Difference to the mirrored side, mean", float(np.abs(asymmetry).mean())
        figures += [
            Figure("asymmetry_mean", name, mean, "mm", maximum=criteria.max_asymmetry_mm),
            Figure("height_mean", "Height above the mirrored side, mean", float(asymmetry.mean()), "mm"),
        ]
        words.append(f"Mean difference to the mirrored side: {mean:.1f} mm")
    else:
        words.append("There is no intact other side to compare with, as where a defect crosses the midline")
    figures.append(Figure("mirrored_share", "Share of the surface with an intact other side", share))
    return Check("restores_shape", "Restores the skull's shape", f"{'. '.join(words)}.", tuple(figures))


def smooth_transition(view: RayView, criteria: Criteria) -> Check:
    """The step along the rim, between the outer surfaces of implant and bone; outward is positive."""
    implant = _is_implant(view)
    bone = np.isfinite(view.top[0]) & ~implant
    sides = []
    for own, top in ((implant, view.top[1]), (bone, view.top[0])):
        where = own & ~_is_steep(np.where(own, top * view.mm, np.nan))
        sigma = RIM_SMOOTHING_MM / view.pitch
        weight = ndimage.gaussian_filter(where.astype(float), sigma)
        height = ndimage.gaussian_filter(np.where(where, top * view.mm, 0), sigma) / np.maximum(weight, 1e-6)
        distance = ndimage.distance_transform_edt(~where) * view.pitch if where.any() else np.full(where.shape, np.inf)
        sides.append((height, (weight > 0.1) & (distance <= RIM_REACH_MM)))
    rim = sides[0][1] & sides[1][1] & (implant | bone)
    step = (sides[0][0] - sides[1][0])[rim]
    if not step.size:
        return Check("smooth_transition", "Smooth transition", "No bone beside the implant to compare with.", ())
    mean, p95 = float(np.abs(step).mean()), float(np.percentile(np.abs(step), 95))
    side = "above" if step.mean() > 0 else "below"
    words = (
        f"Step at the rim: {mean:.2f} mm on average, {p95:.2f} mm at the 95th percentile. On average the implant lies "
        f"{abs(step.mean()):.2f} mm {side} the bone."
    )
    figures = (
        Figure(STEP_MEAN, "Step, mean", mean, "mm", maximum=criteria.max_step_mean_mm),
        Figure("step_p95", "Step, 95th percentile", p95, "mm", maximum=criteria.max_step_p95_mm),
        Figure("step_outward_mean", "Step outward, mean", float(step.mean()), "mm"),
    )
    return Check("smooth_transition", "Smooth transition", words, figures)


def bone_thickness(view: RayView) -> float:
    """Mean thickness of the intact bone beside the defects, mm; NaN if there is none."""
    (bone_top, top), (bone_bottom, _) = view.top, view.bottom
    distance = ndimage.distance_transform_edt(view.defect == 0) * view.pitch
    with np.errstate(invalid="ignore"):
        intact = (bone_top > -BEVEL_MM) & np.isnan(top) & (distance > RIM_WIDTH_MM)
    return float(((bone_top - bone_bottom) * view.mm)[intact].mean()) if intact.any() else float("nan")


def _is_implant(view: RayView) -> np.ndarray:
    """(U, V) bool: is the implant, and not bone, the outermost?"""
    return np.isfinite(view.top[1]) & ~(view.top[1] <= view.top[0])


def _is_steep(height: np.ndarray) -> np.ndarray:
    """(U, V) mm, NaN where unknown -> (U, V) bool: does the ray meet the side of a rim and no outer surface?"""
    known = np.isfinite(height)
    low = ndimage.minimum_filter(np.where(known, height, np.inf), 3)
    high = ndimage.maximum_filter(np.where(known, height, -np.inf), 3)
    return known & (high - low > STEEP_MM)


def _disc(radius: float) -> np.ndarray:
    size = int(np.floor(radius))
    y, x = np.mgrid[-size : size + 1, -size : size + 1]
    return np.hypot(x, y) <= radius
