"""Whether a head lies in a scan as its file says: upright in patient axes, and of a head's size.

A head that lies otherwise is found by trying all rotations that map axes onto axes. A skull is so nearly its own
mirror image that its shape cannot tell a flipped or swapped axis from a rotation: each of the 24 rotations stands for
two of the 48 orientations of a grid, and both are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

import numpy as np

from pcdiff.errors import InputError
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import EVERY, bone_points, fit_pose, initial_pose

# What is known of the patient axes: the file states them, it does not, or the user says to go on whatever they are.
Axes = Literal["stated", "unstated", "assumed"]

TURNS = np.array(
    [
        turn
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
        if np.linalg.det(turn := np.eye(3)[list(order)] * np.array(signs)[:, None]) > 0
    ]
)  # (24, 3, 3) rotations, the identity first
DOUBTFUL_MM, DOUBTFUL_DEG = 0.9, 45.0  # median distance from the mean head, and rotation, from which others are tried
BETTER = 0.85  # share of the upright head's distance that another orientation must reach
COARSE, FINALISTS = (2, 15), 3  # rounds of the search, and of how many rays it uses one; how many are fitted fully
SIZES = (0.86, 1.13)  # of the mean head's; 75 adults lie between 0.93 and 1.08
MAX_STRETCH = 1.18  # of the longest axis against the shortest; 1.14 among them
LETTERS = ("LR", "PA", "SI")  # towards + and - of the patient's x, y, z
MIRROR = np.diag([-1.0, 1, 1])


@dataclass(frozen=True)
class Placed:
    """A head in a scan. residual: see `fit_pose`."""

    pose: Pose
    residual: float

    @property
    def turn(self) -> np.ndarray:
        """(3, 3) rotation by right angles that sets the head upright."""
        return TURNS[np.einsum("tij,ji->t", TURNS, self._rotation).argmax()]

    @property
    def _scales(self) -> np.ndarray:
        return np.linalg.norm(self.pose.linear, axis=0)

    @property
    def _rotation(self) -> np.ndarray:
        return self.pose.linear / self._scales

    @property
    def is_doubtful(self) -> bool:
        """Whether it fits badly, or lies far from upright."""
        cosine = (np.trace(self._rotation) - 1) / 2
        return self.residual > DOUBTFUL_MM or bool(cosine < np.cos(np.deg2rad(DOUBTFUL_DEG)))

    def check(self, axes: Axes) -> tuple[str, ...]:
        """Warnings. Raises InputError for a head that is not upright or has not a head's size, unless it is assumed.

        A head that is turned about the long axis of the body is one that lies on its side.
        """
        problems = [problem for problem in (self._orientation(axes), self._size()) if problem]
        if not problems:
            return ()
        if axes != "assumed" and not (axes == "stated" and self._on_its_side and len(problems) == 1):
            raise InputError(
                f"{'; '.join(problems)}; correct the file's directions and spacing, or go on with --assume-orientation"
            )
        return tuple(problems)

    @property
    def _on_its_side(self) -> bool:
        return bool(self.turn[2, 2] == 1 and self.turn[0, 0] == 0)

    def _orientation(self, axes: Axes) -> str | None:
        turn = self.turn
        if np.array_equal(turn, np.eye(3)):
            return None
        codes = sorted((_code(turn), _code(MIRROR @ turn)), key=_strangeness)
        fits = f"the head fits axes {codes[0]} (or {codes[1]}, its mirror image), not the file's LPS"
        if self._on_its_side and axes == "stated":
            return (
                f"the head lies on its side ({fits}): if the patient did not, x and y of the file are swapped and the "
                "STL is a mirror image"
            )
        unstated = "the file does not state the patient's axes, and " if axes == "unstated" else ""
        return f"{unstated}expected an upright head in patient axes: {fits}: {_cause(codes[0])}"

    def _size(self) -> str | None:
        scales = self._scales
        size, stretch = float(np.prod(scales) ** (1 / 3)), float(scales.max() / scales.min())
        if not SIZES[0] <= size <= SIZES[1]:
            return (
                f"expected the size of a head, got one about {abs(size - 1):.0%} {'larger' if size > 1 else 'smaller'} "
                "than the mean: is the voxel spacing lost or wrong?"
            )
        if stretch > MAX_STRETCH:
            odd = np.abs(np.log(scales / np.median(scales))).argmax()
            axis = "xyz"[int(np.abs(self.pose.linear[:, odd]).argmax())]
            return (
                f"expected a head as long, wide and high as others, got one about {stretch - 1:.0%} too "
                f"{'long' if scales[odd] > 1 else 'short'} along {axis}: is the spacing wrong along one axis, such as "
                "the distance of slices?"
            )
        return None


def place_head(prior: ShapePrior, occupancy: np.ndarray, affine: np.ndarray) -> Placed:
    """The pose of a head: upright in patient axes, or, where that fits badly, in the orientation that fits best.

    occupancy: (I, J, K) uint8, 255 = bone. affine: (4, 4) index -> mm. Raises InputError without a vault.
    """
    points = bone_points(occupancy, affine)

    def placed(turn: np.ndarray, rounds: int = 4, every: int = EVERY) -> Placed:
        turned = np.eye(4)
        turned[:3, :3] = turn
        settings = prior.settings.pose
        start = initial_pose(points @ turn.T, settings.vault_mm)
        pose, residual = fit_pose(
            occupancy, turned @ affine, prior.mean[0], prior.std[0], settings, rounds, every, start
        )
        return Placed(Pose(turn.T @ pose.linear, turn.T @ pose.shift), residual)

    def tried(turn: np.ndarray, rounds: int = 4, every: int = EVERY) -> Placed | None:
        try:
            return placed(turn, rounds, every)
        except InputError:  # no vault
            return None

    upright = tried(TURNS[0])
    if upright is not None and not upright.is_doubtful:
        return upright
    rough = [(each.residual, number) for number, turn in enumerate(TURNS) if (each := tried(turn, *COARSE))]
    limit = np.inf if upright is None else upright.residual  # a rough fit is about 3 % farther than the full one
    finalists = [TURNS[number] for residual, number in sorted(rough)[:FINALISTS] if number and residual < limit]
    others = [other for turn in finalists if (other := tried(turn))]
    best = min(others, key=lambda other: other.residual, default=None)
    if best is not None and (upright is None or best.residual < BETTER * upright.residual):
        return best
    return upright or placed(TURNS[0])


def _code(turn: np.ndarray) -> str:
    """Where the file's x, y and z point in the patient, if `turn` sets the head upright: LPS for the identity."""
    axis = np.abs(turn).argmax(0)
    return "".join(LETTERS[a][int(turn[a, column] < 0)] for column, a in enumerate(axis))


def _strangeness(code: str) -> tuple[int, int]:
    """How many axes differ from LPS, and how many are flipped."""
    return sum(a != b for a, b in zip(code, "LPS", strict=True)), sum(letter in "RAI" for letter in code)


def _cause(code: str) -> str:
    """What most likely happened to axes that should be LPS."""
    order = [next(n for n, letters in enumerate(LETTERS) if letter in letters) for letter in code]
    moved = [name for name, n, axis in zip("xyz", order, range(3), strict=True) if n != axis]
    if len(moved) == 2:
        return f"axes {moved[0]} and {moved[1]} are swapped" + ("" if code[2] != "I" else ", and it is upside down")
    if moved:
        return "the axes are in another order"
    flips = [what for what, letter in (("upside down, z is flipped", code[2] == "I"),) if letter]
    if code[1] == "A":
        flips.append("back to front, RAS is taken for LPS or the reverse, or y is flipped")
    return " and ".join(flips)
