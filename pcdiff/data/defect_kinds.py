"""Kinds of defects: where they lie, how large they are and what shape their outline has.

The kinds are those of SkullBreak and SkullFix (Kodym et al., Data in Brief 2021), and irregular ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pcdiff.data.outline import ANGLES

# side (-1 right, 1 left), number of defects -> degrees: azimuth from anterior (0) to left (90), elevation above level
Placement = Callable[[np.random.Generator, float, int], tuple[float, float]]


@dataclass(frozen=True)
class DefectKind:
    """The random distribution of a kind of defects."""

    placement: Placement
    ml: tuple[float, float, float]  # smallest, most likely, largest volume of a single defect
    aspect: tuple[float, float] = (0.7, 1.4)  # width / height
    squareness: tuple[float, float] = (2.0, 4.5)  # exponent of the superellipse: 2 is round
    wobble: float = 0.08  # relative amplitude of the random Fourier terms
    max_turn: float = 180.0  # degrees by which the curve is turned at most
    max_radius: float = 85.0  # mm, mean radius of the curve
    min_height: float = -20.0  # mm above the cranial centre
    min_rim: float = 0.95  # share of the rim that must be bone
    jagged: bool = False
    rectangular: bool = False


def anywhere(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    """Uniform per area: that of a spherical cap is linear in the sine of its elevation."""
    return float(rng.uniform(-180, 180)), float(np.degrees(np.arcsin(rng.uniform(0.05, 1.0))))


def _frontal_vertex(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    if defects == 1:
        return float(rng.normal(0, 5)), float(rng.uniform(48, 82))
    return side * float(rng.uniform(50, 80)), float(rng.uniform(40, 55))


def _forehead(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    return side * abs(float(rng.normal(25 if defects == 1 else 40, 10))), float(rng.uniform(-10, 8))


def _temple(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    return side * float(rng.uniform(70, 120)), float(rng.uniform(15, 42))


def _posterior_vault(rng: np.random.Generator, side: float, defects: int) -> tuple[float, float]:
    # Measured on 18 cases of SkullFix: a right-angled notch across the midline, 79 +- 7 mm wide, 62 +- 7 long,
    # 46 +- 4 high, its floor 31 +- 4 mm above the cranial centre, burr holes of 4.3 mm radius at the front corners.
    return 180 - float(rng.normal(0, 3.5)) - (0 if defects == 1 else 50 * side), float(rng.normal(52, 4.5))


KINDS: dict[str, DefectKind] = {
    "bilateral": DefectKind(_frontal_vertex, (60, 90, 140), aspect=(1.2, 1.7), max_turn=12),
    "frontoorbital": DefectKind(_forehead, (15, 35, 80), aspect=(0.9, 1.6), max_turn=25, min_height=-42, min_rim=0.6),
    "parietotemporal": DefectKind(_temple, (20, 50, 110), aspect=(0.9, 1.5), max_turn=40),
    "random_1": DefectKind(anywhere, (11, 22, 44)),
    "random_2": DefectKind(anywhere, (48, 65, 115)),
    "skullfix": DefectKind(_posterior_vault, (23, 45, 72), aspect=(1.0, 1.25), max_radius=46, rectangular=True),
    "irregular": DefectKind(anywhere, (11, 40, 120), squareness=(2, 3), wobble=0.3, jagged=True),
}


def random_curve(kind: DefectKind, aspect: float, rng: np.random.Generator) -> np.ndarray:
    """(360,) radii of mean 1: a turned superellipse with Fourier terms; jagged ones also have bays and corners."""
    turned = ANGLES - np.radians(rng.uniform(-kind.max_turn, kind.max_turn))
    p = rng.uniform(*kind.squareness)
    flat = np.abs(np.cos(turned)) / aspect**0.5, np.abs(np.sin(turned)) * aspect**0.5
    radii = (flat[0] ** p + flat[1] ** p) ** (-1 / p)
    for k in range(2, 10 if kind.jagged else 6):
        a, b = rng.normal(0, kind.wobble / k, 2)
        radii *= 1 + a * np.cos(k * ANGLES) + b * np.sin(k * ANGLES)
    if kind.jagged:
        for _ in range(rng.integers(1, 4)):
            away = np.angle(np.exp(1j * (ANGLES - rng.uniform(0, 2 * np.pi))))
            radii *= 1 - rng.uniform(0.15, 0.4) * np.exp(-0.5 * (away / np.radians(rng.uniform(10, 25))) ** 2)
        corners = np.sort(rng.uniform(0, 2 * np.pi, 40))
        radii *= 1 + np.interp(ANGLES, corners, rng.normal(0, 0.03, 40), period=2 * np.pi)
    radii = np.maximum(radii, 0.35)
    return radii / radii.mean()


def rectangle(aspect: float) -> np.ndarray:
    """(360,) radii of a rectangle of half height 1 and half width `aspect`."""
    flat = np.abs(np.cos(ANGLES)) / aspect, np.abs(np.sin(ANGLES))
    return 1 / np.maximum(*flat)
