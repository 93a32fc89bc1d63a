"""train [overrides]: train one run, from its config to its last line; the verb may be left out.

With engine.py, this is the whole story.
"""

from __future__ import annotations

from tinyexp.agreement import describe
from tinyexp.config import Config
from tinyexp.data.loader import Data
from tinyexp.data.store import load_source
from tinyexp.dist import process_group
from tinyexp.engine import TrainState, evaluate, train_epoch
from tinyexp.features import run_once
from tinyexp.log import terminal
from tinyexp.parts import check_parts
from tinyexp.run import Run
from tinyexp.start import begin


def train(config: Config) -> None:
    """Raises TinyexpError for all that a user can mend; its exit_code is the process's."""
    with process_group(config.hw) as dist:
        config = check_parts(config)  # what words do not show is an error here, before there is a directory
        with terminal(config.log.level):
            source = load_source(config)  # before there is a directory: what is wrong with the data leaves none
        dist.agree(describe(config, source.content, dist.device.type))
        with Run.open(config, dist) as run, Data(source, config, dist) as data:
            begun = begin(config, data, data.names, dist, run.start(data))
            with run.clock.within("features"):
                begun, data = run_once(begun, data, config, dist, run.signals.heed)
            state = TrainState.build(config, data, dist, begun)
            run.begin(state, data, begun)
            while not run.over(state):
                steps = run.clock.waiting(data.train(state.epoch, start=state.step_in_epoch), "train")
                for _ in train_epoch(state, steps, config.train, dist):
                    run.after_step(state)
                scores = evaluate(state.eval_network, run.watch(state, data.val()), len(data.classes), dist)
                run.after_epoch(state, scores)
            run.finish(state)
