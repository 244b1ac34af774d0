"""The smallest detector that remembers: a CenterPoint whose neck keeps some of the frame before."""

from dataclasses import replace

import torch
from torch import nn

from bevcask.detectors.base import Batch, Inputs, Output
from bevcask.detectors.centerpoint import CenterPoint, CenterPointConfig


class Remembering(CenterPoint):
    """Its author writes one frame: `batch.memory` in, `Output.memory` out."""

    Config = CenterPointConfig

    def __init__(self, config: CenterPointConfig) -> None:
        super().__init__(config)
        self.share = nn.Parameter(torch.tensor(0.3))

    @classmethod
    def inputs(cls, config: Config) -> Inputs:
        return replace(super().inputs(config), history=2, memory=True)

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        neck = output.taps["bev.neck"]
        if batch.memory is not None:
            neck = neck + self.share * batch.memory["neck"]
        preds = self.head(neck)
        taps = output.taps | {"bev.neck": neck} | self.head.taps(preds)
        return Output(taps, preds, {"neck": neck})
