"""Where on the skull a defect lies, how large it is and on which side: what an engineer calls it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import PriorFit

ONE_SIDE = 0.85  # share of a defect's area left or right of the midline, for the defect to be on that side
NAMED = 0.2  # share of a defect's area in a bone, for the bone to be named
BONES = ("frontal", "temporal", "parietal", "occipital")
JOINED = {"frontal": "fronto", "temporal": "temporo", "parietal": "parieto", "occipital": "occipito"}


@dataclass(frozen=True)
class Defect:
    """A place where bone is absent. label: as in `PriorFit.defect`. area_cm2: of the outer surface that is missing.

    side: left, right (the patient's) or both. place: in words, such as "left temporo-parietal".
    """

    label: int
    area_cm2: float
    side: str
    place: str


def defects_of(fit: PriorFit) -> list[Defect]:
    """The defects that a fit found, by label."""
    area = ray_areas(fit)
    bones = bone_at(MAP.directions)
    return [_defect(label, np.where(fit.defect == label, area, 0), bones) for label in range(1, fit.defects + 1)]


def ray_areas(fit: PriorFit) -> np.ndarray:
    """(R,) cm2 of the completed outer surface, in the patient, that each ray of the map stands for."""
    radius = MAP.filled(fit.outer)
    pixels = np.stack(np.meshgrid(*map(np.arange, radius.shape), indexing="ij"), -1)
    surface = fit.pose.to_patient(MAP.from_pixel(pixels) * radius[..., None])
    normal = np.cross(np.gradient(surface, axis=0), np.gradient(surface, axis=1))
    return np.linalg.norm(normal, axis=-1)[MAP.inside] / 100


def bone_at(directions: np.ndarray) -> np.ndarray:
    """(R, 3) unit vectors from the cranial centre, model axes -> (R,) index into BONES.

    Planes through the sutures' landmarks on a mean head: coronal by bregma and pterion, lambdoid by lambda and
    asterion; the squamous suture a little above the centre. Good to about a centimetre: for words only.
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
