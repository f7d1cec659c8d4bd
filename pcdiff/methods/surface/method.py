"""The default method of an ensemble: a surface fused from shape model and U-Net, whose points the diffusion moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pcdiff.errors import InputError
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
from pcdiff.methods.volumetric.method import VolumetricMethod, load_from
from pcdiff.nets.devices import on_device
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior


@dataclass(frozen=True)
class SurfaceMethod:
    """The U-Net's method, and the diffusion that moves points of its surface."""

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
        """See `PriorBasedMethod`."""
        surroundings, surface = self.base.predict_surface(fit, head_occupancy(skull), device)
        anchors = make_anchors(surface, surroundings, spread_vertices(surface, LAYOUT.anchors))
        moves, path = self.candidates(anchors, ensemble, seed, device)
        trajectory = Trajectory(_positions(fit, anchors, path), self._captions())
        surfaces = move(surface, anchors, moves)
        return Proposal([OrientedPoints(moved.in_patient(fit)) for moved in surfaces], trajectory)

    def candidates(self, anchors: Anchors, ensemble: int, seed: int, device: str) -> tuple[np.ndarray, np.ndarray]:
        """Displacements (ensemble, N) mm, and (ensemble, T, N) mm on the way.

        Several candidates are one sample each. A single one is the mean of `diffusion.draws` samples: it is nearer to
        the truth than any of them.
        """
        if ensemble > 1:
            return self.sample(anchors, ensemble, seed, device)
        moves, path = self.sample(anchors, self.diffusion.draws, seed, device)
        return moves.mean(0, keepdims=True), path.mean(0, keepdims=True)

    def sample(self, anchors: Anchors, members: int, seed: int, device: str) -> tuple[np.ndarray, np.ndarray]:
        """Displacements (members, N) float64 mm, and (members, T, N) before each step and after the last."""
        batch = {name: torch.from_numpy(value).to(device) for name, value in stacked([anchors]).items()}
        steps: list[Tensor] = []
        x = sample_displacements(
            on_device(self.network, device),
            self.diffusion,
            batch,
            members,
            torch.Generator().manual_seed(seed),
            lambda step, x, x0: steps.append(x),
        )
        return x.cpu().double().numpy(), torch.stack([*steps, x], 1).cpu().double().numpy()

    def _captions(self) -> tuple[str, ...]:
        levels = [f"noise level {sigma:.2f} mm" for sigma in sigmas_of(self.diffusion).tolist()[:-1]]
        return ("surface of shape model and networks", *levels, "result")


def _positions(fit: PriorFit, anchors: Anchors, path: np.ndarray) -> np.ndarray:
    """(K, T, N) mm -> (K, T + 1, N, 3) float32 mm, LPS; the first unmoved."""
    path = np.concatenate([np.zeros_like(path[:, :1]), path], 1)
    return fit.pose.to_patient(anchors.positions + path[..., None] * anchors.normals).astype(np.float32)


def load(files: WeightsFiles) -> SurfaceMethod:
    """The method with the weights of the files.

    Raises InputError for a file of another kind, and where no U-Net lies beside the denoiser.
    """
    assert files.own is not None
    unet = files.companion("unet.safetensors")
    if unet is None:
        raise InputError(
            f"{files.own}: expected the U-Net's weights beside it, got no {files.own.with_name('unet.safetensors')}; "
            "copy there the U-Net that the denoiser was trained with"
        )
    network, config = load_denoiser(files.own)
    return SurfaceMethod(load_from(files, unet), network, config.diffusion)
