"""Two ways to compute: in evaluation, without gradients, and in exact float32."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

EXACT = threading.RLock()  # its settings are the whole process's, and the atelier computes in several threads


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Use a module in eval mode and without gradients, then restore its mode."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Compute in true float32: no autocast, and no TF32 in convolutions and matrix products."""
    cudnn = torch.backends.cudnn
    with EXACT:
        precision = torch.get_float32_matmul_precision()
        as_set = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.autocast(device_type, enabled=False), cudnn.flags(**as_set, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)
