"""Learn a few frames by heart, and be scored on them by the devkit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import Batch, Detector, Inputs, Output
from bevcask.evaluation.nuscenes import score


def learn_by_heart(
    detector: Detector,
    inputs: Inputs,
    frames: Frames,
    run: Callable[[Batch], Output],
    steps: int,
    peak_lr: float,
    warm_up: float,
    out: Path,
) -> dict[str, Any]:
    """Train on eight frames, two a batch, and return the official metrics of the same frames."""
    detector.train()
    reader = SampleReader(frames, inputs, None, seed=0)
    batches = [
        collate([reader.read(token) for token in frames.tokens[first::4]]) for first in range(4)
    ]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=peak_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak_lr, total_steps=steps, pct_start=warm_up
    )
    for step in range(steps):
        batch = batches[step % len(batches)]
        losses: dict[str, Tensor] = detector.loss(run(batch), batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 35.0)
        optimizer.step()
        schedule.step()
    detector.eval()
    with torch.inference_mode():
        found = {
            token: detections
            for batch in batches
            for token, detections in zip(batch.tokens, detector.decode(run(batch)), strict=True)
        }
    return score(found, frames, out)
