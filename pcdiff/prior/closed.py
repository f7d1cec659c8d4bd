"""What closes a defect although it is no whole bone: a flap that is back in place, a film, a mesh.

A scan never has a defect where it holds something as dense as bone. What it is decides what the user is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.prior.defects import disc
from pcdiff.prior.direction_map import MAP, PIXEL
from pcdiff.prior.settings import DefectSettings

HELD_MM = 0.3  # bone along a ray that is more than the voxels at a border
FLAP_SHARE, FILM_SHARE = 0.5, 0.35  # of the expected thickness: least of a flap, most of a film
FILM_FROM_MM = 3.5  # expected thickness; thinner bone looks like a film
NEAR_MM = 6.0  # from a film to the defect that it closes in part
COARSE_MM = 2.0  # voxels wider than this make such steps on any head
STEP_PX = 2  # radius within which the outer table makes a step; rays are 1.5 mm apart
FAINT_MM, CLEAR_MM = 1.0, 2.0  # steps that may be an outline, and that tell one from sutures, muscle lines and noise
GAP_SHARE, AROUND_PX = 0.65, 9  # of the bone around a ray, in a square so wide; a saw gap is narrower than a ray
BRIDGED_MM = 4.5  # half the width of a bridge across an outline
CLEAR_SHARE = 0.5  # of an outline; 64 % to 99 % around flaps that are 4 mm too deep, 24 % at most in healthy heads
BESIDE_PX = (2, 5)  # from an outlined piece to the skull around it
SUNK_MM = 1.0  # less is the noise of both tables
_X, _Y, _Z = MAP.directions.T
SINUS = (_Y < -0.7) & (np.abs(_X) < 0.6) & (_Z < 0.55)  # (R,) a pneumatised forehead has walls as thin as a film


@dataclass(frozen=True)
class Closed:
    """Rays of the map over which a defect is closed, (R,) bool each.

    held: bone that hangs together with no skull. flap: such bone of a whole bone's thickness, or bone within a closed
    gap. film: far thinner than expected. outlined: bone with a step or a gap around it. bone, expected: (R,) mm along
    the ray, of the scan and of the shape model. offset: (R,) mm of the outer table from the expected one, or NaN.
    """

    held: np.ndarray
    flap: np.ndarray
    film: np.ndarray
    outlined: np.ndarray
    bone: np.ndarray
    expected: np.ndarray
    offset: np.ndarray

    def notes(self, defect: np.ndarray, settings: DefectSettings) -> tuple[str, ...]:
        """Warnings for a skull with defects; defect: (R,) int labels."""
        notes = []
        if (flap := _area_cm2(self.flap & (defect == 0))) >= settings.min_area_cm2:
            notes.append(f"a loose piece of bone, {flap:.0f} cm2, lies in its place in the vault: it counts as bone")
        film = _regions_near(self.film, defect > 0)
        if _area_cm2(film) >= settings.min_area_cm2:
            notes.append(
                f"beside the defect {self._thin(film)}: titanium mesh, or the film of a segmentation network, closes a "
                "part of the defect, and the implant ends there; remove it from the mask (--ignore-metal leaves the "
                "metal of a CT out)"
            )
        return tuple(notes)

    def no_defect(self, settings: DefectSettings) -> InputError:
        """The error for a skull without a defect, which names what closes it."""
        if (flap := _area_cm2(self.flap)) >= settings.min_area_cm2:
            return InputError(
                f"no defect found: the bone flap is in place: expected missing bone, got a piece of {flap:.0f} cm2 "
                "with a narrow gap around it; to replace the flap, remove it from the mask first"
            )
        if (flap := _area_cm2(self.outlined)) >= settings.min_area_cm2:
            return InputError(
                f"no defect found: the bone flap is in place{self._sunk()}: expected missing bone, got a piece of "
                f"{flap:.0f} cm2 with a step or a bridged gap around it; to replace the flap, remove it from the mask "
                "first"
            )
        if _area_cm2(self.film) >= settings.min_area_cm2:
            return InputError(
                f"no defect found: expected missing bone, but {self._thin(self.film)}: titanium mesh, or the film of a "
                "segmentation network, closes the defect; remove it from the mask (--ignore-metal leaves the metal of "
                "a CT out)"
            )
        return InputError(
            "no defect found: expected bone to be absent over at least "
            f"{settings.min_area_cm2:g} cm2 of the vault, got none; "
            "is this the defective skull, not the complete one? (--region FILE closes a smaller opening)"
        )

    def _sunk(self) -> str:
        """In words: the outlined piece lies deeper than the skull around it. No figure, as the model follows it."""
        piece, offset = MAP.to_image(self.outlined, False), MAP.to_image(self.offset, np.nan)
        near, far = (ndimage.binary_dilation(piece, iterations=px) for px in BESIDE_PX)
        inside = piece & ndimage.binary_dilation(~piece, iterations=BESIDE_PX[1])
        sunk = float(np.nanmedian(offset[far & ~near]) - np.nanmedian(offset[inside]))
        return "" if abs(sunk) < SUNK_MM else f", too {'deep' if sunk > 0 else 'high'}"

    def _thin(self, rays: np.ndarray) -> str:
        thin, expected = np.median(self.bone[rays]), np.median(self.expected[rays])
        return f"bone is {thin:.1f} mm thick over {_area_cm2(rays):.0f} cm2, where {expected:.0f} mm are expected"


def find_closed(
    absent: np.ndarray,
    loose: np.ndarray,
    bone: np.ndarray,
    expected: np.ndarray,
    offset: np.ndarray,
    usually_bone: np.ndarray,
    mm: float,
    voxel_mm: float,
) -> Closed:
    """What closes a defect.

    absent: (R,) bool, no skull along the ray. loose, bone: (R,) mm along it of bone apart from the skull, and of all
    bone. expected: (R,) mm. offset: (R,) mm of the outer table from the expected one, or NaN. usually_bone: (R,) bool,
    healthy heads have bone here. mm: strips up to twice this wide are no film and no flap; they are the bevel of a
    cut, sutures, noise. voxel_mm: the shortest edge of the scan's voxels.
    """
    held = _opened(absent & (loose >= HELD_MM), mm)
    thick = _opened(held & (loose >= FLAP_SHARE * expected), mm)
    gap = ndimage.binary_closing(MAP.to_image(absent, False), iterations=1)
    enclosed = _opened((ndimage.binary_fill_holes(gap) & ~gap)[MAP.inside] & usually_bone, mm)
    thin = (bone >= HELD_MM) & (bone <= FILM_SHARE * expected) & (expected >= FILM_FROM_MM) & usually_bone & ~SINUS
    fine = voxel_mm <= COARSE_MM
    outlined = _outlined(absent, bone, offset, usually_bone, mm) if fine else np.zeros(len(absent), bool)
    return Closed(held, thick | enclosed, _opened(thin, mm) & ~thick, outlined, bone, expected, offset)


def _outlined(
    absent: np.ndarray, bone: np.ndarray, offset: np.ndarray, usually_bone: np.ndarray, mm: float
) -> np.ndarray:
    """(R,) bool: pieces of the vault that an outline separates from the largest one, as around a flap that is sunk.

    An outline is a step of the outer table, or a gap; a flap tilts, and so it may be faint at places. Arguments as in
    `find_closed`.
    """
    step, thickness = _steps(offset), MAP.to_image(bone)
    gap = MAP.to_image(absent | np.isnan(offset), False)
    gap |= thickness < GAP_SHARE * ndimage.median_filter(thickness, AROUND_PX)
    border = int(np.ceil(BRIDGED_MM / PIXEL))
    outline = np.pad(gap | (step >= FAINT_MM), border)
    outline = ndimage.binary_closing(outline, disc(BRIDGED_MM))[border:-border, border:-border]
    clear = ndimage.binary_dilation(gap | (step >= CLEAR_MM))
    labels, count = ndimage.label(MAP.to_image(_opened(usually_bone & ~outline[MAP.inside], mm), False))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    outlined = np.zeros(labels.shape, bool)
    for label in set(range(1, count + 1)) - {int(sizes.argmax()) + 1 if count else 0}:
        piece = labels == label
        ring = ndimage.binary_dilation(piece, iterations=2) & ~ndimage.binary_dilation(piece)
        if clear[ring].mean() >= CLEAR_SHARE:
            outlined |= piece
    return outlined[MAP.inside]


def _steps(values: np.ndarray) -> np.ndarray:
    """(SIZE, SIZE) by how much values (R,) differ within `STEP_PX` of each ray; 0 where there are none."""
    around = disc(STEP_PX * PIXEL)
    image = MAP.to_image(values, np.nan)
    known = np.isfinite(image)
    highest = ndimage.maximum_filter(np.where(known, image, -np.inf), footprint=around)
    lowest = ndimage.minimum_filter(np.where(known, image, np.inf), footprint=around)
    some = np.isfinite(highest) & np.isfinite(lowest)
    return np.subtract(highest, lowest, out=np.zeros(image.shape), where=some)


def _opened(rays: np.ndarray, mm: float) -> np.ndarray:
    """(R,) bool without strips and specks."""
    return np.asarray(ndimage.binary_opening(MAP.to_image(rays, False), disc(mm))[MAP.inside])


def _regions_near(rays: np.ndarray, defect: np.ndarray) -> np.ndarray:
    """(R,) bool: the connected regions of rays that reach the defect."""
    image = MAP.to_image(rays, False)
    near = ndimage.distance_transform_edt(~MAP.to_image(defect, False)) * PIXEL <= NEAR_MM
    return np.asarray(ndimage.binary_propagation(image & near, mask=image)[MAP.inside])


def _area_cm2(rays: np.ndarray) -> float:
    return float(np.count_nonzero(rays) * PIXEL**2 / 100)
