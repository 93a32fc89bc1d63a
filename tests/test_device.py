"""What follows from a device, as a table that any machine can test; and images made ready for a network."""

from __future__ import annotations

import itertools

import pytest
import torch

from tinyexp.device import Normalizer, Traits, available_devices, fast_bf16, pick_device, seed_all, traits
from tinyexp.errors import ConfigError

BF16, FP16 = torch.bfloat16, torch.float16
SMALL, LARGE = 28 * 28, 224 * 224


def plan(device: str, precision: str, pixels: int, bf16: bool) -> Traits:
    return traits(torch.device(device), precision, pixels, bf16)


@pytest.mark.parametrize(
    ("device", "precision", "with_bf16", "without_bf16"),  # the autocast dtype at 28 px and at 224 px
    [
        ("cpu", "auto", (None, BF16), (None, None)),
        ("cpu", "fp32", (None, None), (None, None)),
        ("cpu", "bf16", (BF16, BF16), (BF16, BF16)),
        ("cuda", "auto", (BF16, BF16), (FP16, FP16)),
        ("cuda", "fp32", (None, None), (None, None)),
        ("cuda", "bf16", (BF16, BF16), (BF16, BF16)),
        ("cuda", "fp16", (FP16, FP16), (FP16, FP16)),
        ("mps", "auto", (None, None), (None, None)),
        ("mps", "fp32", (None, None), (None, None)),
        ("mps", "bf16", (BF16, BF16), (BF16, BF16)),
        ("mps", "fp16", (FP16, FP16), (FP16, FP16)),
    ],
)
def test_precision(
    device: str,
    precision: str,
    with_bf16: tuple[torch.dtype | None, torch.dtype | None],
    without_bf16: tuple[torch.dtype | None, torch.dtype | None],
) -> None:
    for bf16, expected in ((True, with_bf16), (False, without_bf16)):
        for pixels, dtype in zip((SMALL, LARGE), expected, strict=True):
            made = plan(device, precision, pixels, bf16)
            assert made.autocast is dtype
            assert made.grad_scaler == (device == "cuda" and dtype is FP16)


@pytest.mark.parametrize(
    ("device", "channels_last", "pin_memory", "score_dtype"),
    [
        ("cpu", (False, True), False, torch.float64),
        ("cuda", (True, True), True, torch.float64),
        ("mps", (False, False), False, torch.float32),  # no float64 there, and channels_last may be wrong
    ],
)
def test_the_rest_follows_from_the_device_and_the_size_of_images(
    device: str, channels_last: tuple[bool, bool], pin_memory: bool, score_dtype: torch.dtype
) -> None:
    for precision, bf16 in itertools.product(("auto", "fp32", "bf16"), (True, False)):
        for pixels, expected in zip((SMALL, LARGE), channels_last, strict=True):
            made = plan(device, precision, pixels, bf16)
            assert made.device == torch.device(device)
            assert made.channels_last is expected
            assert (made.pin_memory, made.score_dtype) == (pin_memory, score_dtype)


def test_fp16_is_not_for_the_cpu() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision=fp16 is for cuda and mps; on the CPU use bf16 or fp32"):
        plan("cpu", "fp16", LARGE, True)


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        ("auto", ("cuda", "mps", "cpu"), torch.device("cuda", 1)),
        ("auto", ("mps", "cpu"), torch.device("mps")),
        ("auto", ("cpu",), torch.device("cpu")),
        ("cpu", ("cuda", "cpu"), torch.device("cpu")),
        ("cuda", ("cuda", "cpu"), torch.device("cuda", 1)),
    ],
)
def test_pick_device(wanted: str, available: tuple[str, ...], expected: torch.device) -> None:
    assert pick_device(wanted, available, local_rank=1) == expected


def test_a_missing_device_is_told_with_those_that_are_there() -> None:
    message = r"hw\.device=cuda is not on this machine, which has: mps, cpu \(hw=auto takes the first\)"
    with pytest.raises(ConfigError, match=message):
        pick_device("cuda", ("mps", "cpu"))


def test_this_machine_has_a_cpu() -> None:
    assert available_devices()[-1] == "cpu"
    assert isinstance(fast_bf16(torch.device("cpu")), bool)
    assert fast_bf16(torch.device("mps")) is False


def test_seed_all_is_what_dropout_draws_from() -> None:
    def draw(seed: int) -> torch.Tensor:
        seed_all(torch.device("cpu"), seed)
        return torch.nn.functional.dropout(torch.ones(50))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [SMALL, LARGE])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["N C H W", "N H W C"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (700, 14, 15), (3, 200, 190), (1, 1, 1), (2, 1, 9), (0, 6, 7)], ids=str)
def test_normalizer_is_the_plain_formula(
    channels: int, pixels: int, layout: torch.memory_format, shape: tuple[int, int, int]
) -> None:
    """However the images lie in memory: few, or more than the cache takes at once."""
    made = plan("cpu", "fp32", pixels, False)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.1)[:channels]
    count, height, width = shape
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8).to(memory_format=layout)
    before = images.clone()
    normalized = Normalizer(mean, std, made)(images)
    formula = (images.double() / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized.double(), formula, rtol=1e-5, atol=1e-5)
    assert torch.equal(images, before)
    wanted = torch.channels_last if pixels == LARGE else torch.contiguous_format
    assert normalized.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("pixels", [SMALL, LARGE])
def test_normalizer_goes_on_after_a_batch_of_another_size(pixels: int) -> None:
    """The last batch of an epoch is smaller; val runs under inference_mode, and training goes on after it."""
    normalize = Normalizer((0.5, 0.4), (0.5, 0.2), plan("cpu", "fp32", pixels, False))
    for count, side in ((4, 3), (2, 3), (4, 3), (4, 5), (4, 3)):
        images = torch.randint(0, 256, (count, 2, side, side), dtype=torch.uint8)
        mean, std = torch.tensor([0.5, 0.4]).view(-1, 1, 1), torch.tensor([0.5, 0.2]).view(-1, 1, 1)
        expected = (images.double() / 255 - mean) / std
        with torch.inference_mode():
            torch.testing.assert_close(normalize(images).double(), expected, rtol=1e-5, atol=1e-5)
        weight = torch.ones(2, 1, 1, requires_grad=True)
        (normalize(images) * weight).sum().backward()
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad.double(), expected.sum((0, 2, 3))[:, None, None], rtol=1e-4, atol=1e-3)


def test_normalizer_keeps_its_buffer() -> None:
    normalize = Normalizer((0.5,), (0.5,), plan("cpu", "fp32", SMALL, False))
    first = normalize(torch.zeros(4, 1, 3, 3, dtype=torch.uint8))
    place = first.data_ptr()
    with torch.no_grad():
        assert normalize(torch.ones(4, 1, 3, 3, dtype=torch.uint8)).data_ptr() == place
    assert normalize(torch.zeros(3, 1, 3, 3, dtype=torch.uint8)).shape == (3, 1, 3, 3)
    assert normalize(torch.zeros(0, 1, 3, 3, dtype=torch.uint8)).shape == (0, 1, 3, 3)
