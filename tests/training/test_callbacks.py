"""What watches a training counts what it should and writes where it should."""

import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.profiler import record_function

from bevcask.training.callbacks import Bar, MovingAverage, StepClock, Trace


class Logged:
    """A module that only takes logs."""

    def __init__(self) -> None:
        self.values: list[dict[str, Tensor]] = []

    def log_dict(self, values: dict[str, Tensor]) -> None:
        self.values.append(values)


class SimpleModule(LightningModule):
    """A network that Lightning takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Now:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    fake = Now()
    monkeypatch.setattr("bevcask.training.callbacks.perf_counter", fake)
    return fake


def batch(
    clock: StepClock, now: Now, module: Any, wait: float, work: float, global_step: int
) -> None:
    trainer: Any = SimpleNamespace(global_step=global_step)
    now.pass_by(wait)
    clock.on_train_batch_start(trainer, module, None, 0)
    now.pass_by(work)
    clock.on_train_batch_end(trainer, module, None, None, 0)


def test_clock_takes_the_median_and_the_loader_share(now: Now) -> None:
    clock, module = StepClock(), Logged()
    assert clock.seconds_per_step is None
    assert clock.loader_share is None
    for number, (wait, work) in enumerate([(0.0, 9.0), (0.01, 0.03), (0.03, 0.03), (0.05, 0.15)]):
        batch(clock, now, module, wait, work, number + 1)
    assert len(clock.seconds) == 3  # the first has no beginning
    assert clock.seconds_per_step == pytest.approx(0.06)
    assert clock.loader_share == pytest.approx(0.25)
    assert [set(values) for values in module.values] == [
        {"time/seconds_per_step", "time/loader_share"}
    ] * 3
    # Lightning copies a number to the device, and waits there until the step is done.
    assert all(isinstance(own, Tensor) for values in module.values for own in values.values())


def test_clock_leaves_out_saving_and_what_follows_it(now: Now) -> None:
    clock, module = StepClock(), Logged()
    batch(clock, now, module, 0.0, 0.0, 1)
    clock.on_save_checkpoint(None, module, {})  # type: ignore[arg-type]
    now.pass_by(0.05)
    batch(clock, now, module, 0.0, 0.0, 2)
    assert clock.seconds == []


def test_clock_counts_all_batches_of_a_step(now: Now) -> None:
    clock, module = StepClock(), Logged()
    for wait, work, global_step in (
        (0.0, 1.0, 0),
        (0.0, 1.0, 1),
        (0.1, 0.2, 1),
        (0.2, 0.5, 2),
    ):
        batch(clock, now, module, wait, work, global_step)
    assert clock.seconds == pytest.approx([1.0])
    assert clock.loader_share == pytest.approx(0.3)


def test_average_forgets_its_first_weights_soon() -> None:
    module = nn.BatchNorm1d(1)
    module.register_buffer("constant", torch.tensor([0.1]), persistent=False)
    average = MovingAverage(decay=0.5, device=torch.device("cpu"))
    average.setup(None, SimpleModule(module), "fit")  # type: ignore[arg-type]
    expected = 0.0
    for count, value in enumerate((3.0, 7.0, -2.0)):
        module.weight.data.fill_(value)
        module.running_mean.fill_(10 * value)  # type: ignore[union-attr]
        module.num_batches_tracked.fill_(count)  # type: ignore[union-attr]
        trainer: Any = SimpleNamespace(global_step=count + 1)
        average.on_train_batch_end(trainer, SimpleModule(module), None, None, 0)  # type: ignore[arg-type]
        kept = 0.5 * (1 - math.exp(-count / 2000))
        expected = kept * expected + (1 - kept) * value
    assert average._average_model is not None
    averaged = average._average_model.module.network
    assert averaged.weight.item() == pytest.approx(expected)
    assert averaged.running_mean.item() == pytest.approx(10 * expected)
    assert expected != pytest.approx(-2.0, rel=1e-5)
    assert averaged.num_batches_tracked.item() == 2
    assert torch.equal(averaged.constant, module.constant)


def test_bar_is_on_stderr_with_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    trainer: Any = SimpleNamespace(
        max_steps=2,
        global_step=0,
    )
    bar, module = Bar(every=1), None
    bar.on_train_start(trainer, module)  # type: ignore[arg-type]
    bar.on_train_batch_end(trainer, module, {"loss": 1.23456}, None, 0)  # type: ignore[arg-type]
    with bar.aside("validate", 1) as ticker:
        ticker.advance()
    bar.on_train_end(trainer, module)  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "train" in captured.err
    assert "loss 1.235" in captured.err
    assert "validate" in captured.err


def test_a_trace_holds_the_steps_it_names(tmp_path: Path) -> None:
    trace, trainer = Trace(2, tmp_path / "profile"), SimpleNamespace(max_steps=9, global_step=0)
    trace.on_train_start(trainer, None)  # type: ignore[arg-type]
    for step in range(9):
        trainer.global_step = step
        trace.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
        with record_function(f"step {step + 1}"):  # of step + 1, which the next call ends
            torch.ones(3).sum()
    trace.on_train_end(trainer, None)  # type: ignore[arg-type]
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "steps_000006_000007.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    named = {event["name"] for event in events if event["name"].startswith("step ")}
    assert named == {"step 6", "step 7"}


def test_a_short_run_is_traced_to_its_end(tmp_path: Path) -> None:
    trace, trainer = Trace(5, tmp_path / "profile"), SimpleNamespace(max_steps=3, global_step=0)
    trace.on_train_start(trainer, None)  # type: ignore[arg-type]
    for step in (1, 2, 3):
        trainer.global_step = step
        trace.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    trace.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert len(list((tmp_path / "profile").iterdir())) == 1
