"""Anchored diffusion, the default method: a network moves points of the shape model's completed surface."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from scipy.linalg import cho_solve
from scipy.spatial import cKDTree
from torch import Tensor

from pcdiff.diffusion.samplers import SAMPLERS, Callback
from pcdiff.diffusion.schedule import karras_sigmas
from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.anchored.condition import ANCHORS, Condition, choose_rays, make_condition, make_frame, table_normals
from pcdiff.methods.anchored.config import DiffusionConfig
from pcdiff.methods.anchored.network import AnchoredDenoiser, Denoised, Skull
from pcdiff.methods.anchored.weights import load_denoiser
from pcdiff.methods.base import Proposal, Trajectory
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.methods.occupancy.model import OccupancyModel, fused_surfaces
from pcdiff.methods.registry import WeightsFiles
from pcdiff.nets.devices import on_device
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior

SOFT = 0.1  # share of the variance that keeps `in_quadrature` smooth where both draws vanish
NEIGHBOURS = 4  # anchors that a ray's normal is interpolated from


@dataclass(frozen=True)
class DiffusionMethod:
    """A denoiser, the shape model it was trained with, and an occupancy network, if there is one.

    The occupancy network corrects the surface where bone is not single-valued along a ray from the cranial centre.

    Member 0 of an ensemble starts at the guide's mean. The others start around it, at draws from the posterior of the
    shape model: in pairs of opposite noise, so that the mean of the ensemble stays, and two pairs in quadrature, so
    that four members spread as wide as the posterior everywhere, see `in_quadrature`.
    """

    prior: ShapePrior
    network: AnchoredDenoiser
    diffusion: DiffusionConfig
    digest: str = ""
    occupancy: OccupancyModel | None = None

    @classmethod
    def load(cls, path: Path, prior: ShapePrior, occupancy: OccupancyModel | None = None) -> DiffusionMethod:
        """Reads what `save_denoiser` wrote.

        Raises InputError for another file, and for a shape model that completes fewer rays than the network moves.
        """
        network, config = load_denoiser(path)
        if prior.settings.completion.min_rays < config.layout.anchors:
            raise InputError(
                f"{path}: expected a shape model that completes {config.layout.anchors} rays at least, got one with "
                f"{prior.settings.completion.min_rays}; use the model that the denoiser was trained with"
            )
        return cls(prior, network, config.diffusion, sha256(Path(path)), occupancy)

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`."""
        anchors, bone = choose_rays(fit.observation)
        condition = make_condition(fit, anchors, bone)
        generator = torch.Generator().manual_seed(seed)
        steps: list[Tensor] = []
        denoised = self.sample(condition, ensemble, generator, device, lambda step, x, x0: steps.append(x.cpu()))
        shifts = denoised.x0.cpu().double().numpy() * condition.prior_std_mm
        moves = np.stack(
            [step.double().numpy() * condition.prior_std_mm for step in steps] + [shifts], axis=1
        )  # (K, T, P)
        trajectory = Trajectory(_positions(fit, anchors, moves), self._captions())
        turned = rearrange(denoised.normals.cpu().double().numpy(), "k xyz p -> k p xyz") - condition.normals
        table_radii = _moved(fit, condition, anchors, shifts)
        correction = (
            None if self.occupancy is None else self.occupancy.predict_correction(fit, head_occupancy(skull), device)
        )
        if correction is not None:
            clouds = fused_surfaces(fit, [(outer, thickness) for outer, thickness in table_radii], correction)
        else:
            normals = [_normals(fit, anchors, turn) for turn in turned]
            clouds = [
                fit.completed_surface(outer, thickness, n)
                for (outer, thickness), n in zip(table_radii, normals, strict=True)
            ]
        return Proposal([OrientedPoints(cloud) for cloud in clouds], trajectory)

    @torch.inference_mode()
    def sample(
        self,
        condition: Condition,
        ensemble: int,
        generator: torch.Generator,
        device: str = "cpu",
        callback: Callback | None = None,
    ) -> Denoised:
        """Runs the truncated diffusion for all members at once -> x0 (K, P), normals (K, 3, P).

        callback: called at each step, see `diffusion.samplers.Sampler`.
        """
        network = on_device(self.network, device)
        skull = bind(network, batch(condition, device)).repeated(ensemble)
        count = ensemble + ensemble % 2
        noise = draw_noise(
            torch.from_numpy(condition.cholesky)[None], torch.from_numpy(condition.prior_std_mm)[None], count, generator
        )
        noise = in_quadrature(noise)
        noise = torch.cat([torch.zeros_like(noise[:1]), noise, -noise])[_paired(count)[:ensemble]]
        sigmas = self._sigmas()
        sampler = SAMPLERS[self.diffusion.sampler]
        start = skull.mean + (self.diffusion.sigma_max * noise).to(device)  # noised data is spread around its mean
        x0 = sampler(
            partial(_denoise, network, skull), start, sigmas.to(device), generator=generator, callback=callback
        )
        return Denoised(x0, network(x0, sigmas[-2].to(x0), skull).normals)

    def _sigmas(self) -> Tensor:
        return karras_sigmas(self.diffusion.steps, self.diffusion.sigma_min, self.diffusion.sigma_max)

    def _captions(self) -> tuple[str, ...]:
        levels = [f"noise level {sigma:.2f}" for sigma in self._sigmas().tolist()[:-1]]
        return ("surface of the shape model", *levels, "result")


def load(files: WeightsFiles) -> DiffusionMethod:
    """The method with the weights of the files. Raises InputError for a file of another kind."""
    assert files.own is not None
    occupancy = OccupancyModel.load(files.companions[0]) if files.companions else None
    return DiffusionMethod.load(files.own, ShapePrior.load(files.prior), occupancy)


def batch(condition: Condition, device: str) -> dict[str, Tensor]:
    """A batch of one, by name."""
    return {name: torch.from_numpy(value)[None].to(device) for name, value in vars(condition).items()}


def bind(network: AnchoredDenoiser, batch: dict[str, Tensor]) -> Skull:
    """Encodes the skulls of a batch; the denoiser is bound to the encoding before sampling."""
    return network.encode(*(batch[name] for name in ("anchors", "anchor_features", "bone", "bone_features", "normals")))


def draw_noise(factors: Tensor, unit: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws from the posterior of the shape model, in its standard deviations: `count` per skull -> (B count, P).

    factors: (B, 2, A, A) mm, Cholesky factors of outer table and thickness; unit: (B, 2 A) mm.
    """
    # Drawn member by member, so that a larger ensemble begins with the members of a smaller one.
    white = torch.randn(count, len(factors), 2, factors.shape[-1], generator=generator, device=generator.device)
    outer, thickness = (factors @ rearrange(white.to(factors), "k b wall a -> b wall a k")).unbind(1)  # (B, A, k) each
    both = torch.cat([outer, outer - thickness], 1) / unit[..., None]
    return rearrange(both, "b p k -> (b k) p")


def in_quadrature(noise: Tensor) -> Tensor:
    """Rescales (2 k, P) draws of unit variance so that the squares of each pair of draws add up to two.

    Two draws alone tell little about where the posterior is wide: by chance both are small at one point and large at
    another. After the rescaling they are like the sine and the cosine of one random phase, as large together at every
    point.
    """
    pairs = rearrange(noise, "(k two) p -> k two p", two=2)
    size = (pairs**2).mean(1, keepdim=True)
    return rearrange(pairs * ((1 + SOFT) / (size + SOFT)).sqrt(), "k two p -> (k two) p")


def _paired(ensemble: int) -> Tensor:
    """Indices into (zero, draws, opposite draws) for the members: 0, +1, -1, +2, -2, ..."""
    order = [0] + [1 + k // 2 + (ensemble if k % 2 else 0) for k in range(ensemble - 1)]
    return torch.tensor(order)


def _denoise(network: AnchoredDenoiser, skull: Skull, x: Tensor, sigma: Tensor) -> Tensor:
    return network(x, sigma, skull).x0


def _moved(fit: PriorFit, condition: Condition, anchors: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Shifts (K, P) mm of the anchors along their rays -> (K, 2, R) mm: outer radius and thickness everywhere.

    The shape model's covariance carries the anchors' shifts to the rays between them, and to nothing at the rim.
    """
    rows = np.searchsorted(fit.targets, anchors)
    everywhere = np.arange(len(fit.targets))
    outer, inner = shifts[:, :ANCHORS], shifts[:, ANCHORS:]
    table_radii = np.tile(np.stack([fit.outer, fit.thickness]), (len(shifts), 1, 1))
    for wall, values in enumerate((outer, outer - inner)):
        weights = cho_solve((condition.cholesky[wall].astype(np.float64), True), values.T)  # (A, K)
        table_radii[:, wall, fit.targets] += (fit.posteriors[wall].covariance(everywhere, rows) @ weights).T
    return table_radii


def _positions(fit: PriorFit, anchors: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Shifts (K, T, P) mm of the anchors along their rays -> (K, T + 1, P, 3) float32 mm, LPS; the first unmoved."""
    outer = fit.outer[anchors]
    radius = np.concatenate([outer, outer - fit.thickness[anchors]]) + np.pad(shifts, ((0, 0), (1, 0), (0, 0)))
    directions = np.tile(MAP.directions[anchors], (2, 1))
    return fit.pose.to_patient(radius[..., None] * directions).astype(np.float32)


def _normals(fit: PriorFit, anchors: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(2, R, 3) model axes: normals of the shape model, turned by the network, in the defects; NaN elsewhere."""
    rays = np.flatnonzero(fit.defect > 0)
    distance, index = cKDTree(MAP.directions[anchors]).query(MAP.directions[rays], NEIGHBOURS)
    weight = 1 / (distance + 1e-3)
    weight /= weight.sum(1, keepdims=True)
    turns = make_frame(anchors).rotate_to_patient(turn.reshape(2, ANCHORS, 3))
    normals = np.full((2, len(fit.defect), 3), np.nan)
    own = table_normals(np.stack([fit.outer, fit.thickness]))
    normals[:, rays] = own[:, rays] + np.einsum("rk,wrkc->wrc", weight, turns[:, index])
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)
