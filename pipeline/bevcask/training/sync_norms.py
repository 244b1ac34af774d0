"""Batch norms whose statistics are those of the batches of all ranks together."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bevcask.ranks import summed


def sync_norms(module: nn.Module) -> None:
    """Let all batch norms of a module that train see the batches of all ranks.

    What they are called, and what is saved of them, stays the same. Those that use their running
    statistics go on doing so. Every rank must come by each of them equally often. One process alone
    computes in the same way, torch's own sums on the CPU are off by 1e-5 over many points.
    """
    for norm in module.modules():
        if type(norm) is nn.BatchNorm1d:
            norm.__class__ = SyncedNorm1d
        elif type(norm) is nn.BatchNorm2d:
            norm.__class__ = SyncedNorm2d


class _Synced(_BatchNorm):
    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return super().forward(values)
        with torch.autocast(values.device.type, enabled=False):
            wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
            dims = [0, *range(2, values.ndim)]
            count = float(values.numel() // values.shape[1])
            sums_C = wide.sum(dims)
            parts = torch.cat([sums_C, sums_C.new_tensor([count])])
            parts = _of_ranks(parts)
            total = parts[-1]
            mean_C = parts[:-1] / total
            shape = [1, -1, *[1] * (values.ndim - 2)]
            gap = wide - mean_C.view(shape)
            var_C = _of_ranks(gap.square().sum(dims)) / total
            self._remember(mean_C.detach(), var_C.detach(), total.detach())
            scale_C = (var_C + self.eps).rsqrt()
            if self.affine:
                scale_C = scale_C * self.weight
            normed: Tensor = gap * scale_C.view(shape)
            if self.affine:
                normed = normed + self.bias.view(shape)
        return normed.to(values.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, var_C: Tensor, total: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        unbiased_C = var_C * total / (total - 1).clamp(min=1)
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), share)


class SyncedNorm1d(_Synced, nn.BatchNorm1d):
    """As `nn.BatchNorm1d`."""


class SyncedNorm2d(_Synced, nn.BatchNorm2d):
    """As `nn.BatchNorm2d`."""


class _SumOfRanks(torch.autograd.Function):
    """The sum over ranks, of which each rank's loss has its own gradient: these are summed too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


def _of_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOfRanks.apply(values)  # type: ignore[no-untyped-call]
    return total
