"""Scores count each sample once, on any number of ranks, and say which step was the first to leave the numbers."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import ALONE, CPU, make_data, make_source, on_ranks
from torch import Tensor, nn

from tinyexp.data.loader import Data
from tinyexp.device import Normalizer, traits
from tinyexp.dist import Dist
from tinyexp.engine import evaluate
from tinyexp.errors import NonFiniteError
from tinyexp.metrics import EvalSums, NonFiniteStepError, RunningScores, Scores, Sums, top_hits
from tinyexp.network import Network

CLASSES = 6


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).double()


def score(model: nn.Module, data: Data, dist: Dist) -> Scores:
    plan = traits(CPU, "fp32", 16, False)
    network = Network(
        model=model, forward=lambda x: model(x.double()), normalize=Normalizer((0.5,), (0.3,), plan), traits=plan
    )
    return evaluate(network, data.val(), CLASSES, dist)


# val


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_each_val_sample_counts_once(model: nn.Module, world: int, batch_size: int) -> None:
    """For any number of samples, ranks without any included (they would hang, were the collectives not matched)."""

    def job(dist: Dist) -> tuple[list[int], Scores]:
        data = make_data(source, dist, eval_batch_size=batch_size)
        return [int(number) for batch in data.val() for number in batch.index], score(model, data, dist)

    for count in range(1, 38):
        source = make_source(num_val=count, classes=CLASSES)
        whole = score(model, make_data(source, eval_batch_size=count), ALONE)
        seen, scores = zip(*on_ranks(world, job), strict=True)
        assert sorted(itertools.chain(*seen)) == list(range(count))
        for each in scores:
            assert each.count == count
            assert (each.top1, each.top5) == (whole.top1, whole.top5)
            assert torch.equal(each.confusion, whole.confusion)
            assert each.loss == pytest.approx(whole.loss, rel=1e-6)


def test_scores_are_those_of_the_definition(model: nn.Module) -> None:
    source = make_source(num_val=50, classes=CLASSES)
    scores = score(model, make_data(source, eval_batch_size=7), ALONE)
    images = (torch.from_numpy(source.val.fetch(range(50))).double() / 255 - 0.5) / 0.3
    labels, logits = torch.from_numpy(source.val.labels), model(images)
    predictions = logits.argmax(1)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert scores.top1 == (predictions == labels).double().mean().item()
    assert scores.top5 == (logits.argsort(1)[:, -5:] == labels[:, None]).any(1).double().mean().item()
    for label, prediction in itertools.product(range(CLASSES), repeat=2):
        assert scores.confusion[label, prediction] == ((labels == label) & (predictions == prediction)).sum()


def test_limit_batches_limits_val_over_all_ranks(model: nn.Module) -> None:
    source = make_source(num_val=37, classes=CLASSES)

    def job(dist: Dist) -> Scores:
        return score(model, make_data(source, dist, eval_batch_size=4, limit_batches=3), dist)

    assert {scores.count for world in (1, 2, 3) for scores in on_ranks(world, job)} == {12}


def test_all_ranks_score_with_the_buffers_of_the_first() -> None:
    """DDP leaves batch-norm's different on the ranks after the last step."""
    source = make_source(num_val=20, classes=CLASSES)
    base = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, CLASSES)).double()
    models = [copy.deepcopy(base) for _ in range(3)]

    def job(dist: Dist) -> tuple[Scores, Tensor]:
        norm = models[dist.rank][0]
        norm.running_mean += dist.rank
        return score(models[dist.rank], make_data(source, dist), dist), norm.running_mean

    (alone, _), *together = job(ALONE), *on_ranks(3, job)
    for each, mean in together:
        assert mean == 0
        assert each.loss == pytest.approx(alone.loss)
        assert torch.equal(each.confusion, alone.confusion)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_val_that_left_the_numbers_is_an_error_on_every_rank(value: float) -> None:
    data = make_source(num_val=9, classes=CLASSES)

    def job(dist: Dist) -> str:
        def forward(images: Tensor) -> Tensor:
            return torch.full((len(images), CLASSES), value if dist.rank == 1 else 0.0)

        plan = traits(CPU, "fp32", 16, False)
        network = Network(model=nn.Identity(), forward=forward, normalize=Normalizer((0.5,), (0.3,), plan), traits=plan)
        with pytest.raises(NonFiniteError) as error:
            evaluate(network, make_data(data, dist).val(), CLASSES, dist)
        return str(error.value)

    assert all("val loss is nan" in message for message in on_ranks(3, job))


# hits


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_nan_and_ties_are_not_called_right(value: float) -> None:
    """Equal logits name one class first and five among the best, whatever the label."""
    predictions, hits, hits5 = top_hits(torch.full((10, 10), value), torch.arange(10))
    assert len(set(predictions.tolist())) == 1
    assert (hits, hits5) == (1, 5)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6])
def test_top5_needs_five_classes(classes: int) -> None:
    sums = EvalSums(classes, CPU, torch.float64)
    sums.add(torch.eye(classes), torch.arange(classes))
    scores = sums.scores(ALONE)
    assert scores.top1 == 1
    assert scores.top5 == (1 if classes >= 5 else None)
    assert set(scores.row()) == {"loss", "top1"} | ({"top5"} if classes >= 5 else set())
    assert set(Sums().scores(classes).row()) == set(scores.row())


# training's running scores


def micro_batches(steps: int, *, soft: bool = False) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """For each step, two micro-batches of (loss, logits, labels)."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(steps):
        logits, labels = (
            torch.randn(2, 3, CLASSES, generator=generator),
            torch.randint(CLASSES, (2, 3), generator=generator),
        )
        targets = F.one_hot(labels, CLASSES) * 0.9 + 0.01 if soft else labels
        made.append([(F.cross_entropy(x, y, reduction="sum"), x, y) for x, y in zip(logits, targets, strict=True)])
    return made


def run(batches: list[list[tuple[Tensor, Tensor, Tensor]]], flush_after: set[int], dist: Dist = ALONE) -> RunningScores:
    scores = RunningScores()
    for number, step in enumerate(batches, start=1):
        for loss, logits, labels in step:
            scores.add(loss, logits, labels)
        scores.end_step(torch.ones(()))
        if number in flush_after:
            scores.flush(dist, number)
    scores.flush(dist, len(batches))
    return scores


def test_where_the_sums_are_flushed_changes_nothing() -> None:
    """73 steps: more micro-batches than are kept uncounted."""
    batches = micro_batches(73)
    whole = run(batches, set()).epoch
    for points in ({1}, {73}, {7, 8, 50}, set(range(1, 74))):
        assert run(batches, points).epoch == whole
    assert whole.count == 73 * 6
    assert whole.scores(CLASSES).loss == pytest.approx(sum(float(loss) for step in batches for loss, *_ in step) / 438)


def test_sums_survive_their_state_dict_bit_for_bit() -> None:
    scores, again = run(micro_batches(9), {4}), RunningScores()
    scores.line = Sums()
    again.load_state_dict(scores.state_dict())
    assert (again.line, again.epoch) == (scores.line, scores.epoch)


def test_ranks_together_count_what_one_process_counts() -> None:
    batches = micro_batches(20)
    whole = run(batches, {5}).epoch

    def job(dist: Dist) -> Sums:
        return run([[step[dist.rank]] for step in batches], {5}, dist).epoch

    assert on_ranks(2, job) == [whole, whole]


def test_soft_labels_count_their_largest() -> None:
    hard, soft = run(micro_batches(5), set()).epoch, run(micro_batches(5, soft=True), set()).epoch
    assert (soft.count, soft.top1, soft.top5) == (hard.count, hard.top1, hard.top5)
    assert soft.losses != hard.losses


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_first_step_that_was_not_finite_is_named(what: str, value: float) -> None:
    """On every rank, though only one of them saw it; steps 1 to 4 were flushed before."""

    def job(dist: Dist) -> tuple[int, str]:
        scores = RunningScores()
        for step in range(1, 10):
            bad = torch.tensor(value if step in (7, 8) and dist.rank == 1 else 1.0)
            scores.add(bad if what == "loss" else torch.ones(()), torch.zeros(2, CLASSES), torch.zeros(2).long())
            # gradients are averaged before they are measured, so that all ranks have the same norm
            scores.end_step(torch.tensor(value if what == "gradient" and step in (7, 8) else 1.0))
            if step == 4:
                scores.flush(dist, step)
        with pytest.raises(NonFiniteStepError) as error:
            scores.flush(dist, 9)
        assert scores.epoch.count == 4 * 2 * dist.world
        return error.value.step, str(error.value)

    for step, message in on_ranks(2, job):
        assert step == 7
        assert message.startswith(f"at step 7 the {'loss is' if what == 'loss' else 'gradient'}")


def test_nothing_to_flush() -> None:
    scores = RunningScores()
    scores.flush(ALONE, 0)
    assert scores.epoch == Sums()
