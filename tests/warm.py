"""Imported by faults.py's server alone: all that a run imports, once, before its children are forked."""

import atexit
import gc
import importlib
import os

from tinyexp.compose import compose

for name in (
    "tinyexp.__main__",
    "tinyexp.parts",
    "tinyexp.verbs.train",
    "torch._dynamo",
):  # the last comes with torch.optim's methods
    importlib.import_module(name)
compose([])  # Hydra's own imports
gc.freeze()  # else each child spends 0.2 s on looking through torch's objects
atexit.register(os._exit, 0)  # the server ends without triton's complaints; its children never come here
