"""Training recipes: what configs/*.yaml may say."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from pcdiff.config import StrictConfig, YamlLoader, override, validate_config
from pcdiff.data.craniotomy import KINDS
from pcdiff.errors import InputError
from pcdiff.methods.anchored.config import DiffusionConfig, NetworkConfig
from pcdiff.methods.friedrich2023.config import PaperConfig

log = logging.getLogger(__name__)


class PairsConfig(StrictConfig):
    """What the network is trained on. Probabilities are per pair."""

    pool: int = Field(default=4096, gt=0, description="distinct pairs; each returns with fresh noise")
    kinds: dict[str, float] = Field(default={"skullfix": 1.0}, description="kinds of defect and their shares")
    two_defects: float = Field(default=0.0, ge=0, le=1)
    mix: float = Field(default=0.3, ge=0, le=1, description="mix two heads of a fold")
    deform: float = Field(default=0.3, ge=0, le=1, description="add a smooth random deformation")
    deform_mm: tuple[float, float] = Field(
        default=(0.6, 0.4), description="its largest amplitude: outer table, thickness"
    )
    warp_mm: float = Field(default=4.0, ge=0, description="how far features of a head move along the map, at most")
    pose_mm: float = Field(default=0.2, ge=0, description="what chips and bone seen through a defect do to real poses")
    folds: int = Field(default=5, ge=2)
    seed: int = 0

    @field_validator("kinds")
    @classmethod
    def _shares(cls, kinds: dict[str, float]) -> dict[str, float]:
        if unknown := kinds.keys() - KINDS.keys():
            raise ValueError(f"expected kinds out of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
        total = sum(kinds.values())
        if not total > 0 or min(kinds.values()) < 0:
            raise ValueError(f"shares must be positive, got {kinds}")
        return {kind: share / total for kind, share in kinds.items()}


class OptimiserConfig(StrictConfig):
    """AdamW with a linear warm-up and a cosine decay."""

    steps: int = Field(default=20_000, gt=0)
    batch: int = Field(default=48, gt=0, description="pairs a step; the guide learns from all of them")
    encoded: int = Field(default=16, gt=0, description="how many of them the rest of the network learns from")
    noises: int = Field(
        default=2, gt=0, description="noise levels per pair and step: the skull is encoded once for all"
    )
    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=300, ge=0)
    decay: float = Field(default=0.02, ge=0, description="weight decay")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(default=7.0, gt=0, description="power of the averaged weights' profile")
    normals: float = Field(default=0.1, ge=0, description="weight of the normals in the loss")
    precision: str = Field(default="no", pattern="^(no|bf16)$")


class PaperOptimiserConfig(StrictConfig):
    """Adam by epochs over the training cases, a constant rate; defaults are the noise network's."""

    epochs: int = Field(default=15_000, gt=0)
    batch: int = Field(default=8, gt=0)
    rate: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)


class RunConfig(StrictConfig):
    """Where a training run reads and writes, and how often."""

    data: Path = Field(description="data set folder, for validation from file to file")
    cache: Path = Field(description="what `pcdiff prepare` wrote")
    out: Path = Field(description="checkpoints and logs")
    cases: str = Field(default="000-059", description="heads to train on")
    skip: tuple[str, ...] = Field(default=(), description="heads left out, such as copies of others")
    same: tuple[tuple[str, ...], ...] = Field(
        default=(), description="names of one and the same head: kept in one fold"
    )
    validation: str = Field(default="060-074", description="cases that validation runs the whole pipeline on")
    validate_every: int = Field(default=2000, gt=0, description="steps")
    validate_cases: int = Field(default=4, ge=0, description="how many of them during training")
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    workers: int = Field(default=2, ge=0)
    seed: int = 0
    tensorboard: bool = False


class PaperTrainConfig(StrictConfig):
    """A whole recipe of the paper's, as in configs/paper_*.yaml; `stage` says which of the two networks is trained."""

    method: Literal["paper"]
    run: RunConfig
    stage: Literal["denoiser", "voxelisation"] = "denoiser"
    paper: PaperConfig = PaperConfig()
    denoiser: PaperOptimiserConfig = PaperOptimiserConfig()
    voxelisation: PaperOptimiserConfig = PaperOptimiserConfig(epochs=1_000, batch=2, rate=5e-4, beta1=0.9)
    pool: int = Field(default=100_000, gt=0, description="points kept of each surface, to draw from at each step")


class TrainConfig(StrictConfig):
    """A whole recipe, as in configs/*.yaml."""

    run: RunConfig
    pairs: PairsConfig = PairsConfig()
    network: NetworkConfig = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    optimiser: OptimiserConfig = OptimiserConfig()


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig | PaperTrainConfig:
    """Reads a YAML recipe; overrides are {"optimiser.steps": 100}. `method: paper` makes it one of the paper's.

    Raises InputError naming every wrong key.
    """
    try:
        values = yaml.load(Path(path).read_text(), YamlLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a YAML recipe, got {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a YAML recipe with sections, got a {type(values).__name__}")
    for name, value in (overrides or {}).items():
        override(values, name, value)
    log.info("recipe %s", path)
    if "method" in values:
        return validate_config(PaperTrainConfig, values, str(path))
    return validate_config(TrainConfig, values, str(path))
