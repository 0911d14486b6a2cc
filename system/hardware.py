"""The device, number formats and memory that the machine computes with."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.memory import is_oom_error

from system.errors import PigmentError, reason

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
USE_CPU = "Set CUDA_VISIBLE_DEVICES= to use the CPU."  # a remedy for within_memory


def best_device() -> torch.device:
    """Return the GPU if there is one that works, else the CPU."""
    return torch.device("cuda" if start_gpu() else "cpu")


def start_gpu() -> bool:
    """Start the GPU with the settings that all commands share, and return whether it works.

    If there is a GPU that does not work, this says why and hides it. A process that is forked afterwards cannot compute
    on a GPU.
    """
    if not torch.cuda.is_available():  # true even if the driver is too old: Lightning lets torch ask only NVML
        return False
    try:
        torch.cuda.init()
    except Exception as error:  # a driver, library or setting that does not fit raises all sorts of errors
        print(f"No GPU can be used: {reason(error)}", file=sys.stderr)
        hide_gpus()
        return False
    torch.set_float32_matmul_precision("high")  # TF32, which PyTorch allows cuDNN's convolutions anyway
    return True


def hide_gpus() -> None:
    """Hide all GPUs from PyTorch, Lightning and the processes started from this one; useless once CUDA has started."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def computes_bfloat16(device_type: str) -> bool:
    """Return whether this machine's GPU (``cuda``) or CPU (``cpu``) computes bfloat16 natively."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def within_memory(remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error, a GPU's or the machine's, into a PigmentError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_oom_error(error):
            raise
        raise PigmentError(f"out of memory. {remedy}") from error


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory; zeroing fresh pages from the system can cost a third of a CPU step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # blocks
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes, the largest possible value
