"""A running average of a model's weights, whose memory grows with training: one setting for any length of run."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Power-function average: the weights after step t count as t^power (Karras et al. 2024, EDM2, section 3.1).

    The profile's standard deviation, as a part of all steps so far, is ((p + 1) / (p + 2)^2 / (p + 3))^0.5: 0.10 at 7,
    0.05 at 17. Unlike a constant decay it needs no warm-up: the initial weights are forgotten at the first update.
    Averages are float32 at least; what is not floating point (counters in buffers) is copied.
    """

    def __init__(self, model: nn.Module, power: float = 7.0) -> None:
        if not power >= 0:
            raise ValueError(f"power must be 0 (flat average) or more, got {power}")
        self.power = power
        self.step = 0
        self.average = {name: _wide(value).clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step `step` = 1, 2, ...; steps may be left out, never repeated.

        Raises ValueError for a step not after the last one.
        """
        if step <= self.step:
            raise ValueError(f"step must grow, got {step} after {self.step}")
        # The product of (1 - 1/t)^(power + 1) (EDM2, eq. 127) over all steps since the last update telescopes to this.
        beta = (self.step / step) ** (self.power + 1)
        for name, value in model.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(value.to(average), 1 - beta)
            else:
                average.copy_(value)
        self.step = step

    def copy_to(self, model: nn.Module) -> None:
        """Write the averages into a model of the same architecture, in its own dtype and on its device."""
        model.load_state_dict(self.average)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything `update` goes on from, as flat tensors (copies): fit for safetensors as for torch.save."""
        averages = {f"average.{name}": value.clone() for name, value in self.average.items()}
        return {"step": torch.tensor(self.step), **averages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state, on the present devices. Raises ValueError where names do not match the model's."""
        expected = {"step", *(f"average.{name}" for name in self.average)}
        if state.keys() != expected:
            odd = sorted(state.keys() ^ expected)
            raise ValueError(f"the state must be of an Ema of this model; names that differ: {', '.join(odd[:5])}")
        for name, average in self.average.items():
            average.copy_(state[f"average.{name}"])
        self.step = int(state["step"])


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
