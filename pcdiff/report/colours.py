"""The colours of bone, implants, points and scales: linear RGB, 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

BONE: Colour = (0.87, 0.80, 0.67)
GREY_BONE: Colour = (0.55, 0.55, 0.55)  # under a colour scale
IMPLANT: Colour = (0.06, 0.40, 0.55)
CUT: Colour = (0.003, 0.010, 0.015)  # letters in an implant
TRUTH: Colour = (0.35, 0.02, 0.45)
# Distinguishable with colour vision deficiency (after Okabe & Ito 2008).
CANDIDATE_COLOURS: tuple[Colour, ...] = ((0.79, 0.35, 0.0), (0.0, 0.34, 0.17), (0.60, 0.19, 0.38), (0.09, 0.45, 0.81))
MARK: Colour = (0.85, 0.30, 0.0)
SHAPE_MODEL_POINTS: Colour = (0.70, 0.29, 0.02)
IMPLANT_POINTS: Colour = (0.02, 0.22, 0.36)
SAMPLING_POINTS: Colour = (0.65, 0.05, 0.10)
BELOW_SHARE = 0.2  # of a drawn scale: values under its low end
ERROR_MM = 3.0  # upper end of the scale of surface distances
# Equal steps from low to high: blue, yellow, red, distinguishable with colour vision deficiency.
SCALE = np.array([(0.03, 0.17, 0.50), (0.22, 0.55, 0.65), (0.95, 0.80, 0.25), (0.85, 0.22, 0.03), (0.35, 0.0, 0.02)])


# Thin is brown, as the bone is nearly white, thick is blue (after ColorBrewer's BrBG and RdBu).
DIVERGING = np.array(
    [(0.35, 0.13, 0.02), (0.65, 0.40, 0.12), (0.90, 0.90, 0.88), (0.22, 0.48, 0.75), (0.03, 0.13, 0.42)]
)


@dataclass(frozen=True)
class Scale:
    """A colour scale. colours: (K, 3) linear RGB at equal steps from low to high. below: of values under the low end.

    Without `below` they get the colour of the low end; values over the high end get its colour.
    """

    colours: np.ndarray
    below: Colour | None = None

    def start(self, low: float, high: float) -> float:
        """Where a drawn scale begins: at the low end, or a little under it, to show the colour there."""
        return low if self.below is None else low - BELOW_SHARE * (high - low)

    def stops(self, low: float, high: float) -> list[tuple[float, np.ndarray]]:
        """Places between 0 (`start`) and 1 (the high end), ascending, with linear RGB."""
        start = self.start(low, high)
        first = (low - start) / (high - start)
        steps = np.linspace(first, 1.0, len(self.colours))
        under = [] if self.below is None else [(0.0, np.array(self.below)), (first - 1e-3, np.array(self.below))]
        return [*under, *zip(steps.tolist(), self.colours, strict=True)]

    def at(self, values: np.ndarray, low: float, high: float) -> np.ndarray:
        """(N,) values -> (N, 3) linear RGB."""
        steps = np.linspace(low, high, len(self.colours))
        found = np.stack([np.interp(values, steps, channel) for channel in self.colours.T], axis=-1)
        if self.below is not None:
            found[np.asarray(values) < low] = self.below
        return found


BAD_HIGH = Scale(SCALE)
BAD_HIGH_RIM = Scale(SCALE, GREY_BONE)
AROUND_BONE = Scale(DIVERGING)


def scale_colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(N,) values -> (N, 3) linear RGB on SCALE between `low` and `high`; values beyond an end get its colour."""
    return BAD_HIGH.at(values, low, high)


def error_colours(mm: np.ndarray) -> np.ndarray:
    """(N,) distances in mm -> (N, 3) linear RGB on the scale from 0 to ERROR_MM."""
    return scale_colours(mm, 0.0, ERROR_MM)


def srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light 0 to 1 -> sRGB, 0 to 1 (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
