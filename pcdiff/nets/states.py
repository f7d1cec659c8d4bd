"""Weights from a file into a network: names, shapes, types and values are compared first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from pcdiff.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


OTHER_VERSION = "weights of another version's network; train anew, or use its version"


def load_network(
    make: Callable[[], Network], state: Mapping[str, Tensor], where: object, refusal: str = OTHER_VERSION
) -> Network:
    """A network in evaluation mode with the weights of a file.

    Args:
        make: the network without weights; it is made twice, the first time without memory, so that a file of some
            kilobytes cannot ask for a network of many gigabytes.
        state: tensors by name; those of floats are converted to the network's type.
        where: the file, for messages.
        refusal: what a file for another network is called, and what to do.

    Raises:
        InputError: a missing or unknown name, another shape or type, NaN or infinity.
    """
    with torch.device("meta"):
        expected = make().state_dict()
    check_state(state, expected, where, refusal)
    network = make()
    network.load_state_dict({name: value.to(expected[name].dtype) for name, value in state.items()})
    return network.eval()


def check_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: object, refusal: str = OTHER_VERSION
) -> None:
    """Raises InputError unless the tensors have the names, shapes and kinds expected, and finite values."""
    if odd := sorted(state.keys() ^ expected.keys()):
        kind = "an unknown" if odd[0] in state else "no"
        raise InputError(f"{where}: {refusal} ({kind} {odd[0][:80]}; {len(odd)} names differ)")
    for name, value in state.items():
        wanted = expected[name]
        counts = not wanted.is_floating_point() and not value.is_complex()  # counters are stored as floats, too
        if value.shape != wanted.shape or not (counts or value.is_floating_point()):
            raise InputError(
                f"{where}: {refusal} ({name}: expected {wanted.dtype} {tuple(wanted.shape)}, got {value.dtype} "
                f"{tuple(value.shape)})"
            )
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise InputError(f"{where}: expected finite weights, got NaN or infinity in {name}; use others")
