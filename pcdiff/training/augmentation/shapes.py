"""A head in another shape: of another head, of a mixture, deformed, or generated; drawn, then made in voxels.

Shapes live in the shape model's space, where heads are posed and scaled to one size; a new head gets the size of the
heads whose shape it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from pcdiff.geometry.occupancy import Head
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, Pose
from pcdiff.prior.model import ShapePrior
from pcdiff.training.augmentation.generator import IN_PLACE, Generator
from pcdiff.training.augmentation.maps import to_images, to_rays
from pcdiff.training.augmentation.measures import Reference
from pcdiff.training.augmentation.sources import Sources
from pcdiff.training.recipes import VolumetricSamplesConfig
from pcdiff.training.volumetric.draws import draw_shape
from pcdiff.training.volumetric.warps import BOX, HEAD_SHAPE, at_axes

DEFORM_MM = 3.0  # largest standard deviation of a deformed head's velocity field
SHAPES = {
    "own": VolumetricSamplesConfig(own_shape=1, other_shape=0, deform_mm=0),
    "registered": VolumetricSamplesConfig(own_shape=0, other_shape=1, deform_mm=0),
    "mixed": VolumetricSamplesConfig(own_shape=0, other_shape=0, deform_mm=0),
    "deformed": VolumetricSamplesConfig(own_shape=1, other_shape=0, deform_mm=DEFORM_MM),
}
GENERATED = "generated"
MIN_THICKNESS_MM = 1.5  # of generated bone
EDGE = (0.5, 0.9)  # share of heads with bone, between which generated tables give way to the head's own
EDGE_SMOOTHING = 6.0  # pixels of the map


@dataclass(frozen=True)
class Shape:
    """A head and the shape that it is to take.

    source: number of the head. used: numbers of all heads that it is made of. scales: (3,) mm of the new patient for a
    millimetre of the model. field: (1, 3, *knots) mm, where each point of the new head is read in the source, both in
    model space; None for `tables`: (2, 2, R) mm, outer and inner radius of the source, and of the new head; and for
    `whole`: the new head itself, in model space, of which the source has the size alone.
    """

    kind: str
    source: int
    used: tuple[int, ...]
    scales: np.ndarray
    field: Tensor | None = None
    tables: np.ndarray | None = None
    whole: Head | None = None


def draw(
    kind: str, sources: Sources, reference: Reference, generator: Generator | None, rng: np.random.Generator
) -> Shape:
    """A random shape of a kind; reference: of the same heads; generator: for `GENERATED` ones."""
    if kind == GENERATED:
        assert generator is not None
        return _generated(sources, reference, generator, rng)
    source, used, field = draw_shape(sources.heads, SHAPES[kind], rng, range(len(sources.names)))
    scales = np.exp(np.log(sources.scales[used[1:]]).mean(0))
    return Shape(kind, source, tuple(dict.fromkeys(used)), scales, field)


def _generated(sources: Sources, reference: Reference, generator: Generator, rng: np.random.Generator) -> Shape:
    """A whole head, or tables on the head nearest to them; the size is that of another head, drawn at random."""
    prior, size = generator.prior, generator.config.network.size
    seed, heads = int(rng.integers(2**31)), len(sources.names)
    if generator.of_volumes:
        sized = int(rng.integers(heads))
        return Shape(GENERATED, sized, (sized,), sources.scales[sized], whole=generator.heads(1, seed)[0])
    tables = generator.tables(1, seed)[0]
    nearest = int(reference.distances(tables)[:heads].argmin())
    sized = int(rng.integers(heads))
    # the head's own tables at the generator's resolution: finer relief stays as it is in the head
    own = prior.mean + to_rays(to_images(sources.deviations[nearest : nearest + 1], size))[0]
    weight = _vault_weight(prior)
    tables = own + weight * (tables - own)
    radii = [np.stack([outer, outer - np.maximum(thickness, MIN_THICKNESS_MM)]) for outer, thickness in (own, tables)]
    return Shape(GENERATED, nearest, (nearest, sized), sources.scales[sized], tables=np.stack(radii))


def _vault_weight(prior: ShapePrior) -> np.ndarray:
    """(R,) 1 on the vault, 0 towards face, base and the edge of the map, where generated tables mean little."""
    present = gaussian_filter(MAP.to_image(prior.present), EDGE_SMOOTHING)[MAP.inside]
    return np.clip((present - EDGE[0]) / (EDGE[1] - EDGE[0]), 0, 1)


def make_head(head: Head, pose: Pose, shape: Shape, spacing: float) -> Volume:
    """The mask of a head in another shape, in voxels of `spacing` mm; the axes are the patient's.

    head: without loose pieces. pose: of the head on the shape model's mean.
    """
    low, high = np.array(BOX.low) * shape.scales, np.array(BOX.high) * shape.scales
    count = np.floor((high - low) / spacing).astype(int) + 1
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = low
    axes = [(start + spacing * np.arange(n)) / scale for start, n, scale in zip(low, count, shape.scales, strict=True)]
    if shape.whole is not None:
        head, pose, field = shape.whole, IN_PLACE, torch.zeros(1, 3, *BOX.knots)
    elif shape.tables is not None:
        field = _radial_field(shape.tables)
    else:
        assert shape.field is not None
        field = shape.field
    to_index = np.linalg.inv(head.affine)
    linear = to_index[:3, :3] @ pose.linear
    start = to_index[:3, :3] @ pose.shift + to_index[:3, 3]
    # knots in voxels of the head: a posed point is linear in its coordinates, and the interpolation exact for lines
    knots = (BOX.points(field.shape[2:]) + field[0].movedim(0, -1)).numpy() @ linear.T + start
    knots = torch.from_numpy(knots.astype(np.float32))
    mask = np.zeros(count, bool, order="F")
    for i in range(0, int(count[0]), 16):  # by slabs: the coordinates of the whole grid would take half a gigabyte
        index = at_axes(knots, (axes[0][i : i + 16], axes[1], axes[2])).movedim(-1, 0).numpy()
        mask[i : i + 16] = map_coordinates(head.occupancy, index, order=1, output=np.float32) >= 127.5
    return Volume(mask, affine)


def _radial_field(tables: np.ndarray) -> Tensor:
    """(1, 3, *HEAD_SHAPE) mm: points move along their rays, so that the source's tables lie at the new ones.

    Below the inner table the radius is scaled, between the tables it is interpolated, above the outer table it is
    shifted. tables: see `Shape`.
    """
    points = BOX.points(HEAD_SHAPE).numpy().astype(np.float64)
    radius = np.linalg.norm(points, axis=-1)
    pixels = np.moveaxis(MAP.to_pixel(points / np.maximum(radius, 1e-6)[..., None]), -1, 0)
    (outer, inner), (new_outer, new_inner) = (
        [map_coordinates(MAP.filled(part), pixels, order=1, mode="nearest") for part in pair] for pair in tables
    )
    share = (radius - new_inner) / (new_outer - new_inner)
    read = np.where(
        share < 0,
        radius * inner / new_inner,
        np.where(share > 1, radius - new_outer + outer, inner + share * (outer - inner)),
    )
    field = points * (read / np.maximum(radius, 1e-6) - 1)[..., None]
    return torch.from_numpy(np.moveaxis(field, -1, 0)[None].astype(np.float32))
