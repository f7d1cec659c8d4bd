"""Site, side and size of a defect, in the words of a surgeon's order."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from pcdiff.geometry.extents import extents
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, surface_elements
from pcdiff.prior.fit import PriorFit, complete_with_bevel

ONE_SIDE = 0.85  # least share of a defect's area on one side of the midline for it to be a defect of that side
NAMED = 0.2  # least share of a defect's area in a bone for the bone to be named
DEPTH = 0.25  # of the thickness: so far below the outer table voxels say whether there is bone, beyond their rounding
BONES = ("frontal", "temporal", "parietal", "occipital")
JOINED = {"frontal": "fronto", "temporal": "temporo", "parietal": "parieto", "occipital": "occipito"}


@dataclass(frozen=True)
class Defect:
    """One defect. label: as in `PriorFit.defect`. area_cm2: of the missing outer surface.

    side: left, right (the patient's) or both. place: the site in words, such as "left temporo-parietal".
    length_mm, width_mm: of the missing outer surface, see `extents`.
    """

    label: int
    area_cm2: float
    side: str
    place: str
    length_mm: float
    width_mm: float


@dataclass(frozen=True)
class OpenDefect(Defect):
    """An opening that is not closed. number: in `pcdiff info`, None for a small one. why: it is left, in few words."""

    number: int | None
    why: str


def openings_of(fit: PriorFit, skull: Volume) -> tuple[list[Defect], list[OpenDefect]]:
    """The defects that a fit completes, in order of their labels; and the openings that it leaves open, defects first.

    All are measured in a completion of all, so that an opening has one size, whether it is chosen or not. skull: the
    defective skull that was fitted.
    """
    left = fit.left_open
    if left is None:
        return _defects(fit, skull), []
    whole = complete_with_bevel(fit.prior, fit.pose, left.observation, fit.residual, left.barred)
    found = _defects(whole, skull)
    closed, open_ = found[: fit.defects], found[fit.defects :]
    told = zip(open_, left.numbers, left.why, strict=True)
    return closed, [OpenDefect(**asdict(defect), number=number, why=why) for defect, number, why in told]


def _defects(fit: PriorFit, skull: Volume) -> list[Defect]:
    area, bones, missing = ray_areas(fit), bone_at(MAP.directions), missing_bone(fit, skull)
    return [
        _defect(label, np.where(fit.defect == label, area, 0), bones, missing.points[missing.defect == label])
        for label in range(1, fit.defects + 1)
    ]


def missing_bone(fit: PriorFit, skull: Volume) -> PointCloud:
    """The points of the completed outer table over each defect where the skull has no bone beneath, with their labels.

    A defect's rays alone reach some millimetres into the rim: they are 1.5 mm apart, and those of a bevel belong to it.
    The inner table is left out: with it a burr hole would be as long as its diagonal.
    """
    whole = fit.completed_surface()
    beneath = fit.completed_surface(fit.outer - DEPTH * fit.thickness)  # the same rays, in the same order
    bone = ndimage.map_coordinates(skull.mask, skull.to_index(beneath.points).T, order=0, output=bool)
    outer = (whole.normals * (whole.points - fit.pose.shift)).sum(axis=1) > 0
    assert whole.defect is not None
    return whole[outer & (whole.defect > 0) & ~bone]


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


def _defect(label: int, area: np.ndarray, bones: np.ndarray, missing: np.ndarray) -> Defect:
    """area: (R,) cm2, 0 outside of the defect. bones: (R,) by `bone_at`. missing: (N, 3) mm, by `missing_bone`."""
    total = area.sum()
    left = area[MAP.directions[:, 0] > 0].sum() / total
    side = "left" if left >= ONE_SIDE else "right" if left <= 1 - ONE_SIDE else "both"
    shares = {name: area[bones == number].sum() / total for number, name in enumerate(BONES)}
    named = [name for name in BONES if shares[name] >= NAMED]
    words = "-".join([*(JOINED[name] for name in named[:-1]), named[-1]])
    place = f"{words}, across the midline" if side == "both" else f"{side} {words}"
    length, width, _ = (round(mm, 1) for mm in extents(missing))
    return Defect(label, round(float(total), 1), side, place, length, width)
