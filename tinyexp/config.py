"""The keys of a run that are ours, with types and bounds. Their values stand in conf/, never here.

Standard library only: a wrong value is told before torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from tinyexp.typed import Rule, above, at_least, require


def _is_name(text: str) -> bool:
    return 0 < len(text) <= 100 and text[0] != "." and all(c.isalnum() or c in "._-+" for c in text)


def _is_address(text: str) -> bool:
    found = re.fullmatch(r"[\w.-]+(?::(\d{1,5}))?", text)
    return found is not None and 1 <= int(found[1] or 1) <= 65535


SEED = Rule("at least 0 and below 2**63", lambda value: 0 <= value < 2**63)
RANKS = Rule("1 to 65536", lambda value: 1 <= value <= 65536)
ADDRESS = Rule("HOST or HOST:PORT with a port of 1 to 65535", _is_address)
THREADS = Rule("1 to 1024", lambda value: 1 <= value <= 1024)
MAGNITUDE = Rule("0 to 30", lambda value: 0 <= value <= 30)
SHARE = Rule("in [0, 1)", lambda value: 0 <= value < 1)
DECAY = Rule("between 0 and 1", lambda value: 0 < value < 1)
EACH_ABOVE_0 = Rule("above 0 for each channel", lambda values: all(value > 0 for value in values))
PROBABILITY = Rule("in 0..1", lambda value: 0 <= value <= 1)
SPAN_OF_SHARES = Rule(
    "two shares above 0 and at most 1, the smaller first", lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1
)
SPAN_OF_RATIOS = Rule("two ratios above 0, the smaller first", lambda v: len(v) == 2 and 0 < v[0] <= v[1])
FOUR = Rule("four numbers of at least 0, the last at most 0.5", lambda v: len(v) == 4 and min(v) >= 0 and v[3] <= 0.5)
EPOCHS = Rule("different epochs of at least 1", lambda v: len(set(v)) == len(v) and all(e >= 1 for e in v))
NAME = Rule("1 to 100 letters, digits or ._-+ and not begin with a dot", _is_name)
LAYER = Rule("the name of a layer, as conv1", lambda text: text.strip() == text != "")
PATH = Rule("a path of printable characters", lambda text: text != "" and text.isprintable())


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    patience: Annotated[int, at_least(1)] | None
    min_delta: Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    epochs: Annotated[int, at_least(1)]
    batch_size: Annotated[int, at_least(1)]
    eval_batch_size: Annotated[int, at_least(1)]
    accumulate: Annotated[int, at_least(1)]
    seed: Annotated[int, SEED]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    label_smoothing: Annotated[float, SHARE]
    clip_norm: Annotated[float, above(0)] | None
    ema: Annotated[float, DECAY] | None
    limit_batches: Annotated[int, above(0)] | None
    max_time: Annotated[float, above(0)] | None
    early_stop: EarlyStop
    compile: bool
    deterministic: bool

    def __post_init__(self) -> None:
        require(self.accumulate <= self.batch_size, "train.accumulate", "at most train.batch_size", self.accumulate)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    dir: Annotated[str, PATH] | None
    name: Annotated[str, NAME] | None
    root: Annotated[str, PATH]


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    """The views of a run in TensorBoard."""

    scalars: bool
    groups: bool
    hparams: bool
    text: bool
    inputs: bool
    filters: bool
    graph: bool
    histograms: Annotated[int, at_least(1, "step")] | None
    feature_maps: Annotated[str, LAYER] | None
    mistakes: bool
    predictions: bool
    confusion: bool
    per_class: bool
    lr: bool
    projector: Literal["logits", "features"] | None
    each_epoch: bool

    @property
    def any(self) -> bool:
        return any(getattr(self, view.name) for view in fields(self) if view.name != "each_epoch")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    level: Literal["debug", "info", "warning", "error"]
    every: Annotated[int, at_least(1, "step")]
    tensorboard: TensorBoardConfig


@dataclass(frozen=True, kw_only=True)
class CkptConfig:
    every_minutes: Annotated[float, at_least(0)] | None
    monitor: Literal["val/top1", "val/loss"]
    keep: Annotated[int, at_least(0)]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    search: Literal["grid", "random", "tpe"]
    dir: Annotated[str, PATH] | None
    jobs: Annotated[int, at_least(1)]
    on_error: Literal["continue", "stop"]
    at_epochs: Annotated[tuple[int, ...], EPOCHS]
    grid: dict[str, Any]  # key or group -> the values to try
    trials: Annotated[int, at_least(1)] | None
    space: dict[str, Any]  # key or group -> a range or the values to draw from
    seed: Annotated[int, SEED]
    startup: Annotated[int, at_least(0)]
    prune_after: Annotated[int, at_least(0, "epochs")] | None
    launcher: Literal["process", "submitit"]
    submitit: dict[str, Any]

    def __post_init__(self) -> None:
        if self.search == "grid":
            require(
                not self.space, "sweep.space", "left out with sweep=grid: give sweep=random or sweep=tpe", self.space
            )
        else:
            rule = "a mapping such as {optim.lr: {low: 1e-4, high: 1e-1, log: true}}"
            require(bool(self.space), "sweep.space", rule, self.space)
            require(self.trials is not None, "sweep.trials", "a number of runs", self.trials)


@dataclass(frozen=True, kw_only=True)
class HwConfig:
    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Annotated[int, THREADS] | None
    procs: Annotated[int, RANKS] | Literal["auto"]
    nodes: Annotated[int, RANKS]
    node: Annotated[int, at_least(0)] | None
    master: Annotated[str, ADDRESS] | None
    timeout: Annotated[float, above(0, "seconds")]
    max_restarts: Annotated[int, at_least(0)]
    join_timeout: Annotated[float, above(0, "seconds")]
    grad_sync: Literal["auto", "ddp", "staged"]
    sync_bn: bool

    def __post_init__(self) -> None:
        rule = f"below hw.nodes={self.nodes}"
        require(self.node is None or self.node < self.nodes, "hw.node", rule, self.node)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of train images."""

    crop: Literal["random_resized", "pad"] | None
    scale: Annotated[tuple[float, ...], SPAN_OF_SHARES]
    ratio: Annotated[tuple[float, ...], SPAN_OF_RATIOS]
    padding: Annotated[int, at_least(0, "px")]
    flip: Annotated[float, PROBABILITY]
    policy: Literal["randaugment", "trivialaugment"] | None
    num_ops: Annotated[int, at_least(1)]
    magnitude: Annotated[int, MAGNITUDE]
    jitter: Annotated[tuple[float, ...], FOUR] | None
    erase: Annotated[float, PROBABILITY]
    mixup: Annotated[float, at_least(0)]
    cutmix: Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """The keys that each data set has: from its files to normalised batches, whatever they are."""

    image_size: Annotated[int, at_least(1, "px")]
    resize: Annotated[int, at_least(1, "px")] | None
    augment: AugmentConfig
    normalize: Literal["given", "auto"]
    mean: tuple[float, ...]
    std: Annotated[tuple[float, ...], EACH_ABOVE_0]
    cache_dir: Annotated[str, PATH]
    decode_size: Annotated[int, at_least(1, "px")] | Literal["auto"] | None
    max_gb: Annotated[float, at_least(0)]
    on_error: Literal["stop", "skip"]
    max_skipped: Annotated[float, SHARE]
    workers: Annotated[int, at_least(0)] | Literal["auto"]
    start_method: Literal["fork", "spawn", "forkserver"] | None
    preview: bool

    def __post_init__(self) -> None:
        require(
            len(self.mean) == len(self.std) >= 1, "dataset.mean and dataset.std", "of one length", (self.mean, self.std)
        )
        for key in ("resize", "decode_size"):
            size = getattr(self, key)
            rule = f"at least dataset.image_size={self.image_size}"
            require(not isinstance(size, int) or size >= self.image_size, f"dataset.{key}", rule, size)


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """What a run takes over from model.weights, and what it trains of it."""

    scratch: bool
    match: Literal["name", "order"]
    rename: dict[str, Any]  # name or prefix in the file -> in the network
    head: Literal["auto", "fresh", "known"]
    freeze: Literal["none", "loaded", "backbone"] | tuple[str, ...]
    unfreeze_at: Annotated[int, at_least(1, "epoch")] | None
    backbone_lr_scale: Annotated[float, above(0)]
    features: Literal["auto", "never"]
    views: Annotated[int, at_least(1)] | None

    def __post_init__(self) -> None:
        for old, new in self.rename.items():
            require(isinstance(new, str), f"transfer.rename.{old}", "a name", new)
        frozen = self.freeze != "none"
        require(
            frozen or self.unfreeze_at is None, "transfer.unfreeze_at", "null where nothing is frozen", self.unfreeze_at
        )
        require(frozen or self.views is None, "transfer.views", "null where nothing is frozen", self.views)


@dataclass(frozen=True, kw_only=True)
class Component:
    """A class or function by its dotted name, and the keyword arguments that a YAML gives it."""

    slot: str
    target: str
    arguments: dict[str, Any]
    trusted: bool  # the user's own word (command line, conf/), not read back from a file
    inherited: frozenset[str] = frozenset()  # arguments of the YAML's target, left out where another does not take them


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: typed for the program, plain (JSON types) for the checkpoint, text (YAML) for config.yaml."""

    dataset: Component
    loader: LoaderConfig
    model: Component
    weights: str | None  # model.weights
    transfer: TransferConfig
    optim: Component
    scheduler: Component
    train: TrainConfig
    run: RunConfig
    log: LogConfig
    ckpt: CkptConfig
    sweep: SweepConfig
    hw: HwConfig
    resume: str | None
    init_from: str | None
    config_file: str | None
    trust: tuple[str, ...]
    sources: Mapping[str, str]  # keys that a file gave, with its name, for errors
    plain: dict[str, Any]
    text: str
    may_fetch: bool = True  # false where a file that was read back alone says where a data set is to be put
    notes: tuple[str, ...] = ()  # what a user should know of how it was composed
    must_go: Mapping[str, str] = field(
        default_factory=dict
    )  # keys that a resumed run had not, and why they may not stay


SLOTS = ("dataset", "model", "optim", "scheduler")
