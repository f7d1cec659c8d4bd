"""The default method: a surface fused from shape model and U-Net, whose points the diffusion moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal, Trajectory
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.methods.registry import WeightsFiles
from pcdiff.methods.surface.anchors import Anchors, make_anchors, spread_vertices, stacked
from pcdiff.methods.surface.config import LAYOUT, SurfaceDiffusionConfig
from pcdiff.methods.surface.moved import move
from pcdiff.methods.surface.network import SurfaceDenoiser
from pcdiff.methods.surface.sampling import sample_displacements, sigmas_of
from pcdiff.methods.surface.weights import load_denoiser
from pcdiff.methods.volumetric.method import VolumetricMethod
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.nets.devices import on_device
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior


@dataclass(frozen=True)
class SurfaceMethod:
    """The U-Net's method, and the diffusion. Each member of an ensemble is a sample of its own."""

    base: VolumetricMethod
    network: SurfaceDenoiser
    diffusion: SurfaceDiffusionConfig

    @property
    def prior(self) -> ShapePrior:
        """See `PriorBasedMethod`."""
        return self.base.prior

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`. Raises InputError for defects outside the U-Net's lattice."""
        surroundings, surface = self.base.predict_surface(fit, head_occupancy(skull), device)
        anchors = make_anchors(surface, surroundings, spread_vertices(surface, LAYOUT.anchors))
        steps: list[Tensor] = []
        moves = self.sample(anchors, ensemble, seed, device, steps)
        surfaces = move(surface, anchors, moves)
        trajectory = Trajectory(_positions(fit, anchors, steps, moves), self._captions())
        return Proposal([OrientedPoints(moved.in_patient(fit)) for moved in surfaces], trajectory)

    def sample(self, anchors: Anchors, members: int, seed: int, device: str, steps: list[Tensor]) -> np.ndarray:
        """(members, N) float64 mm; the displacements at each step are appended to `steps`."""
        batch = {name: torch.from_numpy(value).to(device) for name, value in stacked([anchors]).items()}
        x = sample_displacements(
            on_device(self.network, device),
            self.diffusion,
            batch,
            members,
            torch.Generator().manual_seed(seed),
            lambda step, x, x0: steps.append(x.cpu()),
        )
        return x.cpu().double().numpy()

    def _captions(self) -> tuple[str, ...]:
        levels = [f"noise level {sigma:.2f} mm" for sigma in sigmas_of(self.diffusion).tolist()[:-1]]
        return ("surface of shape model and U-Net", *levels, "result")


def _positions(fit: PriorFit, anchors: Anchors, steps: list[Tensor], moves: np.ndarray) -> np.ndarray:
    """(K, T + 1, N, 3) float32 mm, LPS; the first unmoved, the last the result."""
    still = np.zeros_like(moves)
    path = np.stack([still, *(step.double().numpy() for step in steps), moves], 1)
    return fit.pose.to_patient(anchors.positions + path[..., None] * anchors.normals).astype(np.float32)


def load(files: WeightsFiles) -> SurfaceMethod:
    """The method with the weights of the files. Raises InputError for a file of another kind."""
    assert files.own is not None
    network, config = load_denoiser(files.own)
    base = VolumetricMethod(ShapePrior.load(files.prior), VolumetricModel.load(files.companions[0]))
    return SurfaceMethod(base, network, config.diffusion)
