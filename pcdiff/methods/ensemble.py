"""A vote of other methods, each with a share of the votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from pcdiff.config import StrictConfig, read_yaml, validate_config
from pcdiff.errors import InputError
from pcdiff.files import check_as_shipped, sha256
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Method, PriorBasedMethod, Proposal
from pcdiff.methods.candidates import Mask, combine
from pcdiff.methods.registry import WeightsFiles, load_method
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior

NAME = "ensemble"


class EnsembleConfig(StrictConfig):
    """The contents of the ensemble's file."""

    members: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1, description="methods and their shares")


@dataclass(frozen=True)
class EnsembleMethod:
    """Voxels are implant where the members that say so have more than half of all shares; so there is one candidate.

    members: name -> method and share.
    """

    prior: ShapePrior
    members: Mapping[str, tuple[Method | PriorBasedMethod, float]]

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`; ensemble: of each member. A member that refuses the skull has no vote.

        Raises InputError where all members refuse, with the reason of the last.
        """
        votes, total, refusal = np.zeros(skull.mask.shape, np.float32), 0.0, None
        for method, share in self.members.values():
            given = partial(method, skull, fit) if isinstance(method, PriorBasedMethod) else partial(method, skull)
            try:
                proposal = given(ensemble=ensemble, seed=seed, device=device)
                votes += np.float32(share) * combine(proposal.candidates, skull)[0].mask
                total += share
            except InputError as error:
                refusal = error
        if not total:
            raise InputError(f"method {NAME}: every member refuses the skull; {refusal}")
        return Proposal([Mask(skull.with_mask(votes > total / 2))])


def load(files: WeightsFiles) -> EnsembleMethod:
    """The members that the file names, each with its shipped weights.

    Raises InputError for another file, an unknown method, one that needs weights, and one on another shape model.
    """
    assert files.own is not None
    prior = ShapePrior.load(files.prior)
    return EnsembleMethod(
        prior,
        {name: (_member(name, prior, files.own), share) for name, share in read_ensemble(files.own).members.items()},
    )


def read_ensemble(path: Path) -> EnsembleConfig:
    """Reads the ensemble's YAML. Raises InputError for another file, and for a shipped one that has changed."""
    content = read_yaml(path, "a YAML file with members: {method: share}")
    check_as_shipped(path, sha256(path))
    return validate_config(EnsembleConfig, content, str(path))


def _member(name: str, prior: ShapePrior, path: Path) -> Method | PriorBasedMethod:
    if name == NAME:
        raise InputError(f"{path}: expected methods other than {NAME} as members, got {NAME}; remove it")
    method = load_method(name)
    if isinstance(method, PriorBasedMethod) and method.prior.digest != prior.digest:
        raise InputError(
            f"{path}: expected members on the shape model {prior.digest[:16]}, got {name} on "
            f"{method.prior.digest[:16]}; leave no other prior.safetensors beside the file"
        )
    return method
