"""What is known of a run before it is made; how it is found is probe.py's, which takes torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Memory is in bytes, of one process; activations are those of one micro-batch."""

    device: str
    precision: str
    network: str
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    averaged: int
    activations: int
    left_out: tuple[str, ...]  # keys of the config

    @property
    def memory(self) -> dict[str, int]:
        names = ("weights", "gradients", "optimizer", "averaged", "activations")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def checkpoint(self) -> int:
        return self.weights + self.optimizer + self.averaged
