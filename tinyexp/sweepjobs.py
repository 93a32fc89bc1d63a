"""From a sweep's command line to its jobs: of a grid, drawn at random, or one after the other as a search asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyexp.compose import check_begin, compose_overrides
from tinyexp.config import Config, SweepConfig
from tinyexp.errors import ConfigError
from tinyexp.hydraconf import by_hydra
from tinyexp.overrides import Overrides, jobs, parse, word
from tinyexp.space import draw, read_space
from tinyexp.stored import read_config_file
from tinyexp.validate import mapping


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep: its words, the values that differ from job to job, and what they make."""

    words: tuple[str, ...]
    label: dict[str, str]
    config: Config


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is to run: `jobs`, or as many trials as `config` says with values of the space."""

    words: tuple[str, ...]  # those of all jobs
    config: SweepConfig
    jobs: list[SweepJob]
    samples: list[SweepJob]  # what a search may come to at the ends of its ranges: checked, and not run

    def trial(self, values: Mapping[str, Any]) -> SweepJob:
        """The job of a search's values. Raises ConfigError where these cannot be together."""
        return _job_of(self.words, values)


def plan_sweep(words: Sequence[str]) -> SweepPlan:
    """All jobs of a sweep that are known before it begins, every one of them composed and so checked.

    Raises:
        ConfigError: as compose, for any of the jobs, which is named; or a key that is for single runs.
    """
    overrides = parse(words)
    for key, instead in (("run.dir", "sweep.dir"), ("resume", "one run at a time")):
        if key in overrides.given:
            raise ConfigError(f"{key} is for one run, and -m makes several: use {instead}")
    values = {} if overrides.swept else _sweep_values(overrides)
    if values.get("search", "grid") == "grid":
        found = _grid_jobs(overrides)
        return SweepPlan(tuple(overrides.words), found[0].config.sweep, found, [])
    if "config_file" in overrides.given:
        for key in mapping(values.get("space"), "sweep.space"):
            _check_word(parse([f"++{key.lstrip('+')}=0"]))
    if values["grid"]:
        raise ConfigError(f"sweep.grid is for sweep=grid, and this is sweep={values['search']}: give sweep.grid={{}}")
    space = read_space(mapping(values.get("space"), "sweep.space"))
    if one := next((key for key in space if key in overrides.given), None):
        raise ConfigError(f"{one} is given, and sweep.space has it too: leave one of them out")
    first = {key: part.samples[0] for key, part in space.items()}
    tried = [{**first, key: value} for key, part in space.items() for value in part.samples]
    samples = [_job_of(overrides.words, values) for values in tried or [first]]
    config = samples[0].config.sweep
    plan = SweepPlan(tuple(overrides.words), config, [], samples)
    if config.search == "random":
        plan.jobs.extend(map(plan.trial, draw(space, config.seed, config.trials or 1)))
    return plan


def _job_of(words: Sequence[str], values: Mapping[str, Any]) -> SweepJob:
    own = [word(key, value) for key, value in values.items()]
    label = {key.lstrip("+"): one.partition("=")[2] for key, one in zip(values, own, strict=True)}
    return _composed((*words, *own), label)


def _composed(words: tuple[str, ...], label: dict[str, str]) -> SweepJob:
    try:
        config = compose_overrides(parse(words))
        check_begin(config)
    except ConfigError as error:
        told = " ".join(f"{key}={value}" for key, value in label.items())
        raise ConfigError(f"{error} (job {told})" if told else str(error)) from error
    return SweepJob(words, label, config)


def _grid_jobs(overrides: Overrides) -> list[SweepJob]:
    """Those of the words and of `sweep.grid`."""
    found = []
    for outer in jobs(overrides, {}):
        each = parse(outer.words)
        for job in jobs(each, mapping(_sweep_values(each).get("grid", {}), "sweep.grid")):
            if "config_file" in each.given:
                _check_word(parse([word for word in job.words if word not in outer.words]))
            found.append(_composed(job.words, {**outer.label, **job.label}))
    seen: dict[str, SweepJob] = {}
    for made in found:
        if made.config.sweep.search != "grid":
            raise ConfigError(
                f"{overrides.swept} gives several values, which is for sweep=grid: "
                f"with sweep={made.config.sweep.search} give sweep.space={{KEY: [...]}}"
            )
        if (twin := seen.setdefault(made.config.text, made)) is not made:
            raise ConfigError(f"two jobs would be the same run: {' '.join(twin.words)}, and {' '.join(made.words)}")
    return found


def _check_word(overrides: Overrides) -> None:
    """A file's grid or space gives values, and no word on what code to run, where from, and whom to trust."""
    for key in overrides.given:
        if key == "trust" or key.startswith("hydra") or key.rpartition(".")[2] == "_target_":
            raise ConfigError(f"{key} in the sweep of a file that is read back: only the command line may give it")


def _sweep_values(overrides: Overrides) -> dict[str, Any]:
    """sweep.* as the words and their experiment or file have it, before anything that a job must give is there."""
    file = overrides.value("config_file")
    stored = mapping(read_config_file(Path(str(file)))[1].get("sweep", {}), "sweep") if file is not None else {}
    words = [one for one in overrides.words if file is None or one.lstrip("+").startswith("sweep")]
    config, _ = by_hydra(words)
    values = mapping(OmegaConf.to_container(config.sweep), "sweep")
    given = {one.key_or_group.removeprefix("sweep.") for one in overrides.each}
    values |= {key: value for key, value in stored.items() if key not in given}
    return {**values, "grid": {}} if overrides.value("sweep.grid") == {} else values  # Hydra would merge the two
