"""The methods by name, and the weights files each of them reads."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pcdiff.errors import InputError
from pcdiff.methods.base import Method
from pcdiff.prior.model import ShapePrior

# The methods, and the weights of their own that are shipped.
METHODS = {"diffusion": "denoiser.safetensors", "prior": "prior.safetensors", "paper": None}


def weights_files(method: str, weights: Path | None = None) -> list[Path]:
    """What a method reads: its own weights (by default those shipped); then, unless it is the prior, a prior; then, for
    diffusion, a network of places where there is one.

    What lies beside other weights was made with them: their prior wins over the shipped one, and no other network of
    places fits them.
    Raises InputError for an unknown method, and for the paper's, of which none are shipped, without weights.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if method == "paper" and weights is None:
        raise InputError(
            "method paper: expected --weights, got none; its authors published none, so import a checkpoint of "
            "your own with pcdiff import-checkpoint, or train one by configs/paper_skullfix.yaml"
        )
    with resources.as_file(resources.files("pcdiff") / "weights") as shipped:
        files = [weights or shipped / str(METHODS[method])]
        if method != "prior":
            beside = files[0].with_name("prior.safetensors")
            files.append(beside if beside.is_file() else shipped / "prior.safetensors")
        if method == "diffusion":
            files += [path for path in [files[0].with_name("places.safetensors")] if path.is_file()]
    return files


def load_method(name: str, weights: Path | None = None) -> Method:
    """One of `record.METHODS`; weights: of your own, None for those shipped. Loads torch only where it must.

    Raises InputError for an unknown method, or other files.
    """
    own, *beside = weights_files(name, weights)
    if name == "prior":
        from pcdiff.methods.prior import PriorMethod

        return PriorMethod(ShapePrior.load(own))
    if name == "paper":
        from pcdiff.methods.friedrich2023.method import PaperMethod

        return PaperMethod.load(own, ShapePrior.load(beside[0]))
    from pcdiff.methods.anchored.method import DiffusionMethod
    from pcdiff.methods.occupancy.model import OccupancyModel

    prior, *places = beside
    return DiffusionMethod.load(own, ShapePrior.load(prior), OccupancyModel.load(places[0]) if places else None)
