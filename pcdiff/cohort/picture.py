"""A small picture of a case for the table of many: bone and implant, seen from the implant's side."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from scipy import ndimage

from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.pipeline.record import SKULL

SIZE = 120  # pixels of the longer side
MAX_VOXELS = 160  # along an axis
SMOOTH = 1.5  # mm
QUALITY = 55  # of WebP: two kilobytes
BONE, IMPLANT, GROUND = np.array([(226, 216, 196), (26, 122, 158), (255, 255, 255)], np.float32)
UP = {0: 2, 1: 2, 2: 1}  # patient axis of the view -> patient axis that is drawn upwards; -y is anterior


def case_picture(folder: Path) -> str:
    """A data URL of the case in a folder: its skull and its implant, looked at along the axis nearest to the implant.

    Drawn from the voxels that are hit first, shaded by the slope of their depth.
    """
    skull, implant = read_volume(folder / SKULL), read_volume(folder / "implant.nrrd")
    step = max(1, max(skull.mask.shape) // MAX_VOXELS)
    skull, implant = _thinned(skull, step), _thinned(implant, step)
    axis, sign = _view(skull, implant)
    depth, is_implant, rows, columns = _seen(skull, implant, axis, sign)
    picture = _shaded(depth, is_implant, (rows, columns))
    return _data_url(picture, depth.shape[0] * rows, depth.shape[1] * columns)


def _thinned(volume: Volume, step: int) -> Volume:
    """Every `step`th voxel along each axis."""
    affine = volume.affine.copy()
    affine[:3, :3] *= step
    return Volume(volume.mask[::step, ::step, ::step].copy(), affine)


def _patient_axes(volume: Volume) -> list[int]:
    """The patient axis nearest to each index axis, each once."""
    left = np.abs(volume.affine[:3, :3] / volume.spacing)
    found = [0, 0, 0]
    for _ in range(3):
        row, column = np.unravel_index(left.argmax(), left.shape)
        found[int(column)] = int(row)
        left[row], left[:, column] = -1, -1
    return found


def _view(skull: Volume, implant: Volume) -> tuple[int, int]:
    """Index axis along which the implant lies farthest from the middle of the skull, and the side on which it lies."""
    middles = [np.argwhere(each.mask).mean(0) if each.mask.any() else None for each in (implant, skull)]
    if middles[0] is None or middles[1] is None:
        return _patient_axes(skull).index(0), 1
    away = (middles[0] - middles[1]) * skull.spacing
    down = _patient_axes(skull).index(2)
    if away[down] * np.sign(skull.affine[2, down]) < 0:
        away[down] = 0  # from below there is nothing to see
    axis = int(np.abs(away).argmax())
    return axis, 1 if away[axis] > 0 else -1


def _seen(skull: Volume, implant: Volume, axis: int, sign: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(H, W) depth in mm of what is hit first, infinite beside the head; whether it is implant; mm a row and column."""
    patient = _patient_axes(skull)
    up = patient.index(UP[patient[axis]])
    across = 3 - axis - up
    order = (up, across, axis)
    masks = [each.mask.transpose(order) for each in (skull, implant)]
    signs = [np.sign(skull.affine[patient[index], index]) for index in order]
    towards_top = -signs[0] if patient[up] == 1 else signs[0]  # LPS: +y is posterior, and the front is drawn above
    # The viewer's right: with the top `up` and the view from `sign`, the cross product of both in patient axes.
    top, out = np.zeros(3), np.zeros(3)
    top[patient[up]] = -1 if patient[up] == 1 else 1
    out[patient[axis]] = sign * signs[2]
    right = np.cross(top, out)[patient[across]] * signs[1]
    bone, filled = (
        mask[:: -1 if towards_top > 0 else 1, :: 1 if right > 0 else -1, :: -1 if sign > 0 else 1] for mask in masks
    )
    solid = bone | filled
    first = solid.argmax(2)
    hit = np.take_along_axis(solid, first[..., None], 2)[..., 0]
    is_implant = np.take_along_axis(filled, first[..., None], 2)[..., 0] & hit
    spacing = skull.spacing
    depth = np.where(hit, first * spacing[axis], np.inf)
    return depth, is_implant, float(spacing[up]), float(spacing[across])


def _shaded(depth: np.ndarray, is_implant: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """(H, W, 3) uint8: Lambert's law with the light above the viewer's left shoulder."""
    hit = np.isfinite(depth)
    filled = np.where(hit, depth, depth[hit].max() if hit.any() else 0)
    smooth = ndimage.gaussian_filter(filled, [SMOOTH / each for each in spacing])  # the terraces of the voxels
    slopes = np.gradient(smooth, *spacing) if min(depth.shape) > 1 else [np.zeros_like(filled)] * 2
    light = (1 - 0.5 * slopes[0] - 0.35 * slopes[1]) / np.sqrt(1 + slopes[0] ** 2 + slopes[1] ** 2)
    bright = np.clip(0.2 + 0.8 * light, 0.2, 1.1)[..., None]
    colours = np.where(is_implant[..., None], IMPLANT, BONE) * bright
    return np.clip(np.where(hit[..., None], colours, GROUND), 0, 255).astype(np.uint8)


def _data_url(picture: np.ndarray, height_mm: float, width_mm: float) -> str:
    from PIL import Image

    scale = SIZE / max(height_mm, width_mm)
    size = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    file = BytesIO()
    Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
