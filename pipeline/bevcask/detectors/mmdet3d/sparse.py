"""Sparse convolutions on a CPU, made to give the same numbers twice.

spconv's CPU kernels add into shared rows from several threads without care: with two threads every
forward of a sparse encoder is different, and wrong by up to a tenth of its largest values. With one
thread they are exact, so that is what each of them gets.
"""

import importlib.util
from typing import Any

import torch
from torch import nn


def make_exact(network: nn.Module) -> None:
    """Run every spconv convolution of a network on one thread where its input is on the CPU."""
    if importlib.util.find_spec("spconv") is None:
        return
    from spconv.pytorch.conv import SparseConvolution

    for module in network.modules():
        if isinstance(module, SparseConvolution):
            module.register_forward_pre_hook(_take_one_thread)
            module.register_forward_hook(_give_back, always_call=True)


def _take_one_thread(module: Any, inputs: tuple[Any, ...]) -> None:
    module.threads = torch.get_num_threads()
    if inputs[0].features.device.type == "cpu":
        torch.set_num_threads(1)


def _give_back(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
    torch.set_num_threads(module.threads)
