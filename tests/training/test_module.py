"""The step: schedule, decay, clipping, what is refused."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from bevcask.data.join import TrainBatch
from bevcask.detectors.base import Batch, Labels, Output
from bevcask.detectors.blocks.swin import WindowAttention
from bevcask.errors import DivergedError
from bevcask.geometry import bev_matrix
from bevcask.methods.none import NoDistillation
from bevcask.targets.align import Align
from bevcask.trainer_config import TrainerConfig
from bevcask.training.module import (
    Distillation,
    build_schedule,
    lr_factor,
    parameter_groups,
)
from bevcask.training.sources import CachedTargets, OnlineTargets, align_of, meet
from detectors.test_memory import Counts, Tells, window


def config(schedule: str, warmup: int = 4, **more: object) -> TrainerConfig:
    given: dict[str, object] = {"max_steps": 20, "warmup_steps": warmup, "schedule": schedule}
    return TrainerConfig.model_validate(given | more)


def test_constant_rate_rises_over_the_warm_up_then_stays() -> None:
    factors = [lr_factor(step, config("constant")) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(factors[4:]) == {1.0}


def test_cosine_falls_to_zero_at_the_end() -> None:
    assert lr_factor(4, config("cosine")) == 1.0
    assert lr_factor(12, config("cosine")) == pytest.approx(0.5)
    assert lr_factor(20, config("cosine")) == pytest.approx(0.0)
    assert lr_factor(8, config("cosine")) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def course(given: TrainerConfig) -> list[list[tuple[float, float]]]:
    """Learning rate and first beta of every group at every step, and behind the last."""
    network = nn.Module()
    network.student = nn.Module()
    network.student.backbone = nn.Linear(2, 3)
    network.student.head = nn.Linear(3, 4)
    optimizer = AdamW(parameter_groups(network, given))
    schedule = build_schedule(optimizer, given)
    found = []
    for _ in range(given.max_steps + 1):
        found.append([(group["lr"], group["betas"][0]) for group in optimizer.param_groups])
        assert all(group["betas"][1] == 0.999 for group in optimizer.param_groups)
        optimizer.step()
        if len(found) <= given.max_steps:
            schedule.step()
    return found


def test_one_cycle_rises_and_falls() -> None:
    rates = [groups[0][0] for groups in course(config("one_cycle", lr=1.0))]
    assert [rates[step] for step in (0, 2, 4)] == pytest.approx([1 / 25, (1 + 1 / 25) / 2, 1])
    fall = [(1 + math.cos(math.pi * step / 16)) / 2 for step in range(17)]
    assert rates[4:] == pytest.approx([4e-6 + (1 - 4e-6) * share for share in fall])


def test_one_cycle_between_the_ends_of_mmdet3d() -> None:
    """Its cyclic schedule: lr 1e-4, up to ten times that at 40 %, down to 1e-4 of it."""
    cycle = course(config("one_cycle", warmup=8, lr=1e-3, cycle_ends=(0.1, 1e-5)))
    rates = [cycle[step][0][0] for step in (0, 4, 8, 20)]
    assert rates == pytest.approx([1e-4, (1e-4 + 1e-3) / 2, 1e-3, 1e-8])
    assert {beta for groups in cycle for _, beta in groups} == {0.9}


def test_momentum_falls_where_the_rate_rises() -> None:
    """mmdet3d's cyclic momentum: 0.9, at the peak 0.85 / 0.95 of it, 0.9 again."""
    low = 0.9 * 0.85 / 0.95
    cycle = course(config("one_cycle", warmup=8, cycle_momentum=(0.9, low), backbone_lr=0.1))
    betas = [cycle[step][0][1] for step in (0, 4, 8, 14, 20)]
    assert betas == pytest.approx([0.9, (0.9 + low) / 2, low, (0.9 + low) / 2, 0.9])
    for groups in cycle:
        assert {beta for _, beta in groups} == {groups[0][1]}
        rates = {rate for rate, _ in groups}
        assert max(rates) == pytest.approx(10 * min(rates))


@pytest.mark.parametrize(
    ("schedule", "more", "words"),
    [
        ("cosine", {"cycle_momentum": (0.9, 0.8)}, "schedule cosine has no cycle"),
        ("one_cycle", {"warmup_steps": 0}, "warmup_steps, which must be above 0"),
        ("one_cycle", {"cycle_ends": (0.1, 0.0)}, "cycle_ends"),
        ("one_cycle", {"cycle_momentum": (0.8, 0.9)}, "second <= first"),
        ("one_cycle", {"cycle_momentum": (1.0, 0.9)}, "< 1"),
    ],
)
def test_cycles_that_are_none_are_refused(
    schedule: str, more: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        config(schedule, **more)


def test_steps_fall_to_a_tenth_at_each_milestone() -> None:
    steps = config("step", milestones=(8, 12))
    factors = [lr_factor(step, steps) for step in (3, 4, 7, 8, 11, 12, 19)]
    assert factors == pytest.approx([0.8, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("schedule", "milestones"), [("step", ()), ("cosine", (3,)), ("step", (4, 4)), ("step", (5, 4))]
)
def test_milestones_belong_to_steps(schedule: str, milestones: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="milestones"):
        config(schedule, milestones=milestones)


@pytest.mark.parametrize("warmup", [1, 20, 50])
def test_a_cycle_may_be_all_warm_up(warmup: int) -> None:
    rates = [groups[0][0] for groups in course(config("one_cycle", warmup, lr=1.0))]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:2] == sorted(rates[:2])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_schedule_works_without_warm_up_and_with_nothing_else(schedule: str) -> None:
    for warmup in (0, 20, 50):
        factors = [lr_factor(step, config(schedule, warmup)) for step in range(21)]
        assert all(0 <= factor <= 1 for factor in factors)
    assert lr_factor(0, config(schedule, 0)) == 1.0


def test_norms_and_biases_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    network[2].weight.requires_grad_(False)
    decay, plain = parameter_groups(network, config("cosine", weight_decay=0.05))
    assert decay["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in decay["params"]] == [(4, 3, 3, 3)]
    assert sorted(tuple(p.shape) for p in plain["params"]) == [(2,), (4,), (4,), (4,)]


def test_tables_of_biases_do_not_decay() -> None:
    network = WindowAttention(4, 2, window=3, shift=0)
    plain, decay = parameter_groups(network, config("cosine", weight_decay=0.05))
    assert {tuple(p.shape) for p in decay["params"]} == {(12, 4), (4, 4)}
    assert any(own is network.relative_position_bias_table for own in plain["params"])
    assert plain["weight_decay"] == 0.0


def test_backbone_learns_at_its_own_rate() -> None:
    network = nn.Module()
    network.student = nn.Module()
    network.student.backbone = nn.Linear(2, 3)
    network.student.head = nn.Linear(3, 4)
    groups = parameter_groups(network, config("cosine", lr=1e-2, backbone_lr=0.1))
    rates = {tuple(p.shape): group["lr"] for group in groups for p in group["params"]}
    slow, fast = pytest.approx(1e-3), pytest.approx(1e-2)
    assert rates == {(3, 2): slow, (3,): slow, (4, 3): fast, (4,): fast}


def module() -> Distillation:
    return Distillation(nn.Linear(2, 2), nn.Linear(1, 1), CachedTargets(), config("cosine"), {})  # type: ignore[arg-type]


def test_losses_that_are_not_finite_stop_the_training_by_name() -> None:
    terms = {"detection/heatmap": torch.tensor(1.0), "detection/box": torch.tensor(math.nan)}
    with pytest.raises(DivergedError, match="step 0: detection/box not finite"):
        module()._require_finite(terms)


def test_a_step_logs_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning copies a number to the device, and the host waits until the step is done."""
    own = module()
    groups = [{"lr": 0.1}, {"lr": 0.2}]
    own._trainer = cast(Any, SimpleNamespace(optimizers=[SimpleNamespace(param_groups=groups)]))
    logged: dict[str, Any] = {}
    monkeypatch.setattr(own, "losses", lambda *_: {"a": torch.ones(()), "b": torch.ones(())})
    monkeypatch.setattr(own, "log_dict", lambda values, **_: logged.update(values))
    joined = SimpleNamespace(batch=SimpleNamespace(tokens=["t"]))
    assert float(own.training_step(cast(Any, (joined, None)), 1)) == 2
    assert all(isinstance(value, Tensor) for value in logged.values())
    assert float(logged["train/lr"]) == pytest.approx(0.2)


def test_diverged_weights_are_never_kept() -> None:
    diverged = module()
    diverged._loss = torch.tensor(math.inf)
    with pytest.raises(DivergedError):
        diverged.on_save_checkpoint({})


def test_weights_that_an_earlier_batch_of_the_step_broke_are_not_kept() -> None:
    diverged = module()
    diverged._loss = torch.tensor(1.0)
    diverged.student.weight.data[0, 0] = math.nan
    with pytest.raises(DivergedError, match=r"student\.weight not finite"):
        diverged.on_save_checkpoint({})


def test_random_state_goes_on_at_the_first_step() -> None:
    first = module()
    torch.manual_seed(5)
    saved: dict[str, object] = {}
    first.on_save_checkpoint(saved)
    expected = torch.rand(3)
    second = module()
    second.on_load_checkpoint(saved)
    torch.rand(7)  # what set-up draws
    second.on_train_batch_start(None, 0)
    assert torch.equal(torch.rand(3), expected)
    second.on_train_batch_start(None, 1)
    assert not torch.equal(torch.rand(3), expected)


def labels() -> Labels:
    return Labels(
        boxes=[torch.ones(1, 9)],
        classes=[torch.zeros(1).long()],
        canonical_boxes=[torch.zeros(1, 9)],
    )


def test_canonical_targets_keep_labels_and_alignment() -> None:
    given, align = labels(), Align(torch.as_tensor(bev_matrix(flip_x=True))[None])
    seen, met = meet(CachedTargets(), given, align)
    assert seen is given
    assert met is align


def test_augmented_targets_lie_in_the_student_frame() -> None:
    source = OnlineTargets(teacher=None, specs={}, canonical=False)  # type: ignore[arg-type]
    align = Align(torch.as_tensor(bev_matrix(flip_x=True))[None])
    seen, met = meet(source, labels(), align)
    assert torch.equal(seen.canonical_boxes[0], seen.boxes[0])
    point = torch.tensor([[1.0, 2.0, 3.0]])
    assert torch.equal(met.points([point])[0], point)
    assert not torch.equal(align.points([point])[0], point)


class Listens(Counts):
    """Keeps the batch it was shown."""

    def forward(self, batch: Batch) -> Output:
        self.shown = batch
        return Output({}, {})


class Hands(NoDistillation):
    """Has no loss, and one more box for denoising queries."""

    denoises = True

    def pseudo_labels(self, targets: object, labels: Labels, align: Align) -> Labels:
        return Labels(*([own[0][:1]] for own in (labels.boxes, labels.classes, labels.boxes)))


@pytest.mark.parametrize("trained", [1, 2])
def test_trained_frames_of_a_window_add_their_losses_by_name(trained: int) -> None:
    student, batch = Tells(), window(trained)
    method = NoDistillation(NoDistillation.Config())
    own = Distillation(student, method, CachedTargets(), config("constant"), {}, "window")
    terms = own.losses(TrainBatch(batch, {}), align_of(batch))
    wanted = {"detection/seen": 4.0, "detection/earlier1/seen": 3.0}
    assert {name: term.item() for name, term in terms.items()} == dict(
        list(wanted.items())[:trained]
    )
    torch.stack(list(terms.values())).sum().backward()
    assert float(student.weight.grad) == trained


def test_boxes_for_denoising_queries_reach_the_student_before_its_forward() -> None:
    boxes, classes = [torch.ones(3, 9)], [torch.arange(3)]
    labels = Labels(boxes, classes, boxes)
    batch = Batch(tokens=["a"], bev_aug_B44=torch.eye(4)[None], labels=labels)
    joined = TrainBatch(batch, {})
    for method, given in (
        (Hands(NoDistillation.Config()), 1),
        (NoDistillation(NoDistillation.Config()), 0),
    ):
        student = Listens()
        module = Distillation(student, method, CachedTargets(), config("constant"), {})
        assert module.losses(joined, align_of(batch)) == {}
        found = student.shown.pseudo
        assert (0 if found is None else len(found.boxes[0])) == given
        assert student.shown.labels is labels
    assert batch.pseudo is None
