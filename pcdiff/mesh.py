"""A triangle mesh in patient millimetres, and the files it becomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """Triangles, wound so that normals point out of the solid.

    vertices: (V, 3) float, patient millimetres (LPS). faces: (F, 3) int.
    """

    vertices: np.ndarray
    faces: np.ndarray
