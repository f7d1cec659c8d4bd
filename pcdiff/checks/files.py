"""The files of a report: `checks.json` and `surface.npz`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcdiff import NOTICE, __version__
from pcdiff.files import written_beside

if TYPE_CHECKING:
    from pcdiff.checks import Report


def write_checks(report: Report, path: Path) -> None:
    """Writes `checks.json`: each check with its figures, limits, verdict and a sentence; see `Report.record`."""
    with written_beside(path) as part:
        text = json.dumps(report.record(__version__, NOTICE), indent=1, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")


def write_surface(report: Report, path: Path, uncertainty_mm: np.ndarray | None = None) -> None:
    """Writes `surface.npz`: values per vertex of implant.stl (in the order of `read_stl`) that colour its surface.

    All are (V,) float32, mm. thickness_mm: of the implant. gap_mm: to the nearest bone, negative inside bone.
    uncertainty: standard deviation of the candidates' surfaces along the normal; 0 for a single candidate.
    """
    spread = np.zeros_like(report.gap_mm) if uncertainty_mm is None else uncertainty_mm.astype(np.float32)
    with written_beside(path) as part, part.open("wb") as file:
        np.savez_compressed(file, thickness_mm=report.thickness_mm, gap_mm=report.gap_mm, uncertainty=spread)
