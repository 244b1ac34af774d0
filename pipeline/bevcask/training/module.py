"""The training step: student, detection loss, distillation loss. Knows no files and no teacher."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from bevcask.data.join import TrainBatch
from bevcask.detectors.base import Batch, Detector, Labels, Output
from bevcask.detectors.memory import Policy, Stream, joined_states, rows_of, unroll_trained
from bevcask.errors import DivergedError
from bevcask.methods.base import Method, Target
from bevcask.ranks import each, num_ranks, rank, summed, to_first
from bevcask.targets.align import Align
from bevcask.trainer_config import TrainerConfig
from bevcask.training.sources import TargetSource, align_of, meet

Step = tuple[TrainBatch, Align]
_SHOWN = 4


class Distillation(LightningModule):
    """A student and the method that teaches it.

    Attributes:
        student: the detector, what is exported.
        method: the loss with its adapters, trained along and thrown away.
        note: strings kept in every checkpoint: architecture, cache id, command.

    A student that remembers is shown the history of each frame first, from nothing (`window`), or
    goes on with what it said of the frame before (`scene`): that is kept in checkpoints.
    """

    def __init__(
        self,
        student: Detector,
        method: Method,
        source: TargetSource,
        config: TrainerConfig,
        note: Mapping[str, str],
        memory: Policy = "none",
    ) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.note = dict(note)
        self._source = source
        self._config = config
        self._memory: Policy = memory
        self._stream = Stream()
        self._loss: Tensor | None = None  # of all ranks
        self._own: Tensor | None = None
        self._tokens: Sequence[str] = ()
        self._random: dict[str, Any] | None = None

    def transfer_batch_to_device(
        self, batch: TrainBatch, device: torch.device, dataloader_idx: int
    ) -> Step:
        """Read the augmentation on the host, then move the batch."""
        return batch.to(device), align_of(batch.batch)

    def training_step(self, step: Step, index: int) -> Tensor:
        """Return the sum of all losses and log every term, the mean over ranks."""
        joined, align = step
        terms = self.losses(joined, align)
        own_L = torch.stack(list(terms.values()))
        said_L = summed(own_L) / num_ranks()
        self._own, self._loss = own_L.detach().sum(), said_L.sum()
        self._tokens = joined.batch.tokens
        said = dict(zip(terms, said_L.unbind(), strict=True))
        if index % self._config.log_every == 0:
            self._require_finite(said)
        size = len(self._tokens)
        logged = {f"train/{name}": term for name, term in said.items()}
        rate = torch.tensor(max(own["lr"] for own in self.trainer.optimizers[0].param_groups))
        self.log_dict({**logged, "train/loss": self._loss, "train/lr": rate}, batch_size=size)
        return own_L.sum()

    def losses(self, joined: TrainBatch, align: Align) -> dict[str, Tensor]:
        """Return every loss term of a batch by name: `detection/...`, then the method's.

        `detection/earlier1/...` and on are of the frames of a window that are trained before this
        one, which alone the method reads.
        """
        batch, wanted = joined.batch, self.method.student_taps()
        lesson = self._lesson(joined, align) if wanted or self.method.denoises else None
        if lesson is not None and self.method.denoises:
            batch = replace(batch, pseudo=self.method.pseudo_labels(*lesson))
        *earlier, (_, output) = self._shown(batch)
        terms = {
            f"detection/{name}": term for name, term in self.student.loss(output, batch).items()
        }
        for back, (frame, said) in zip(range(len(earlier), 0, -1), earlier, strict=True):
            own = self.student.loss(said, frame)
            terms |= {f"detection/earlier{back}/{name}": term for name, term in own.items()}
        if lesson is None or not wanted:
            return terms
        taps = {name: output.taps[name] for name in wanted}
        taught: dict[str, Tensor] = self.method(taps, *lesson, self._progress())
        return terms | taught

    def _lesson(self, joined: TrainBatch, align: Align) -> tuple[dict[str, Target], Labels, Align]:
        """Return the targets, and the labels and the alignment that they meet the student with."""
        assert joined.batch.labels is not None
        targets = self._source(joined)
        return targets, *meet(self._source, joined.batch.labels, align)

    def _shown(self, batch: Batch) -> list[tuple[Batch, Output]]:
        """Return the frames that are trained, oldest first, with what the student says of them."""
        if self._memory == "window":
            return unroll_trained(self.student, batch)
        if self._memory == "scene":
            return [(batch, self._stream.show(self.student, batch))]
        return [(batch, self.student(batch))]

    def _progress(self) -> float:
        return self.global_step / self._config.max_steps if self._trainer is not None else 0.0

    def _require_finite(self, terms: Mapping[str, Tensor]) -> None:
        bad = [name for name, term in terms.items() if not bool(torch.isfinite(term))]
        if bad:
            own = self._own is None or not bool(torch.isfinite(self._own))
            tokens = [token for found in each(list(self._tokens) if own else []) for token in found]
            raise DivergedError(
                f"step {self.global_step}: {_few(bad)} not finite; the batch is of frames "
                f"{_few(tokens or self._tokens)}. Where the first steps already fail, look at the "
                "boxes and points of these frames. Else lower trainer.lr, lengthen "
                "trainer.warmup_steps, or use trainer.precision=32 or bf16-mixed."
            )

    def configure_optimizers(self) -> Any:
        """Return AdamW with the schedule advanced every step."""
        optimizer = AdamW(parameter_groups(self, self._config))
        schedule = build_schedule(optimizer, self._config)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm and log the norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self._config.clip)
        self.log("train/grad_norm", norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to keep diverged weights; add the note and the random state."""
        if self._loss is not None:
            self._require_finite({"loss": self._loss})
        self._require_finite({n: p.detach().sum() for n, p in self.named_parameters()})
        checkpoint["bevcask"] = self.note
        if self._memory == "scene":
            checkpoint["stream"] = joined_states(to_first(self._stream.state_dict()))
        checkpoint["random"] = {
            "torch": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the memory; keep the random state for the first step.

        What comes before that draws numbers too.
        """
        self._random = checkpoint["random"]
        if self._memory == "scene":
            self._stream.load_state_dict(rows_of(checkpoint["stream"], rank(), num_ranks()))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Go on with the random numbers where the checkpoint was written."""
        if self._random is None:
            return
        torch.set_rng_state(self._random["torch"].cpu())
        if self.device.type == "cuda" and self._random["cuda"]:
            torch.cuda.set_rng_state(self._random["cuda"][0].cpu(), self.device)
        self._random = None


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def parameter_groups(module: nn.Module, config: TrainerConfig) -> list[dict[str, Any]]:
    """Return up to four groups: the image backbone and the rest, weights that decay and others.

    Biases, those of relative positions too, and norm parameters do not decay. The backbone is
    whatever `student.backbone` names.
    """
    backbone = getattr(getattr(module, "student", None), "backbone", None)
    slow = set(backbone.parameters()) if isinstance(backbone, nn.Module) else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            lr = config.lr * (config.backbone_lr if parameter in slow else 1.0)
            bias = "bias" in name.rpartition(".")[2]
            decay = config.weight_decay if parameter.ndim > 1 and not bias else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": own, "lr": lr, "weight_decay": decay} for (lr, decay), own in groups.items()]


def build_schedule(optimizer: Optimizer, config: TrainerConfig) -> LRScheduler:
    """Return what sets the learning rate of each step, and under `one_cycle` the momentum.

    `one_cycle` (Smith 2018) rises along a cosine over the warm-up and falls along one to the end,
    between the shares of `cycle_ends`; the momentum falls and rises with `cycle_momentum`.
    """
    if config.schedule != "one_cycle":
        return LambdaLR(optimizer, lambda step: lr_factor(step, config))
    first, last = config.cycle_ends
    high, low = config.cycle_momentum or (0.0, 0.0)
    steps = max(config.max_steps, config.warmup_steps) + 1
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=(config.warmup_steps + 1) / steps,  # torch counts the step of the peak in
        div_factor=1 / first,
        final_div_factor=first / last,
        cycle_momentum=config.cycle_momentum is not None,
        base_momentum=low,
        max_momentum=high,
    )


def lr_factor(step: int, config: TrainerConfig) -> float:
    """Return the learning rate of a step as a share of `config.lr`, under all but `one_cycle`.

    It rises linearly over the warm-up; `cosine` then falls to 0, `step` to a tenth at each
    milestone.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return float(0.1 ** sum(step >= milestone for milestone in config.milestones))
    if config.schedule == "constant":
        return 1.0
    rest = (step - warmup) / max(1, config.max_steps - warmup)
    return (1 + math.cos(math.pi * min(rest, 1.0))) / 2
