"""A line of text as strokes of one width, for letters that are cut into a surface: capitals, digits, a few marks."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import manifold3d

LETTER_MM = 5.0  # height of a capital
STROKE_MM = 0.7
ASPECT, GAP_MM = 0.56, 1.5  # of the strokes' centre lines: 2.4 mm wide, and 0.8 mm between two letters
WIDTH, HEIGHT = 4, 6  # of a letter's grid
ROUND = 16  # sides of a stroke's round end
SIMPLE_MM = 0.02  # nearer to a straight line, points are left out: they would make slivers of a cut

# Polylines on the grid, x and y of each point as two digits; a line of one point is a dot.
GLYPHS = {
    " ": "",
    "+": "03 43|21 25",
    "-": "13 33",
    ".": "20",
    "/": "00 46",
    "_": "00 40",
    "0": "10 01 05 16 36 45 41 30 10|12 34",
    "1": "14 26 20|10 30",
    "2": "05 16 36 45 44 00 40",
    "3": "05 16 36 45 44 33 23|33 42 41 30 10 01",
    "4": "30 36 02 42",
    "5": "46 06 03 33 42 41 30 10 01",
    "6": "45 36 16 05 01 10 30 41 42 33 13 02",
    "7": "06 46 10",
    "8": "13 04 05 16 36 45 44 33 13 02 01 10 30 41 42 33",
    "9": "01 10 30 41 45 36 16 05 04 13 33 44",
    "A": "00 26 40|12 32",
    "B": "00 06 36 45 44 33 03|33 42 41 30 00",
    "C": "45 36 16 05 01 10 30 41",
    "D": "00 06 26 44 42 20 00",
    "E": "46 06 00 40|03 33",
    "F": "46 06 00|03 33",
    "G": "45 36 16 05 01 10 30 41 43 23",
    "H": "00 06|40 46|03 43",
    "I": "20 26|16 36|10 30",
    "J": "46 41 30 10 01",
    "K": "00 06|46 03 40",
    "L": "06 00 40",
    "M": "00 06 23 46 40",
    "N": "00 06 40 46",
    "O": "10 01 05 16 36 45 41 30 10",
    "P": "00 06 36 45 44 33 03",
    "Q": "10 01 05 16 36 45 41 30 10|22 40",
    "R": "00 06 36 45 44 33 03|23 40",
    "S": "45 36 16 05 04 13 33 42 41 30 10 01",
    "T": "06 46|26 20",
    "U": "06 01 10 30 41 46",
    "V": "06 20 46",
    "W": "06 10 23 30 46",
    "X": "00 46|06 40",
    "Y": "06 23 46|23 20",
    "Z": "06 46 00 40",
}


def is_drawable(text: str) -> bool:
    """Whether every character has a glyph, and one of them is more than a space."""
    return bool(text.strip()) and all(letter in GLYPHS for letter in text)


def text_strokes(text: str) -> list[np.ndarray]:
    """The centre lines of a text around its middle, x to the right and y up: (N, 2) mm each.

    text: of the keys of `GLYPHS`.
    """
    height = LETTER_MM - STROKE_MM
    scale = np.array([ASPECT * height / WIDTH, height / HEIGHT])
    pitch = ASPECT * height + GAP_MM
    left = -(pitch * len(text) - GAP_MM) / 2
    strokes = []
    for number, letter in enumerate(text):
        for line in filter(None, GLYPHS[letter].split("|")):
            points = np.array([[int(digit) for digit in point] for point in line.split()], float)
            strokes.append(points * scale + [left + pitch * number, -height / 2])
    return strokes


def on_strokes(points: np.ndarray, strokes: list[np.ndarray]) -> np.ndarray:
    """(N,) bool: which points (N, 2) lie in the strokes around centre lines."""
    nearest = np.full(len(points), np.inf)
    for line in strokes:
        for start, end in pairwise(line) if len(line) > 1 else [(line[0], line[0])]:
            along = (points - start) @ (end - start) / max(float((end - start) @ (end - start)), 1e-9)
            foot = start + np.clip(along, 0, 1)[:, None] * (end - start)
            nearest = np.minimum(nearest, np.linalg.norm(points - foot, axis=1))
    return nearest < STROKE_MM / 2 + SIMPLE_MM


def stroked(strokes: list[np.ndarray]) -> manifold3d.CrossSection:
    """The area of strokes around centre lines."""
    import manifold3d

    dot = manifold3d.CrossSection.circle(STROKE_MM / 2, ROUND)
    parts = []
    for line in strokes:
        ends = [dot.translate(tuple(point)) for point in line]
        parts += [manifold3d.CrossSection.batch_hull(list(pair)) for pair in pairwise(ends)] or ends
    return manifold3d.CrossSection.batch_boolean(parts, manifold3d.OpType.Add).simplify(SIMPLE_MM)
