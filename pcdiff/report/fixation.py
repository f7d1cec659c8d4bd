"""The marks for plates and screws of a report: a line for the plan, and a section with a table and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
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
from pcdiff.report.words import defect_numbers

PIXEL_MM = 0.4
NUMBER_PX = 24
AROUND_MM = 15.0  # of skull and implant beside a mark
NUMBER_MM = 8.0  # from a mark to its number, on bone


def fixation_line(record: Mapping[str, Any]) -> str:
    """The marks of each defect in a line, with their numbers: thickness of bone and implant; empty without any."""
    parts = []
    for number, marks in _by_defect(record).items():
        of = f"of defect\u00a0{number}, " if record["defects"] > 1 else ""
        each = (f"{mark['bone_mm']:.1f}\u00a0/\u00a0{mark['implant_mm']:.1f}" for mark in marks.values())
        parts.append(f"{of}from mark\u00a0{min(marks)} on: {', '.join(each)}")
    return "; ".join(parts)


def fixation_section(record: Mapping[str, Any], scene: Scene) -> Markup:
    """Table and pictures of the marks; empty without any."""
    several = record["defects"] > 1
    rows, pictures = [], []
    for defect, marks in _by_defect(record).items():
        for n, mark in marks.items():
            row = {"number": n, "defect": defect, "place": place(np.array(mark["point"]))}
            rows.append(row | {"bone": mark["bone_mm"], "implant": mark["implant_mm"]})
        caption = f"fixation marks{f' of defect {defect}' if several else ''}, seen from outside"
        pictures.append(picture_html(_picture(scene, marks), caption, "whole"))
    return fill("fixation.html", rows=rows, pictures=pictures, several=several) if rows else Markup()


def _by_defect(record: Mapping[str, Any]) -> dict[int, dict[int, Mapping[str, Any]]]:
    """Number of each defect with marks -> number of each mark, from 1 through all defects -> the mark."""
    numbers, found = defect_numbers(record), dict[int, dict[int, Mapping[str, Any]]]()
    for n, mark in enumerate(record.get("fixation") or [], 1):
        found.setdefault(numbers.get(mark["defect"], mark["defect"]), {})[n] = mark
    return found


def _picture(scene: Scene, marks: Mapping[int, Mapping[str, Any]]) -> np.ndarray:
    """(H, W, 3) uint8: skull and implant around the marks from outside, with their numbers."""
    from PIL import Image, ImageDraw, ImageFont

    names = ("point", "normal", "across")
    points, normals, across = (np.array([mark[name] for mark in marks.values()]) for name in names)
    corners = AROUND_MM * np.array(list(product((-1, 1), repeat=3)))
    room = replace(scene.skull.shape, vertices=(points[:, None] + corners).reshape(-1, 3))
    canvas = Canvas([room], normals.mean(axis=0), PIXEL_MM)
    for shape in (scene.skull.shape, scene.implant.shape, beads(points, MARK, MARK_MM)):
        canvas.add(shape)
    picture = Image.fromarray(canvas.picture())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(NUMBER_PX)
    for number, at in zip(marks, canvas.pixels(points - NUMBER_MM * across), strict=True):
        draw.text(tuple(at), str(number), fill=(20, 20, 20), font=font, anchor="mm")
    return np.array(picture)
