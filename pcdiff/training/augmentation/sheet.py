"""A picture of an augmented data set: some of its cases, as surfaces and as sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pcdiff.imaging.volumes import read_volume
from pcdiff.report.colours import BONE, IMPLANT, srgb
from pcdiff.report.render import render, sheet, stack, write_png
from pcdiff.report.surfaces import oblique_view, outward_direction, shape_of

CASES = 4  # of each kind of shape
MM_PER_PIXEL = 1.5
VERTICES = 20_000  # of a surface


def write_sheet(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes sheet.png: a row for each kind of shape, and for each case its surface and two sections."""
    rows = []
    for kind in dict.fromkeys(record["shape"] for record in records):
        some = [record for record in records if record["shape"] == kind][:CASES]
        rows.append(sheet([_picture(folder, record) for record in some]))
    write_png(stack(rows), folder / "sheet.png")


def _picture(folder: Path, record: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8: a case with a line of text above it."""
    skull, implant = (read_volume(folder / part / f"{record['case']}.nrrd") for part in ("defective_skull", "implant"))
    bone, piece = shape_of(skull, BONE, VERTICES), shape_of(implant, IMPLANT, VERTICES)
    surface = render([bone, piece], oblique_view(outward_direction(bone, piece)), MM_PER_PIXEL)
    middle = np.argwhere(implant.mask).mean(0).astype(int)
    step = max(1, round(MM_PER_PIXEL / float(skull.spacing[0])))
    sections = []
    for axis in (2, 0):
        some, there = (np.take(v.mask, middle[axis], axis)[::step, ::step].T for v in (skull, implant))
        colours = np.ones((*some.shape, 3))
        colours[some], colours[there] = np.array(BONE) * 0.75, IMPLANT
        flipped = colours if axis == 2 else colours[::-1]  # superior is up, anterior is up or left
        sections.append(np.round(255 * srgb(flipped)).astype(np.uint8))
    picture = sheet([surface, *sections])
    text = Image.new("RGB", (picture.shape[1], 14), "white")
    line = f"{record['case']} {record['shape']} of {'+'.join(record['heads'])}, {record['defect']}"
    ImageDraw.Draw(text).text((2, 1), line, "black")
    return stack([np.asarray(text), picture])
