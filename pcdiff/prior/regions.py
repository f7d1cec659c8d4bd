"""Site, side and size of a defect, in the words of a surgeon's order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdiff.geometry.extents import extents
from pcdiff.prior.direction_map import MAP, surface_elements
from pcdiff.prior.fit import PriorFit, complete_with_bevel

ONE_SIDE = 0.85  # least share of a defect's area on one side of the midline for it to be a defect of that side
NAMED = 0.2  # least share of a defect's area in a bone for the bone to be named
BONES = ("frontal", "temporal", "parietal", "occipital")
JOINED = {"frontal": "fronto", "temporal": "temporo", "parietal": "parieto", "occipital": "occipito"}


@dataclass(frozen=True)
class Defect:
    """One defect. label: as in `PriorFit.defect`. area_cm2: of the missing outer surface.

    side: left, right (the patient's) or both. place: the site in words, such as "left temporo-parietal".
    """

    label: int
    area_cm2: float
    side: str
    place: str


@dataclass(frozen=True)
class OpenDefect(Defect):
    """An opening that is not closed. number: in `pcdiff info`, None for a small one. why: it is left, in a few words.

    length_mm, width_mm: of the missing bone.
    """

    number: int | None
    length_mm: float
    width_mm: float
    why: str


def open_defects(fit: PriorFit) -> list[OpenDefect]:
    """The openings that a fit leaves open, defects first."""
    left = fit.left_open
    if left is None:
        return []
    whole = complete_with_bevel(fit.prior, fit.pose, left.observation, fit.residual, left.barred)
    surface = whole.completed_surface()
    assert surface.defect is not None
    found = []
    for defect, number, why in zip(defects_of(whole), left.numbers, left.why, strict=True):
        length, width, _ = extents(surface.points[surface.defect == defect.label])
        sizes = round(length, 1), round(width, 1)
        found.append(OpenDefect(defect.label, defect.area_cm2, defect.side, defect.place, number, *sizes, why))
    return found


def defects_of(fit: PriorFit) -> list[Defect]:
    """The defects of a fit, in order of their labels."""
    area = ray_areas(fit)
    bones = bone_at(MAP.directions)
    return [_defect(label, np.where(fit.defect == label, area, 0), bones) for label in range(1, fit.defects + 1)]


def ray_areas(fit: PriorFit) -> np.ndarray:
    """(R,) cm2: area of the completed outer surface, in the patient, of each ray of the map."""
    radius = MAP.filled(fit.outer)
    pixels = np.stack(np.meshgrid(*map(np.arange, radius.shape), indexing="ij"), -1)
    surface = fit.pose.to_patient(MAP.from_pixel(pixels) * radius[..., None])
    area, _ = surface_elements(surface)
    return area[MAP.inside] / 100


def bone_at(directions: np.ndarray) -> np.ndarray:
    """(R, 3) unit vectors from the cranial centre, model axes -> (R,) index into BONES.

    The bones are separated by planes through landmarks of the sutures on a mean head: bregma and pterion (coronal),
    lambda and asterion (lambdoid), and a plane above the centre (squamous). Accurate to about a centimetre: for words
    only.
    """
    _, y, z = directions.T
    bone = np.full(len(directions), BONES.index("parietal"))
    bone[z < 0.1] = BONES.index("temporal")
    bone[y < -0.45 + 0.2 * z] = BONES.index("frontal")
    bone[y > 0.72 + 0.35 * z] = BONES.index("occipital")
    return bone


def _defect(label: int, area: np.ndarray, bones: np.ndarray) -> Defect:
    total = area.sum()
    left = area[MAP.directions[:, 0] > 0].sum() / total
    side = "left" if left >= ONE_SIDE else "right" if left <= 1 - ONE_SIDE else "both"
    shares = {name: area[bones == number].sum() / total for number, name in enumerate(BONES)}
    named = [name for name in BONES if shares[name] >= NAMED]
    words = "-".join([*(JOINED[name] for name in named[:-1]), named[-1]])
    place = f"{words}, across the midline" if side == "both" else f"{side} {words}"
    return Defect(label, round(float(total), 1), side, place)
