"""The colours of bone, implants, points and scales: linear RGB, 0 to 1."""

from __future__ import annotations

import numpy as np

Colour = tuple[float, float, float]

BONE: Colour = (0.87, 0.80, 0.67)
GREY_BONE: Colour = (0.55, 0.55, 0.55)  # under a colour scale
IMPLANT: Colour = (0.06, 0.40, 0.55)
TRUTH: Colour = (0.35, 0.02, 0.45)
# Distinguishable with colour vision deficiency (after Okabe & Ito 2008).
CANDIDATE_COLOURS: tuple[Colour, ...] = ((0.79, 0.35, 0.0), (0.0, 0.34, 0.17), (0.60, 0.19, 0.38), (0.09, 0.45, 0.81))
SHAPE_MODEL_POINTS: Colour = (0.70, 0.29, 0.02)
IMPLANT_POINTS: Colour = (0.02, 0.22, 0.36)
SAMPLING_POINTS: Colour = (0.65, 0.05, 0.10)
ERROR_MM = 3.0  # upper end of the scale of surface distances
# Equal steps from low to high: blue, yellow, red, distinguishable with colour vision deficiency.
SCALE = np.array([(0.03, 0.17, 0.50), (0.22, 0.55, 0.65), (0.95, 0.80, 0.25), (0.85, 0.22, 0.03), (0.35, 0.0, 0.02)])


def scale_colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(N,) values -> (N, 3) linear RGB on SCALE between `low` and `high`; values beyond an end get its colour."""
    steps = np.linspace(low, high, len(SCALE))
    return np.stack([np.interp(values, steps, channel) for channel in SCALE.T], axis=-1)


def error_colours(mm: np.ndarray) -> np.ndarray:
    """(N,) distances in mm -> (N, 3) linear RGB on the scale from 0 to ERROR_MM."""
    return scale_colours(mm, 0.0, ERROR_MM)


def srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light 0 to 1 -> sRGB, 0 to 1 (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
