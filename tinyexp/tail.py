"""The part of a network that a frozen part feeds: found, and proven to give the same logits from the same features."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyexp.device import seed_all
from tinyexp.freezing import Frozen
from tinyexp.network import Network

_TOLERANCE = 1e-4  # of the largest logit


def find_tail(network: Network, frozen: Frozen, images: Tensor) -> str | None:
    """The name of the smallest module with all trained parameters that makes the logits of what it is fed alone.

    That is proven on these uint8 images (N, C, H, W), in training mode and with equal seeds: what stands between a
    frozen part and the tail must draw nothing at random. None where there is no such module but the whole network.
    """
    trial = network.of(copy.deepcopy(network.model))
    frozen.train_mode(trial.model)
    name = _common([name for name, parameter in trial.model.named_parameters() if parameter.requires_grad])
    while name:
        if _proven(trial, name, images):
            return name
        name = name.rpartition(".")[0]
    return None


def _common(names: list[str]) -> str:
    """The innermost module that all these parameters are in."""
    split = [name.split(".")[:-1] for name in names]
    same = 0
    while all(len(parts) > same and parts[same] == split[0][same] for parts in split):
        same += 1
    return ".".join(split[0][:same])


@torch.no_grad()
def _proven(network: Network, name: str, images: Tensor) -> bool:
    tail = network.model.get_submodule(name)
    state = copy.deepcopy(tail.state_dict())  # batch-norm's statistics
    seed_all(network.traits.device, 0)
    logits, fed = features_of(network, tail, images)
    tail.load_state_dict(state)
    if len(fed) != 1:
        return False
    seed_all(network.traits.device, 0)
    with torch.autocast(
        network.traits.device.type, network.traits.autocast, enabled=network.traits.autocast is not None
    ):
        again = tail(fed[0]).float()
    tail.load_state_dict(state)
    modes = {module: module.training for module in network.model.modules()}
    network.model.eval()
    _, kept = features_of(network, tail, images)
    for module, mode in modes.items():
        module.training = mode
    scale = float(fed[0].abs().max())
    if not torch.allclose(kept[0].float(), fed[0].float(), rtol=0, atol=_TOLERANCE * scale):
        return False  # something before it draws at random, or has statistics of its own
    return again.shape == logits.shape and torch.allclose(
        again, logits, rtol=0, atol=_TOLERANCE * max(1.0, float(logits.abs().max()))
    )


def features_of(network: Network, tail: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits of uint8 images, and what the tail was fed each time it ran; no tensor stands for another thing."""
    fed: list[Tensor] = []

    def watch(_: nn.Module, given: tuple[Any, ...], more: dict[str, Any]) -> None:
        fed.extend(given if len(given) == 1 and isinstance(given[0], Tensor) and not more else ())

    hook = tail.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        return network(images), fed
    finally:
        hook.remove()


@torch.no_grad()
def folded(network: Network, images: Tensor, tail: str) -> Network:
    """A copy for inference alone, each batch-norm that follows a convolution taken into its weights.

    Pairs are found by watching it run on these images, and kept where the tail is fed the same, which is tried in fp32;
    else it is as it was.
    """
    made = network.of(copy.deepcopy(network.model).eval())
    exact = replace(made, traits=replace(made.traits, autocast=None))
    _, (before,) = features_of(exact, made.model.get_submodule(tail), images)
    pairs = [pair for pair in _pairs(made, images) if not f"{pair[1]}.".startswith(f"{tail}.")]
    for convolution, _, norm in pairs:
        convolution.weight, convolution.bias = torch.nn.utils.fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    for _, name, norm in pairs:
        parent, _, leaf = name.rpartition(".")
        setattr(made.model.get_submodule(parent), leaf, nn.Sequential(*norm.children()))  # some carry an activation
    _, (after,) = features_of(exact, made.model.get_submodule(tail), images)
    same = torch.allclose(after, before, rtol=0, atol=_TOLERANCE * float(before.abs().max()))
    return made if same else network.of(copy.deepcopy(network.model).eval())


def _pairs(network: Network, images: Tensor) -> list[tuple[Any, str, Any]]:
    """(convolution, name of the batch-norm, batch-norm), each of them run once."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # outputs are held, so that no other takes a freed one's place
    found: list[tuple[Any, str, Any]] = []
    runs: dict[nn.Module, int] = {}
    names = {module: name for name, module in network.model.named_modules()}

    def watch(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        runs[module] = runs.get(module, 0) + 1
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            made[id(output)] = (module, output)
        elif given and id(given[0]) in made and getattr(module, "running_mean", None) is not None:
            found.append((made[id(given[0])][0], names[module], module))

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.batchnorm._BatchNorm)
    hooks = [each.register_forward_hook(watch) for each in network.model.modules() if isinstance(each, kinds)]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    affine = [pair for pair in found if pair[2].weight is not None]
    return [pair for pair in affine if runs[pair[0]] == runs[pair[2]] == 1]
