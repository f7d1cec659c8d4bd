"""Tables along the rays of the map as images for generative models, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pcdiff.prior.direction_map import MAP, SIZE
from pcdiff.prior.model import ShapePrior

UNIT_MM = (1.0, 1.5)  # of outer radius and thickness, about the standard deviation of heads, so that images have 1
SMOOTHING = 0.8  # pixels of the map, before it is read at fewer places


def to_images(deviations: np.ndarray, size: int) -> Tensor:
    """(N, 2, R) mm from the mean -> (N, 2, size, size); off the map the nearest ray's value."""
    maps = np.stack([np.stack([MAP.filled(MAP.smoothed(part, SMOOTHING)) for part in head]) for head in deviations])
    return _resized(torch.from_numpy(maps).float(), size) / torch.tensor(UNIT_MM)[:, None, None]


def to_rays(images: Tensor) -> np.ndarray:
    """(N, 2, size, size) -> (N, 2, R) float32 mm from the mean."""
    maps = functional.interpolate(images * torch.tensor(UNIT_MM)[:, None, None], (SIZE, SIZE), mode="bicubic",
                                  align_corners=True)  # fmt: skip
    return maps.numpy()[:, :, MAP.inside]


def image_weight(prior: ShapePrior, size: int) -> Tensor:
    """(size, size) share of heads with bone, 0 off the map."""
    return _resized(torch.from_numpy(MAP.to_image(prior.present)).float()[None, None], size)[0, 0]


def _resized(maps: Tensor, size: int) -> Tensor:
    return functional.interpolate(maps, (size, size), mode="bilinear", align_corners=True)
