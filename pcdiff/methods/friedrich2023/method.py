"""The method of Friedrich et al. (MICCAI 2023) on its own weights: a baseline in the same evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pcdiff.errors import InputError
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.surface import sample_surface
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.friedrich2023.checkpoints import PaperModel
from pcdiff.methods.friedrich2023.points import PaperFrame, outer_mesh
from pcdiff.methods.friedrich2023.sampling import sample_points
from pcdiff.methods.friedrich2023.volume import volume_from_points
from pcdiff.methods.registry import WeightsFiles
from pcdiff.nets.devices import on_device

log = logging.getLogger(__name__)
REPORT_EVERY = 50  # denoising steps between two lines of the log


@dataclass(frozen=True)
class PaperCandidate:
    """Points of the implant without normals; the point-to-volume network turns them into a volume."""

    points: PointCloud
    model: PaperModel
    device: str = "cpu"

    def to_volume(self, skull: Volume) -> Volume:
        """See `Candidate`."""
        return self.fuse([self], skull)

    @staticmethod
    def fuse(candidates: Sequence[PaperCandidate], skull: Volume) -> Volume:
        """The majority of several candidates, as published."""
        model, device = candidates[0].model, candidates[0].device
        assert model.voxelisation is not None
        network, config = on_device(model.voxelisation, device), model.config
        clouds = [candidate.points.points for candidate in candidates]
        return volume_from_points(clouds, skull, network, config.spacing_mm, config.resolution, config.faithful)


@dataclass(frozen=True)
class PaperMethod:
    """Both networks of the paper. Each candidate draws its own points of the skull and its own noise."""

    model: PaperModel

    @classmethod
    def load(cls, path: Path) -> PaperMethod:
        """Reads what `pcdiff import-checkpoint` or `pcdiff train` wrote. Raises InputError for half a model."""
        model = PaperModel.load(path)
        for name in ("denoiser", "voxelisation"):
            if getattr(model, name) is None:
                raise InputError(
                    f"{path}: expected both of the paper's networks, found no {name}; import both together"
                )
        return cls(model)

    def __call__(self, skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        """See `Method`."""
        config = self.model.config
        assert self.model.denoiser is not None
        network = on_device(self.model.denoiser, device)
        mesh = outer_mesh(skull)
        candidates = []
        for member in range(ensemble):
            seen = sample_surface(mesh, config.network.skull_points, np.random.default_rng([seed, member])).points
            frame = PaperFrame.of(seen, skull.affine, config.faithful)
            points = torch.from_numpy(frame.to_network(seen)).float()[None].to(device)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + member)

            def report(step: int, *_: object, member: int = member) -> None:
                if step % REPORT_EVERY == 0:
                    log.info("candidate %d of %d: step %d of %d", member + 1, ensemble, step, config.steps)

            made = sample_points(network, points, config, generator, report)
            mm = frame.to_mm(made[0].cpu().double().numpy())
            candidates.append(PaperCandidate(PointCloud(mm, np.zeros_like(mm)), self.model, device))
        return Proposal(candidates)


def load(files: WeightsFiles) -> PaperMethod:
    """The method with the weights of the files. Raises InputError for a file of another kind, and for half a model."""
    assert files.own is not None
    return PaperMethod.load(files.own)
