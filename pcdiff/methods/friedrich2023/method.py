"""The method of Friedrich et al. (MICCAI 2023) on its own weights: a baseline in the same evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pcdiff.errors import InputError
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.surface import sample_surface
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.friedrich2023.checkpoints import PaperModel
from pcdiff.methods.friedrich2023.points import PaperFrame, outer_mesh
from pcdiff.methods.friedrich2023.sampling import sample_points
from pcdiff.methods.friedrich2023.volume import volume_from_points
from pcdiff.prior.fit import fit
from pcdiff.prior.model import ShapePrior


@dataclass(frozen=True, kw_only=True)
class PaperProposal(Proposal):
    """Implant points without normals; the point-to-volume network makes the solid, whatever the backend."""

    model: PaperModel
    device: str

    def implants(self, skull: Volume, backend: str, each: bool) -> tuple[Volume, list[Volume]]:
        """See `pcdiff.methods.Proposal`. Of several members the implant is their majority, as published."""
        assert self.model.voxelisation is not None
        network, config = self.model.voxelisation.to(self.device), self.model.config
        clouds = [candidate.points for candidate in self.candidates]

        def solid(samples: list[np.ndarray]) -> Volume:
            return volume_from_points(samples, skull, network, config.spacing_mm, config.resolution, config.faithful)

        return solid(clouds), [solid([cloud]) for cloud in clouds] if each else []


@dataclass(frozen=True)
class PaperMethod:
    """Both networks of the paper. Every member draws skull points of its own, and takes its own noise.

    prior: finds the defects beforehand, for the checks, and refuses what has none; the networks know nothing of it.
    """

    model: PaperModel
    prior: ShapePrior

    @classmethod
    def load(cls, path: Path, prior: ShapePrior) -> PaperMethod:
        """Reads what `pcdiff import-checkpoint` or `pcdiff train` wrote. Raises InputError for half a model."""
        model = PaperModel.load(path)
        for name in ("denoiser", "voxelisation"):
            if getattr(model, name) is None:
                raise InputError(
                    f"{path}: expected both of the paper's networks, found no {name}; import both together"
                )
        return cls(model, prior)

    def __call__(self, skull: Volume, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        """See `pcdiff.methods.Method`."""
        found = fit(self.prior, skull)
        config = self.model.config
        assert self.model.denoiser is not None
        network = self.model.denoiser.to(device)
        mesh = outer_mesh(skull)
        candidates = []
        with tqdm(total=ensemble * config.steps, unit="step", disable=None, leave=False) as bar:
            for member in range(ensemble):
                seen = sample_surface(mesh, config.network.skull_points, np.random.default_rng([seed, member])).points
                frame = PaperFrame.of(seen, skull.affine, config.faithful)
                points = torch.from_numpy(frame.to_network(seen)).float()[None].to(device)
                generator = torch.Generator().manual_seed(seed * 1_000_003 + member)
                made = sample_points(network, points, config, generator, lambda *_: bar.update())
                mm = frame.to_mm(made[0].cpu().double().numpy())
                candidates.append(PointCloud(mm, np.zeros_like(mm)))
        return PaperProposal(candidates=candidates, fit=found, model=self.model, device=device)
