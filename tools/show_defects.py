#!/usr/bin/env python3
"""Draws simulated craniotomies on one sheet: each kind of defect in a healthy skull, and optionally a real one.

usage: show_defects.py SKULL -o SHEET.png [--real IMPLANT] [--kinds bilateral,irregular] [--defects 2] [--seed 0]

For each defect: the defective skull, the removed piece in place, and the removed piece alone.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pcdiff.data.craniotomy import KINDS, simulate_craniotomy
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.report.colours import BONE, IMPLANT
from pcdiff.report.gallery import case_picture
from pcdiff.report.render import sheet, stack, write_png
from pcdiff.report.surfaces import shape_of

PIXEL_MM = 1.0
TITLE_PIXELS = 24
ACROSS = 3  # defects in a row of the sheet


def draw_defect(title: str, defective_skull: Volume, implant: Volume) -> np.ndarray:
    """(H, W, 3) uint8: defective skull, removed piece in place, removed piece; above them the title and its volume."""
    drawn = case_picture(shape_of(defective_skull, BONE), shape_of(implant, IMPLANT), PIXEL_MM)
    image = Image.fromarray(np.pad(drawn, ((TITLE_PIXELS, 0), (0, 0), (0, 0)), constant_values=255))
    text = f"{title}, {implant.ml:.0f} ml"
    ImageDraw.Draw(image).text((image.width / 2, 4), text, "black", ImageFont.load_default(15), "ma")
    return np.asarray(image)


def main() -> None:
    """Reads the command line, draws the defects and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("skull", type=Path, help="mask of a healthy skull")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the sheet, PNG")
    parser.add_argument("--real", type=Path, help="mask of a real implant of this skull, drawn first")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of defect, separated by commas; default: all")
    parser.add_argument("--defects", type=int, default=1, help="defects in each skull")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    skull = read_volume(options.skull)
    pictures = []
    if options.real:
        implant = read_volume(options.real)
        pictures.append(draw_defect("real", skull.with_mask(skull.mask & ~implant.mask), implant))
    for kind in options.kinds.split(","):
        pair = simulate_craniotomy(skull, kind, np.random.default_rng(options.seed), options.defects)
        pictures.append(draw_defect(kind, *pair))
    write_png(stack([sheet(pictures[n : n + ACROSS]) for n in range(0, len(pictures), ACROSS)]), options.output)


if __name__ == "__main__":
    main()
