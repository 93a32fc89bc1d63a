"""Which device a run is on, and everything that follows from it. What one process does; several are dist.py's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinyexp.errors import ConfigError

_FAST_BF16_PIXELS = (
    64 * 64
)  # bf16 on a CPU: 1.0x of fp32 at 28 px, 1.6x at 64 px, 2.0x at 224 px (ResNet-18, AVX512-BF16)

_CHANNELS_LAST_PIXELS = 32 * 32  # on a CPU: ResNet-18 at 32 px takes 0.7x of the time
_IN_CACHE = 2**17  # float32 that a core's cache holds beside other things


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What follows from a device; made by `traits` alone."""

    device: torch.device
    autocast: torch.dtype | None  # None: full precision
    grad_scaler: bool  # fp16 gradients underflow without it
    channels_last: bool
    pin_memory: bool
    score_dtype: torch.dtype  # of sums on the device; float64 does not exist on MPS


def available_devices() -> tuple[str, ...]:
    """The kinds of device that this machine has, the best first."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return tuple(kind for kind, there in found.items() if there)


def pick_device(wanted: str, available: tuple[str, ...], local_rank: int = 0) -> torch.device:
    """The device for `hw.device`: auto takes the best there is.

    Raises:
        ConfigError: it is not there; the message names those that are.
    """
    kind = available[0] if wanted == "auto" else wanted
    if kind not in available:
        raise ConfigError(
            f"hw.device={wanted} is not on this machine, which has: {', '.join(available)} (hw=auto takes the first)"
        )
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


def fast_bf16(device: torch.device) -> bool:
    """Does this machine's hardware compute in bf16? Without it, bf16 is far slower than fp32, or emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def traits(device: torch.device, precision: str, image_pixels: int, bf16: bool) -> Traits:
    """All that follows from a device: a pure function, so that each device's row can be tested on any machine.

    Args:
        precision: `train.precision`: auto, fp32, bf16 or fp16.
        image_pixels: height x width of the input.
        bf16: whether the hardware computes in bf16 (`fast_bf16`).

    Raises:
        ConfigError: fp16 on the CPU, where its gradients have no scaler and its convolutions no kernel worth having.
    """
    cuda, mps = device.type == "cuda", device.type == "mps"
    if precision == "auto":
        fast = bf16 and (cuda or (device.type == "cpu" and image_pixels >= _FAST_BF16_PIXELS))
        precision = "bf16" if fast else "fp16" if cuda else "fp32"
    if precision == "fp16" and not (cuda or mps):
        raise ConfigError("train.precision=fp16 is for cuda and mps; on the CPU use bf16 or fp32")
    autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return Traits(
        device=device,
        autocast=autocast,
        grad_scaler=cuda and autocast is torch.float16,
        # can be silently wrong on MPS
        channels_last=cuda or (device.type == "cpu" and image_pixels >= _CHANNELS_LAST_PIXELS),
        pin_memory=cuda,
        score_dtype=torch.float32 if mps else torch.float64,
    )


def seed_all(device: torch.device, seed: int) -> None:
    """Seed the generators that dropout draws from: the CPU's and the device's own.

    Not torch.manual_seed, which seeds every backend there is and takes sixty times as long.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


class Normalizer:
    """uint8 images to what a network takes, on the device and into a buffer that is kept.

    A fresh buffer for each batch would cost its page faults each time. The buffer is used again by the next call, so
    that a batch's backward pass must be over by then.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], traits: Traits) -> None:
        shape = (1, len(mean), 1, 1)
        self._mean = torch.tensor(mean, device=traits.device).mul(255).view(shape)
        self._scale = torch.tensor(std, device=traits.device).mul(255).reciprocal().view(shape)
        self._traits = traits
        self._buffer = torch.empty(0, device=traits.device)
        self._parts: list[tuple[Tensor, Tensor]] = []  # of the buffer: a few images each, as they are and flat

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 in 0..255 -> (N, C, H, W) float32 of mean 0 and deviation 1, on the device."""
        images = images.to(self._traits.device, non_blocking=self._traits.pin_memory)
        if self._buffer.shape != images.shape:
            with torch.inference_mode(False):
                self._make_buffer(images)
        if images.device.type != "cpu" or images.numel() <= _IN_CACHE:
            return torch.sub(images, self._mean, out=self._buffer).mul_(self._scale)
        # a few images at a time, which stay in the cache between the three
        for part, (buffer, flat) in zip(images.split(self._rows), self._parts, strict=True):
            buffer.copy_(part)
            flat.sub_(self._flat_mean).mul_(self._flat_scale)
        return self._buffer

    def _make_buffer(self, images: Tensor) -> None:
        """A buffer, and views of it whose indices run as its memory does: broadcasting is fast there."""
        count, channels, height, width = images.shape
        layout = torch.channels_last if self._traits.channels_last else torch.contiguous_format
        self._buffer = torch.empty(images.shape, device=images.device, memory_format=layout)
        flat, self._flat_mean, self._flat_scale = self._buffer, self._mean, self._scale
        if self._traits.channels_last:
            flat = flat.permute(0, 2, 3, 1).view(count, height * width * channels)
            self._flat_mean, self._flat_scale = (
                each.view(1, channels).tile(1, height * width) for each in (self._mean, self._scale)
            )
        self._rows = max(1, _IN_CACHE // max(1, images[:1].numel()))
        self._parts = list(zip(self._buffer.split(self._rows), flat.split(self._rows), strict=True))
