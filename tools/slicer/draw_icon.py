"""Draws the icon of the Slicer module: a skull from the front, with an implant in its defect.

python tools/slicer/draw_icon.py
"""

from pathlib import Path

from PIL import Image, ImageDraw

ICON = Path(__file__).parent / "PcdiffImplant" / "Resources" / "Icons" / "PcdiffImplant.png"
SIZE, SCALE = 128, 8  # pixels; drawn larger and reduced, so that edges are smooth
BONE, IMPLANT, OPEN = (214, 205, 186), (72, 168, 196), (0, 0, 0, 0)
VAULT = (14, 6, 114, 98)  # boxes: left, top, right, bottom
JAW = (38, 78, 90, 122)
ORBITS = ((32, 54, 58, 78), (70, 54, 96, 78))
NOSE = ((64, 76), (56, 90), (72, 90))
DEFECT = (-85, -20)  # degrees, clockwise from the right


def main() -> None:
    """Draws and writes the icon."""
    image = Image.new("RGBA", (SIZE * SCALE,) * 2)
    draw = ImageDraw.Draw(image)
    draw.ellipse(_scaled(VAULT), BONE)
    draw.rounded_rectangle(_scaled(JAW), 8 * SCALE, BONE)
    draw.arc(_scaled(VAULT), *DEFECT, OPEN, 26 * SCALE)
    draw.arc(_scaled(VAULT), DEFECT[0] + 4, DEFECT[1] - 4, IMPLANT, 22 * SCALE)
    for orbit in ORBITS:
        draw.ellipse(_scaled(orbit), OPEN)
    draw.polygon([(x * SCALE, y * SCALE) for x, y in NOSE], OPEN)
    for x in (50, 63, 76):
        draw.rectangle(_scaled((x, 104, x + 2, 122)), OPEN)
    image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(ICON, optimize=True)


def _scaled(box: tuple[int, ...]) -> list[int]:
    return [value * SCALE for value in box]


if __name__ == "__main__":
    main()
