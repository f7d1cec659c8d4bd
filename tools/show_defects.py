#!/usr/bin/env python3
"""A sheet of virtual craniotomies, to be looked at: each kind of defect cut into a healthy skull, beside a real one.

usage: show_defects.py SKULL -o SHEET.png [--real IMPLANT] [--kinds bilateral,irregular] [--defects 2] [--seed 0]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

from pcdiff.data.craniotomy import KINDS, simulate_craniotomy
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume

PIXEL = 0.7  # mm


def shell(volume: Volume) -> np.ndarray:
    """(N, 3) mm, the border voxels of a mask."""
    box = ndimage.find_objects(volume.mask.astype(np.uint8))[0]
    part = volume.crop([s.start for s in box], [s.stop for s in box])
    return part.to_mm(np.argwhere(part.mask & ~ndimage.binary_erosion(part.mask)))


def view(towards: np.ndarray) -> np.ndarray:
    """(3, 3) rows right, up, towards the eye, for an eye that looks from a direction of the patient."""
    up = np.array([0.0, -1.0, 0.0]) if abs(towards[2]) > 0.95 * np.linalg.norm(towards) else np.array([0.0, 0.0, 1.0])
    eye = towards / np.linalg.norm(towards)
    right = np.cross(up, eye) / np.linalg.norm(np.cross(up, eye))
    return np.stack([right, np.cross(eye, right), eye])


def shaded(points: np.ndarray, axes: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthographic picture: brightness (H, W) from the slope of the nearest surface, and its depth in mm."""
    seen = points @ axes.T
    size = np.ceil((high - low) / PIXEL).astype(int) + 3
    column, row = ((seen[:, :2] - low) / PIXEL).astype(int).T + 1
    depth = np.full(size, -np.inf)
    np.maximum.at(depth, (column, row), seen[:, 2])
    depth = ndimage.grey_closing(depth, 3)
    empty = ~np.isfinite(depth)
    smooth = ndimage.gaussian_filter(np.where(empty, depth[~empty].min(), depth), 0.8)
    right, up = np.gradient(smooth, PIXEL)
    light = np.clip((0.82 - 0.35 * right + 0.45 * up) / np.sqrt(1 + right**2 + up**2), 0, 1)
    return np.where(empty, 1.0, 0.15 + 0.8 * light).T[::-1], depth.T[::-1]


def draw(row: np.ndarray, name: str, defective: Volume, implant: Volume) -> None:
    """Three pictures: into the defect, from beside it with the implant in colour, the implant alone."""
    bone, piece = shell(defective), shell(implant)
    everything = np.r_[bone, piece]
    middle = (everything.min(axis=0) + everything.max(axis=0)) / 2
    ahead = piece.mean(axis=0) - middle
    beside = ahead / np.linalg.norm(ahead) + 0.8 * np.cross([0.0, 0.0, 1.0], ahead / np.linalg.norm(ahead))
    for axis, towards, coloured in ((row[0], ahead, False), (row[1], beside, True)):
        axes = view(towards)
        flat = (everything @ axes.T)[:, :2]
        window = flat.min(axis=0), flat.max(axis=0)
        light, depth = shaded(bone, axes, *window)
        picture = np.repeat(light[..., None], 3, axis=2)
        if coloured:
            tint, near = shaded(piece, axes, *window)
            front = near > depth
            picture[front] = tint[front][:, None] * [1.0, 0.72, 0.35]
        axis.imshow(picture, vmin=0, vmax=1)
    axes = view(beside)
    flat = (piece @ axes.T)[:, :2]
    row[2].imshow(shaded(piece, axes, flat.min(axis=0), flat.max(axis=0))[0], cmap="gray", vmin=0, vmax=1)
    row[0].set_title(f"{name}, {implant.ml:.0f} ml", fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("skull", type=Path, help="mask of a healthy skull")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the sheet, PNG")
    parser.add_argument("--real", type=Path, help="mask of a real implant of this skull, drawn first")
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated, default all")
    parser.add_argument("--defects", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    skull = read_volume(options.skull)
    pairs = []
    if options.real:
        implant = read_volume(options.real)
        pairs.append(("real", skull.with_mask(skull.mask & ~implant.mask), implant))
    for kind in options.kinds.split(","):
        pairs.append((kind, *simulate_craniotomy(skull, kind, np.random.default_rng(options.seed), options.defects)))

    across = 3
    figure, axes = plt.subplots(-(-len(pairs) // across), 3 * across, figsize=(18, 2.2 * -(-len(pairs) // across)))
    for axis in axes.ravel():
        axis.axis("off")
    for row, pair in zip(axes.reshape(-1, 3), pairs, strict=False):
        draw(row, *pair)
    figure.tight_layout()
    figure.savefig(options.output, dpi=90)


if __name__ == "__main__":
    main()
