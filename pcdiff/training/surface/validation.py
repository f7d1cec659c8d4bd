"""Validation of the surface denoiser on held-out heads: errors in mm at points of the surface, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr

from pcdiff.methods.surface.config import SurfaceDiffusionConfig
from pcdiff.methods.surface.network import SurfaceDenoiser
from pcdiff.methods.surface.sampling import sample_displacements

MEMBERS = 8


def validate(
    network: SurfaceDenoiser,
    diffusion: SurfaceDiffusionConfig,
    pairs: Sequence[dict[str, torch.Tensor]],
    device: str = "cpu",
) -> dict[str, float]:
    """Means over pairs, each a batch of one, by the valid anchors of each.

    Returns:
        val_still: root mean square distance of the anchors from the true surface, mm. val_member, val_mean: of one
        member of an ensemble, and of the mean of eight. val_1sd, val_2sd: share of anchors whose true surface lies
        within 1 and 2 standard deviations of the mean. val_spread: standard deviation of the members, mm.
        val_spearman: rank correlation of spread and error.
    """
    rows = [_score(network, diffusion, pair, device) for pair in pairs]
    names = ("still", "member", "mean", "1sd", "2sd", "spread", "spearman")
    return {
        f"val_{name}": float(np.nanmean(column)) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _score(
    network: SurfaceDenoiser, diffusion: SurfaceDiffusionConfig, pair: dict[str, torch.Tensor], device: str
) -> tuple[float, ...]:
    inputs = {name: pair[name].to(device).float() for name in ("positions", "normals", "static", "profile")}
    x = sample_displacements(network, diffusion, inputs, MEMBERS, torch.Generator().manual_seed(0)).cpu().numpy()
    valid, target = pair["valid"][0].numpy() > 0, pair["target"][0].float().numpy()
    x, target = x[:, valid], target[valid]
    mean, std = x.mean(0), x.std(0, ddof=1)
    error = np.abs(mean - target)
    return (
        rms(target),
        rms(x[0] - target),
        rms(error),
        float((error <= std).mean()),
        float((error <= 2 * std).mean()),
        rms(std),
        float(spearmanr(std, error).statistic),
    )


def rms(values: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt((values**2).mean()))
