"""Recipes: typed, frozen, and strict; an unknown key is an error."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pcdiff.defects import KINDS
from pcdiff.errors import InputError

Config = TypeVar("Config", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PairsConfig(_Strict):
    """What the network is trained on. Probabilities are per pair."""

    pool: int = Field(default=4096, gt=0, description="distinct pairs; each returns with fresh noise")
    kinds: dict[str, float] = Field(default={"skullfix": 1.0}, description="kinds of defect and their shares")
    two_holes: float = Field(default=0.0, ge=0, le=1)
    mix: float = Field(default=0.3, ge=0, le=1, description="mix two heads of a fold")
    deform: float = Field(default=0.3, ge=0, le=1, description="add a smooth random deformation")
    deform_mm: tuple[float, float] = Field(
        default=(0.6, 0.4), description="its largest amplitude: outer table, thickness"
    )
    warp_mm: float = Field(default=4.0, ge=0, description="how far features of a head move along the map, at most")
    pose_mm: float = Field(default=0.2, ge=0, description="what chips and bone seen through a hole do to real poses")
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


class NetworkConfig(_Strict):
    """Size of the point-voxel network."""

    width: int = Field(default=64, gt=0, multiple_of=16, description="channels of the point branch")
    grid: int = Field(default=20, ge=8, multiple_of=4, description="cells along a side of the skull's voxel grid")
    step_grid: int = Field(default=12, ge=4, description="the same for the moving points")
    blocks: int = Field(default=3, gt=0, description="point-voxel blocks of the denoiser")
    heads: int = Field(default=4, gt=0, description="attention heads")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    hidden: float = Field(default=0.5, ge=0, le=1, description="share of skulls in training without surroundings")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        return self


class DiffusionConfig(_Strict):
    """Noise levels, in units of the prior's standard deviation."""

    sigma_min: float = Field(default=0.05, gt=0)
    sigma_max: float = Field(default=4.0, gt=0)
    p_mean: float = 0.0
    p_std: float = Field(default=1.2, gt=0)
    steps: int = Field(default=6, gt=0)
    sampler: Literal["euler", "heun", "dpmpp_2m", "ancestral"] = "heun"

    @model_validator(mode="after")
    def _descends(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must be less than sigma_max, got {self.sigma_min} and {self.sigma_max}")
        return self


class OptimiserConfig(_Strict):
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


class PaperNetworkConfig(_Strict):
    """The noise network of Friedrich et al. (2023); defaults are the paper's."""

    width: float = Field(default=1.0, gt=0, description="multiplies all channels; a multiple of 1 / 4")
    skull_points: int = Field(default=27_648, gt=0)
    implant_points: int = Field(default=3_072, gt=0)
    centres: tuple[int, int, int, int] = Field(default=(10_240, 2_560, 640, 160), description="of each stage")
    radii: tuple[float, float, float, float] = Field(default=(0.1, 0.2, 0.4, 0.8), description="network units")
    neighbours: int = Field(default=128, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @property
    def points(self) -> int:
        """Of skull and implant together."""
        return self.skull_points + self.implant_points

    @model_validator(mode="after")
    def _shrinks(self) -> Self:
        sizes = (self.points, *self.centres)
        if any(not 3 <= fewer < more for more, fewer in itertools.pairwise(sizes)):
            raise ValueError(f"each stage must have fewer centres than points, 3 at least, got {sizes}")
        if self.width * 4 != round(self.width * 4):
            raise ValueError(f"width must be a multiple of 0.25, got {self.width}")
        return self


class PaperConfig(_Strict):
    """The method of Friedrich et al. (2023): what travels with its weights."""

    network: PaperNetworkConfig = PaperNetworkConfig()
    steps: int = Field(default=1000, ge=1, le=1000, description="of sampling, evenly spread over the 1,000 of training")
    sampler: Literal["ancestral", "euler", "heun", "dpmpp_2m"] = Field(
        default="ancestral", description="ancestral is DDPM, euler DDIM"
    )
    spacing_mm: float = Field(default=0.45, gt=0, description="of the cube that becomes the solid; SkullBreak: 0.4")
    resolution: int = Field(default=512, ge=16, multiple_of=4, description="voxels along its sides")
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="of the noise network's products; bf16 changes its noise by 1.4 % on average"
    )
    faithful: bool = Field(default=False, description="repeat the original's mistakes, as docs/paper.md lists them")


class PaperOptimiserConfig(_Strict):
    """Adam by epochs over the training cases, a constant rate; defaults are the noise network's."""

    epochs: int = Field(default=15_000, gt=0)
    batch: int = Field(default=8, gt=0)
    rate: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)


class RunConfig(_Strict):
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


class PaperTrainConfig(_Strict):
    """A whole recipe of the paper's, as in configs/paper_*.yaml; `stage` says which of the two networks is trained."""

    method: Literal["paper"]
    run: RunConfig
    stage: Literal["denoiser", "voxelisation"] = "denoiser"
    paper: PaperConfig = PaperConfig()
    denoiser: PaperOptimiserConfig = PaperOptimiserConfig()
    voxelisation: PaperOptimiserConfig = PaperOptimiserConfig(epochs=1_000, batch=2, rate=5e-4, beta1=0.9)
    pool: int = Field(default=100_000, gt=0, description="points kept of each surface, to draw from at each step")


class TrainConfig(_Strict):
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
        values = yaml.load(Path(path).read_text(), _Loader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a YAML recipe, got {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a YAML recipe with sections, got a {type(values).__name__}")
    for name, value in (overrides or {}).items():
        _override(values, name, value)
    if "method" in values:
        return _validated(PaperTrainConfig, values, str(path))
    return _validated(TrainConfig, values, str(path))


def parse_paper_config(changes: dict[str, Any]) -> PaperConfig:
    """The paper's settings but for some, {"network.neighbours": 32}. Raises InputError naming every wrong key."""
    values: dict[str, Any] = {}
    for name, value in changes.items():
        _override(values, name, value)
    return _validated(PaperConfig, values, "--set")


def _validated(kind: type[Config], values: dict[str, Any], where: str) -> Config:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{where}: {wrong}") from error


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 052 is a head's name, not an octal number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(r"^[-+]?(0|[1-9][0-9]*)$") if tag == "tag:yaml.org,2002:int" else pattern)
        for tag, pattern in resolvers
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _override(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets "section.key" in the recipe, a string as YAML reads it. Raises InputError where there is no such section."""
    *parents, last = name.split(".")
    room = values
    for parent in parents:
        room = room.setdefault(parent, {})
        if not isinstance(room, dict):
            raise InputError(
                f"{name}: expected section.key, got {parent!r}, which is no section; see configs/default.yaml"
            )
    try:
        room[last] = yaml.load(value, _Loader) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise InputError(f"{name}: expected a YAML value, got {value!r}; close its brackets and quotes") from error
