"""The table of methods: name, loader, weights, extra and licence of each. Everything that lists methods reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata, resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcdiff.errors import InputError, MethodError

if TYPE_CHECKING:
    from pcdiff.methods.base import Method, PriorBasedMethod

PRIOR = "prior.safetensors"
EXTRAS = {"baselines": "monai"}  # extra -> the package that methods need of it
GROUP = "pcdiff.methods"  # entry points of other packages
WEIGHTS_LICENCE = "CC BY-NC-SA 4.0"


@dataclass(frozen=True)
class WeightsFiles:
    """The files that a method is loaded from.

    own: the method's own weights, None where it has none. prior: the statistical shape model. companions: further
    files that belong to `own`.
    """

    own: Path | None
    prior: Path
    companions: tuple[Path, ...] = ()

    def companion(self, name: str) -> Path | None:
        """The companion of a file name; None where it is not there."""
        return next((path for path in self.companions if path.name == name), None)

    @property
    def all(self) -> list[Path]:
        """Every file, each once."""
        first = [] if self.own is None else [self.own]
        return list(dict.fromkeys([*first, self.prior, *self.companions]))


Loader = Callable[[WeightsFiles], "Method | PriorBasedMethod"]


@dataclass(frozen=True)
class MethodEntry:
    """A row of the table.

    help: one line. loader: `module:function`, imported when the method is loaded. own: the shipped file of its own
    weights, None where none is shipped. companions: files that are used where they lie beside the own weights.
    required: why weights must be given, for a method that ships none and needs some. extra: of the installation.
    recipe: `module:class` of its training recipes, if it can be trained. source: whom it follows.
    """

    name: str
    help: str
    loader: str
    own: str | None = None
    companions: tuple[str, ...] = ()
    required: str = ""
    extra: str | None = None
    licence: str = WEIGHTS_LICENCE
    recipe: str | None = None
    source: str = ""

    @property
    def is_installed(self) -> bool:
        """Whether the extra that it needs is installed."""
        return self.extra is None or find_spec(EXTRAS[self.extra]) is not None

    def load(self, files: WeightsFiles) -> Method | PriorBasedMethod:
        """Imports the loader and calls it. Raises InputError as the loader, MethodError for a package at fault."""
        method = self.find_loader()(files)
        if not callable(method):
            raise MethodError(f"method {self.name} ({self.help}): {self.loader} returned no method, but {method!r}")
        return method

    def find_loader(self) -> Loader:
        """Imports the loader. Raises MethodError if it cannot be imported."""
        module, _, function = self.loader.partition(":")
        try:
            loader: Loader = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise MethodError(
                f"method {self.name} ({self.help}): cannot import {self.loader} ({error}); install it again, or "
                "ask its authors"
            ) from error
        return loader


BASELINES = {  # name -> what it is, and whom it follows
    "encoder_decoder": (
        "an encoder-decoder from bone, its mirror image and the mean head; blocks of several challenge entries",
        "Ellis and Aizenberg 2020, Wodzinski et al. 2021, Isensee et al. 2021",
    ),
    "symmetry": ("the same, trained with a symmetry loss", "Wodzinski et al. 2025"),
    "slices": ("2D networks along three axes, averaged, or a recurrent one along z", "Yang et al. 2021"),
    "patches": ("an encoder-decoder on overlapping patches", "Li et al. 2020"),
    "coarse_to_fine": (
        "a network on the whole head at low resolution, and one that refines around what it finds",
        "Li et al. 2020, Bayat et al. 2020",
    ),
    "sparse": ("sparse convolutions on occupied points", "Li et al. 2021, Kroviakov et al. 2021"),
}
METHODS = {
    entry.name: entry
    for entry in (
        MethodEntry(
            "unet",
            "the statistical shape model corrected by a U-Net; the default",
            "pcdiff.methods.volumetric.method:load",
            own="unet.safetensors",
            recipe="pcdiff.training.recipes:VolumetricTrainConfig",
            source="ours",
        ),
        MethodEntry(
            "diffusion",
            "a diffusion of points on the surface of unet, for samples of what is possible; the default of an ensemble",
            "pcdiff.methods.surface.method:load",
            own="denoiser.safetensors",
            companions=("unet.safetensors",),
            recipe="pcdiff.training.recipes:DiffusionTrainConfig",
            source="ours",
        ),
        MethodEntry(
            "prior",
            "the statistical shape model alone",
            "pcdiff.methods.prior:load",
            own=PRIOR,
            recipe="pcdiff.training.recipes:PriorTrainConfig",
            source="ours",
        ),
        MethodEntry(
            "paper",
            "the published model of Friedrich et al. (2023), with --weights",
            "pcdiff.methods.friedrich2023.method:load",
            required="its authors published no weights, so import a checkpoint of your own with pcdiff "
            "import-checkpoint, or train one with the recipe paper_skullfix",
            licence="as the weights given",
            recipe="pcdiff.training.recipes:PaperTrainConfig",
            source="Friedrich et al. 2023",
        ),
        MethodEntry(
            "mirror",
            "the other side of the head, registered to the bone around the defect",
            "pcdiff.methods.mirror:load",
            own=PRIOR,
            source="clinical practice",
        ),
        MethodEntry(
            "rbf",
            "thin-plate splines through the bone around the defect",
            "pcdiff.methods.rbf:load",
            own=PRIOR,
            source="Carr et al. 1997",
        ),
        MethodEntry(
            "mean",
            "the mean healthy skull, deformed to the rim",
            "pcdiff.methods.mean:load",
            own=PRIOR,
            source="Matzkin et al. 2020",
        ),
        MethodEntry(
            "ssm",
            "the modes of the statistical shape model alone",
            "pcdiff.methods.ssm:load",
            own=PRIOR,
            source="Fuessinger et al. 2018",
        ),
        MethodEntry(
            "gpmm",
            "a Gaussian-process morphable model that labels outliers; candidates are samples of its posterior",
            "pcdiff.methods.gpmm:load",
            own=PRIOR,
            source="Madsen et al. 2019, Rahbani et al. 2022",
        ),
        MethodEntry(
            "atlas",
            "training heads, deformed onto the bone around the defect, vote",
            "pcdiff.methods.atlas:load",
            own="atlas.safetensors",
            recipe="pcdiff.training.recipes:AtlasTrainConfig",
            source="Rohlfing and Maurer 2007",
        ),
        *(
            MethodEntry(
                name,
                help_,
                f"pcdiff.methods.networks.method:load_{name.replace('symmetry', 'encoder_decoder')}",
                own=f"{name}.safetensors",
                extra=None if name == "sparse" else "baselines",
                recipe="pcdiff.training.recipes:BaselineTrainConfig",
                source=source,
            )
            for name, (help_, source) in BASELINES.items()
        ),
        MethodEntry(
            "edited",
            "an implant edited by hand, with --edited: it is made to fit and checked",
            "pcdiff.methods.edited:load",
            required="give the implant's file: pcdiff design --edited FILE",
            licence="as the implant given",
            source="whoever edited it",
        ),
        MethodEntry(
            "ensemble",
            "a vote of other methods, by the shares in a YAML file",
            "pcdiff.methods.ensemble:load",
            own="ensemble.yaml",
            companions=("unet.safetensors", "atlas.safetensors"),
            recipe="pcdiff.training.recipes:EnsembleTrainConfig",
            source="winners of challenges",
        ),
    )
}
DEFAULT = "unet"
DEFAULT_OF_ENSEMBLE = "diffusion"  # `unet` has one answer


def default_method(ensemble: int = 1) -> str:
    """The method for a number of candidates where none is named."""
    return DEFAULT if ensemble == 1 else DEFAULT_OF_ENSEMBLE


def shipped_methods() -> list[str]:
    """Names of the methods of this package that need no weights of one's own."""
    return [name for name, entry in METHODS.items() if not entry.required]


def ready_methods() -> list[str]:
    """Those of them whose extra is installed."""
    return [name for name in shipped_methods() if METHODS[name].is_installed]


def method_entry(name: str) -> MethodEntry:
    """The row of a method: one of ours, else one that another installed package registers.

    Raises InputError for an unknown name.
    """
    if name in METHODS:
        return METHODS[name]
    others = installed_methods()
    if name in others:
        return others[name]
    known = ", ".join([*METHODS, *others])
    raise InputError(f"unknown method {name!r}: expected one of {known}; is the package that holds it installed?")


def installed_methods() -> dict[str, MethodEntry]:
    """Methods of other packages, by name.

    A package registers `NAME = "module:function"` in the entry point group `pcdiff.methods`; the function takes
    `WeightsFiles` and returns a `Method`. Names of ours cannot be taken. If the module has a class `Recipe`, the method
    can be trained.
    """
    found = {}
    for point in metadata.entry_points(group=GROUP):
        package: dict[str, Any] = {} if point.dist is None else point.dist.metadata.json
        source, licence = package.get("name", point.module), package.get("license_expression") or package.get("license")
        if point.name not in METHODS:
            help_ = f"from the package {source}"
            found[point.name] = MethodEntry(
                point.name,
                help_,
                point.value,
                licence=str(licence or "not stated"),
                recipe=f"{point.module}:Recipe",
            )
    return found


def weights_of(name: str, weights: Path | None = None) -> WeightsFiles:
    """The files that a method is loaded from; weights: of your own, None for those shipped.

    Files that lie beside other weights were made with them: their shape model takes the place of the shipped one.
    Raises InputError for an unknown method, and where weights must be given and are not.
    """
    entry = method_entry(name)
    if entry.required and weights is None:
        raise InputError(f"method {name}: expected --weights, got none; {entry.required}")
    with resources.as_file(resources.files("pcdiff") / "weights") as shipped:
        own = weights if weights is not None else None if entry.own is None else shipped / entry.own
        if own is None:
            return WeightsFiles(None, shipped / PRIOR)
        if entry.own == PRIOR:
            return WeightsFiles(own, own)
        beside = own.parent / PRIOR
        companions = [own.parent / companion for companion in entry.companions]
        return WeightsFiles(
            own,
            beside if beside.is_file() else shipped / PRIOR,
            tuple(path for path in companions if path.is_file()),
        )


def weights_files(name: str, weights: Path | None = None) -> list[Path]:
    """As `weights_of`, every file in one list: what the record of a result names by its sha256."""
    return weights_of(name, weights).all


def load_method(name: str = DEFAULT, weights: Path | None = None) -> Method | PriorBasedMethod:
    """A method by its name, ready to be called; weights: of your own, None for those shipped.

    Loads torch only for a method with networks. Raises InputError for an unknown method, and for files of another kind.
    """
    return method_entry(name).load(weights_of(name, weights))
