"""Training recipes: the sections and keys of configs/*.yaml."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from pcdiff.config import StrictConfig, override, read_yaml, validate_config
from pcdiff.data.craniotomy import KINDS
from pcdiff.data.splits import Splits, leave_out
from pcdiff.errors import InputError
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.networks.config import NetworkConfig
from pcdiff.methods.registry import METHODS, installed_methods
from pcdiff.methods.surface.config import SurfaceDiffusionConfig, SurfaceNetworkConfig
from pcdiff.methods.volumetric.config import UNetConfig

log = logging.getLogger(__name__)

# Recipes of what is no method; those of methods are in their table.
OTHER_RECIPES = {"generator": "pcdiff.training.augmentation.config:GeneratorTrainConfig"}


class Recipe(StrictConfig):
    """A training recipe; `method` decides which class it is: see `MethodEntry.recipe`.

    trainer: the module whose `train(recipe, progress)` runs it and returns the weights' file. It is imported then.
    """

    trainer: ClassVar[str]
    method: str


class WindowsConfig(StrictConfig):
    """Windows of fitted cuts, as the volumetric U-Net sees them in training. Probabilities are per window."""

    margin: int = Field(default=6, ge=0, le=20, description="lattice points around the missing bone, at least")
    hidden: float = Field(default=0.12, ge=0, le=1, description="the shape model is hidden")
    deformed: float = Field(default=0.5, ge=0, le=1, description="the whole cut is deformed once more")
    deform_mm: float = Field(default=1.6, ge=0, description="largest standard deviation of that deformation's knots")
    shift_mm: float = Field(default=1.0, ge=0, description="standard deviation of a further shift of the pose")
    turn_degrees: float = Field(default=1.0, ge=0, description="and rotation")
    scale: float = Field(default=0.01, ge=0, description="and scale")
    whole: bool = Field(default=False, description="every window is the largest, nearly the whole lattice")


class VolumetricSamplesConfig(StrictConfig):
    """The virtual craniotomies that the networks are trained on. Probabilities are per cut."""

    kinds: dict[str, float] = Field(
        default={
            "frontoorbital": 0.28,
            "bilateral": 0.17,
            "parietotemporal": 0.15,
            "random_2": 0.12,
            "skullfix": 0.12,
            "random_1": 0.09,
            "irregular": 0.07,
        },
        description="kinds of defect and their shares",
    )
    two_defects: float = Field(default=0.06, ge=0, le=1)
    own_shape: float = Field(default=0.2, ge=0, le=1, description="the head keeps its own shape")
    other_shape: float = Field(default=0.35, ge=0, le=1, description="it takes another head's; else a mixture")
    deform_mm: float = Field(default=1.5, ge=0, description="largest standard deviation of a random deformation")
    short_scan: float = Field(default=0.15, ge=0, le=1, description="the scan ends below the vault")
    fitted: int = Field(default=1700, gt=0, description="cuts to which the shape model is fitted, made once")
    windows: WindowsConfig = WindowsConfig()
    folds: int = Field(default=5, ge=2, description="of heads; a shape model never saw those of the cut's fold")

    @field_validator("kinds")
    @classmethod
    def _shares(cls, kinds: dict[str, float]) -> dict[str, float]:
        return _normalised(kinds)


class PaperOptimiserConfig(StrictConfig):
    """Adam, by epochs over the training cases; defaults are the noise network's."""

    epochs: int = Field(default=15_000, gt=0)
    batch: int = Field(default=8, gt=0)
    rate: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    cooldown: int = Field(default=0, ge=0, description="last epochs, over which the rate falls; 0 as published")


class VolumetricOptimiserConfig(StrictConfig):
    """AdamW with a linear warm-up, a constant rate, and a linear cool-down to 0."""

    steps: int = Field(default=17_000, gt=0)
    batch: int = Field(default=16, gt=0, description="windows a step of one process; fewer where they are large")
    rate: float = Field(default=8e-4, gt=0)
    warmup: int = Field(default=300, ge=0, description="steps")
    cooldown: int = Field(default=8_500, ge=0, description="last steps, over which the rate falls")
    decay: float = Field(default=0.02, ge=0, description="weight decay")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(default=9.0, gt=0, description="power of the averaged weights' profile")
    precision: str = Field(default="bf16", pattern="^(no|bf16)$", description="bf16: where the device is fast at it")


class RunConfig(StrictConfig):
    """Inputs and outputs of a training run, and how often it writes."""

    data: Path = Field(description="data set: a folder, or a YAML file that describes one")
    cache: Path = Field(description="folder that `pcdiff prepare` wrote")
    out: Path = Field(description="folder for weights, checkpoint and log")
    cases: str = Field(default="000-059", description="heads to train on")
    skip: tuple[str, ...] = Field(default=(), description="heads left out, such as copies of others")
    same: tuple[tuple[str, ...], ...] = Field(
        default=(), description="groups of names of the same head, kept in one fold"
    )
    validation: str = Field(default="060-074", description="cases to validate on")
    validate_every: int = Field(default=2000, gt=0, description="steps")
    validate_cases: int = Field(default=4, ge=0, description="number of them at each validation")
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    workers: int = Field(default=2, ge=0)
    seed: int = 0
    tensorboard: bool = False


class RunRecipe(Recipe):
    """A recipe on the heads of a cache.

    on_shape_model: whether what it trains builds on the statistical shape model, see `training.prior.shape_model`.
    """

    on_shape_model: ClassVar[bool] = True
    run: RunConfig


class PaperTrainConfig(RunRecipe):
    """A recipe of the published model, as in configs/paper_*.yaml; `stage` chooses which network is trained."""

    trainer = "pcdiff.training.friedrich2023.train"
    on_shape_model = False
    method: Literal["paper"]
    stage: Literal["denoiser", "voxelisation"] = "denoiser"
    paper: PaperConfig = PaperConfig()
    denoiser: PaperOptimiserConfig = PaperOptimiserConfig()
    voxelisation: PaperOptimiserConfig = PaperOptimiserConfig(epochs=1_000, batch=2, rate=5e-4, beta1=0.9)
    pool: int = Field(default=100_000, gt=0, description="points stored of each surface, to draw from at each step")


class VolumetricTrainConfig(RunRecipe):
    """A recipe of the volumetric U-Net, as in configs/unet.yaml."""

    trainer = "pcdiff.training.volumetric.train"
    method: Literal["unet"]
    weights: Path | None = Field(default=None, description="weights that a new run starts from")
    samples: VolumetricSamplesConfig = VolumetricSamplesConfig()
    network: UNetConfig = UNetConfig()
    optimiser: VolumetricOptimiserConfig = VolumetricOptimiserConfig()


class BaselineLossConfig(StrictConfig):
    """Added to cross-entropy and soft DSC."""

    symmetry: float = Field(
        default=0.0, ge=0, description="weight of the soft DSC of the completed head with its mirror image"
    )


class BaselineTrainConfig(RunRecipe):
    """A recipe of a network of the field, as in configs/encoder_decoder.yaml and others; `method` is its kind."""

    trainer = "pcdiff.training.networks"
    method: Literal["encoder_decoder", "slices", "patches", "coarse_to_fine", "sparse", "symmetry"]
    weights: Path | None = Field(default=None, description="weights that a new run starts from")
    network: NetworkConfig
    samples: VolumetricSamplesConfig = VolumetricSamplesConfig()
    loss: BaselineLossConfig = BaselineLossConfig()
    optimiser: VolumetricOptimiserConfig = VolumetricOptimiserConfig()


class DiffusionOptimiserConfig(StrictConfig):
    """AdamW with a linear warm-up and half a cosine down to a hundredth."""

    steps: int = Field(default=6_000, gt=0)
    batch: int = Field(default=8, gt=0, description="pairs a step")
    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=200, ge=0, description="steps")
    decay: float = Field(default=0.05, ge=0, description="weight decay")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(default=9.0, gt=0, description="power of the averaged weights' profile")
    precision: str = Field(default="no", pattern="^(no|bf16)$", description="bf16: where the device is fast at it")


class DiffusionTrainConfig(RunRecipe):
    """A recipe of the diffusion of a surface's points, as in configs/diffusion.yaml."""

    trainer = "pcdiff.training.surface.train"
    method: Literal["diffusion"]
    unet: Path | None = Field(default=None, description="weights of the U-Net; by default the shipped ones")
    samples: VolumetricSamplesConfig = VolumetricSamplesConfig()
    first: int = Field(default=0, ge=0, description="fitted cuts from here on, which the U-Net has not seen")
    pool: int = Field(default=1024, gt=0, description="points stored of each surface, to draw anchors from")
    anchors: int = Field(default=256, gt=0, description="drawn of each surface in a step; fewer than in use, for speed")
    network: SurfaceNetworkConfig = SurfaceNetworkConfig()
    diffusion: SurfaceDiffusionConfig = SurfaceDiffusionConfig()
    optimiser: DiffusionOptimiserConfig = DiffusionOptimiserConfig()


class PriorTrainConfig(RunRecipe):
    """A recipe of the statistical shape model, as in configs/prior.yaml."""

    trainer = "pcdiff.training.prior"
    method: Literal["prior"]


class AtlasTrainConfig(RunRecipe):
    """A recipe of the atlas, as in configs/atlas.yaml."""

    trainer = "pcdiff.training.atlas"
    method: Literal["atlas"]


class EnsembleTrainConfig(Recipe):
    """A recipe of the ensemble's shares, as in configs/ensemble.yaml."""

    trainer = "pcdiff.training.ensemble"
    method: Literal["ensemble"]
    results: tuple[Path, ...] = Field(min_length=1, description="results.json files with the members' scores")
    members: tuple[str, ...] = Field(min_length=1, description="methods")
    out: Path = Field(description="file to write")


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Reads a YAML recipe and applies overrides such as {"optimiser.steps": 100}.

    Raises InputError for a method that has no recipes, and names every wrong key.
    """
    values = read_yaml(Path(path), "a YAML recipe with sections")
    for name, value in (overrides or {}).items():
        override(values, name, value)
    log.info("recipe %s", path)
    method = values.get("method", "none")
    recipes = {name: entry.recipe for name, entry in (METHODS | installed_methods()).items() if entry.recipe}
    recipes |= OTHER_RECIPES
    if not isinstance(method, str) or method not in recipes:
        names = ", ".join(recipes)
        raise InputError(
            f"{path}: expected a recipe with method: one of {names}, got {str(method)[:80]}; add a line `method: NAME`"
        )
    module, _, name = recipes[method].partition(":")
    kind: type[Recipe] | None = getattr(import_module(module), name, None)
    if kind is None:
        raise InputError(f"{path}: expected a method that can be trained, got {method}: {module} has no class {name}")
    return validate_config(kind, values, str(path))


def for_fold(config: Recipe, fold: str, splits: Splits) -> RunRecipe:
    """The recipe for one fold: trained on the other splits, validated on it, in a folder of its name in `run.out`.

    Raises InputError for a recipe that trains on no heads, and an unknown fold.
    """
    if not isinstance(config, RunRecipe):
        raise InputError(f"--fold: expected a recipe that trains on heads, got {config.method}; leave the option out")
    cases, validation = leave_out(fold, splits)
    run = {"cases": cases, "validation": validation, "out": config.run.out / fold}
    return config.model_copy(update={"run": config.run.model_copy(update=run)})


def _normalised(kinds: dict[str, float]) -> dict[str, float]:
    """Kinds of defect and their shares, which add up to one. Raises ValueError for unknown kinds or negative shares."""
    if unknown := kinds.keys() - KINDS.keys():
        raise ValueError(f"expected kinds out of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    total = sum(kinds.values())
    if not total > 0 or min(kinds.values()) < 0:
        raise ValueError(f"shares must be positive, got {kinds}")
    return {kind: share / total for kind, share in kinds.items()}
