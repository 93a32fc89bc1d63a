"""What a run ran in: versions, hardware, the state of the code around it. No variables, which may hold secrets."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("tinyexp", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "pillow", "tensorboard")
_LARGEST_PATCH = 2**20  # bytes


def describe_environment() -> dict[str, Any]:
    """For env.json."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "argv": sys.argv,
        "directory": str(Path.cwd()),
        "host": platform.node(),
        "pid": os.getpid(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "hardware": describe_hardware(),
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        },
    }


def describe_hardware() -> dict[str, Any]:
    cuda = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "mps": torch.backends.mps.is_available(),
    }


def code_patch() -> str | None:
    """What differs from the commit in the working directory's repository; None when nothing does, or it is too long."""
    patch = _git("diff", "HEAD")
    if patch and len(patch.encode(errors="replace")) > _LARGEST_PATCH:
        return None
    return patch or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str | None:
    """git's answer in the working directory; None without git or a repository."""
    try:
        answer = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.rstrip("\n") if answer.returncode == 0 else None
