"""What a scan is and which defects it has, without a design."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.input_check import InputCheck
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.fit import PriorFit, fit
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.regions import Defect, openings_of


@dataclass(frozen=True)
class ScanInfo:
    """What was found in a scan.

    check: of the input. defects: in the order of their numbers. notes: of the fit. why_none: why no defect is listed,
    empty otherwise. doubtful: numbers of those that may be natural openings; `design` leaves them out unless asked.
    """

    check: InputCheck
    defects: tuple[Defect, ...] = ()
    notes: tuple[str, ...] = ()
    why_none: str = ""
    doubtful: tuple[int, ...] = ()

    def record(self) -> dict[str, Any]:
        """For `pcdiff info --json`: the input check, `notes`, `defects` with their doubts, and `why_none`."""
        defects = [asdict(defect) | {"doubtful": defect.label in self.doubtful} for defect in self.defects]
        return asdict(self.check) | {"notes": list(self.notes), "defects": defects, "why_none": self.why_none or None}


def scan_info(source: Path, settings: Settings, picture: Path | None = None) -> ScanInfo:
    """Reads a scan and fits the shape model. picture: a PNG with a view of each defect, written if there is one.

    Raises InputError for a scan that cannot be read.
    """
    skull, check, _ = settings.read_head(source)
    try:
        found = fit(ShapePrior.shipped(), skull, settings.axes_of(check), "all")
    except InputError as error:
        return ScanInfo(check, why_none=str(error))
    if picture is not None:
        from pcdiff.report.render import write_png

        write_png(defects_picture(skull, found), picture)
    defects, _ = openings_of(found, skull)
    return ScanInfo(check, tuple(defects), found.notes, doubtful=found.doubtful)


def defects_picture(skull: Volume, fit: PriorFit) -> np.ndarray:
    """(H, W, 3) uint8: for each defect a view of the skull with the missing outer surface as points."""
    from pcdiff.report.colours import BONE, IMPLANT
    from pcdiff.report.gallery import BEAD_MM, PIXEL_MM
    from pcdiff.report.render import render, sheet
    from pcdiff.report.surfaces import beads, oblique_view, shape_of

    bone, centre = shape_of(skull, BONE), fit.pose.shift
    surface = fit.completed_surface()
    assert surface.defect is not None
    assert surface.normals is not None
    outer = ((surface.points - centre) * surface.normals).sum(1) > 0
    views = []
    for label in range(1, fit.defects + 1):
        points = surface.points[(surface.defect == label) & outer]
        outward = points.mean(0) - centre
        view = oblique_view(outward / np.linalg.norm(outward))
        views.append(render([bone, beads(points[::2], IMPLANT, BEAD_MM)], view, PIXEL_MM))
    return sheet(views)
