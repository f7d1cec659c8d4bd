"""The marks for plates and screws of a report: a line for the plan, and a section with a table and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pcdiff.report.colours import MARK
from pcdiff.report.page import picture_html
from pcdiff.report.render import Canvas
from pcdiff.report.scene import MARK_MM, Scene
from pcdiff.report.slices import place
from pcdiff.report.surfaces import beads
from pcdiff.report.templates import fill

PIXEL_MM = 0.4
NUMBER_PX = 20
NUMBER_MM = 8.0  # from a mark to its number, on bone


def fixation_line(marks: Sequence[Mapping[str, Any]]) -> str:
    """The marks in a line, with their numbers: thickness of bone and implant; empty without any."""
    each = (f"{n}:\u00a0{mark['bone_mm']:.1f}\u00a0/\u00a0{mark['implant_mm']:.1f}" for n, mark in enumerate(marks, 1))
    return ", ".join(each)


def fixation_section(record: Mapping[str, Any], scene: Scene) -> Markup:
    """Table and pictures of the marks; empty without any."""
    marks = record.get("fixation") or []
    rows = [
        {"number": n, "place": place(np.array(mark["point"])), "bone": mark["bone_mm"], "implant": mark["implant_mm"]}
        for n, mark in enumerate(marks, 1)
    ]
    pictures = []
    for defect in sorted({mark["defect"] for mark in marks}):
        numbered = {n: mark for n, mark in enumerate(marks, 1) if mark["defect"] == defect}
        pictures.append(picture_html(_picture(scene, numbered), "fixation marks, seen from outside", "whole"))
    return fill("fixation.html", rows=rows, pictures=pictures) if rows else Markup()


def _picture(scene: Scene, marks: Mapping[int, Mapping[str, Any]]) -> np.ndarray:
    """(H, W, 3) uint8: skull and implant from outside, with the marks and their numbers."""
    from PIL import Image, ImageDraw, ImageFont

    names = ("point", "normal", "across")
    points, normals, across = (np.array([mark[name] for mark in marks.values()]) for name in names)
    canvas = Canvas([scene.skull.shape], normals.mean(axis=0), PIXEL_MM)
    for shape in (scene.skull.shape, scene.implant.shape, beads(points, MARK, MARK_MM)):
        canvas.add(shape)
    picture = Image.fromarray(canvas.picture())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(NUMBER_PX)
    for number, at in zip(marks, canvas.pixels(points - NUMBER_MM * across), strict=True):
        draw.text(tuple(at), str(number), fill=(20, 20, 20), font=font, anchor="mm")
    return np.array(picture)
