"""The whole flow on one screen: a defective skull in, a fitting implant out."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from pcdiff.design.fitting import AS_DESIGNED, FitOptions, apply_fit_options
from pcdiff.errors import InputError
from pcdiff.geometry.grid import bounding_box
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.surface import volume_to_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Method, Proposal


@dataclass(frozen=True)
class Design:
    """An implant and how it came about.

    implant: on the skull's own grid, disjoint from the skull. mesh: its surface, mm, LPS.
    members: each candidate of the ensemble as an implant of its own (empty for a single candidate or when not asked).
    seconds: by stage. trimmed_ml, drains: see `shaping.FittedImplant`.
    """

    implant: Volume
    mesh: Mesh
    proposal: Proposal
    members: list[Volume]
    seconds: dict[str, float]
    trimmed_ml: float = 0.0
    drains: int = 0

    @property
    def uncertainty(self) -> np.ndarray:
        """(I, J, K) float32: each voxel's standard deviation over the members, 0.5 where half hold it."""
        held = np.zeros_like(self.implant.mask, np.uint16)  # by how many
        for member in self.members:
            held += member.mask
        box = tuple(slice(low, high) for low, high in zip(*bounding_box(held), strict=True))
        share = held[box] / np.float32(len(self.members))
        values = np.zeros(held.shape, np.float32, order="F")  # as files are written
        values[box] = np.sqrt(share * (1 - share))
        return values


def design(
    skull: Volume,
    method: Method,
    ensemble: int = 1,
    seed: int = 0,
    backend: str = "spectral",
    device: str = "cpu",
    keep_members: bool = False,
    fitting: FitOptions = AS_DESIGNED,
) -> Design:
    """Designs the implant that closes every defect of a defective skull, made to fit as asked.

    Raises InputError when there is no defect to close, the skull is none, or its voxels are too coarse for the fitting.
    """
    fitting.needs(skull.spacing)  # told at once, not after the design
    started = time.perf_counter()
    proposal = method(skull, ensemble, seed, device)
    generated = time.perf_counter()
    implant, members = proposal.implants(skull, backend, keep_members)
    if not implant.mask.any():
        raise InputError(
            "no implant: the defect found is thinner than the scan's voxels; is the skull really defective?"
        )
    centre = proposal.fit.pose.shift
    fit = apply_fit_options(implant, skull, centre, fitting)
    members = [apply_fit_options(m, skull, centre, fitting).implant if m.mask.any() else m for m in members]
    solid = time.perf_counter()
    mesh = volume_to_mesh(fit.implant)
    return Design(
        fit.implant,
        mesh,
        proposal,
        members,
        {
            "points": generated - started,
            "reconstruct": solid - generated,
            "mesh": time.perf_counter() - solid,
        },
        fit.trimmed_ml,
        fit.drains,
    )
