"""Networks on devices."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def on_device(network: Network, device: str | torch.device) -> Network:
    """The network on a device: itself where it lies there, else a copy.

    A network that several threads share must not move during a call.
    """
    parameter = next(network.parameters(), None)
    if parameter is None or parameter.device == torch.device(device):
        return network
    return deepcopy(network).to(device)


def computes_bfloat16(device: str | torch.device) -> bool:
    """Whether products in bfloat16 are faster there than in float32.

    A processor needs AVX-512 for it. Without, PyTorch's 3D convolutions take seventy times as long as in float32.
    """
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def half_precision(device: str | torch.device, wanted: bool = True) -> torch.autocast:
    """In the block products are computed in bfloat16, if that is wanted and the device is fast at it."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=wanted and computes_bfloat16(device))


def device_name(device: torch.device) -> str:
    """The name of a GPU, or "cpu" with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
