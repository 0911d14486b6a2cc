"""The device, number formats and memory that the machine computes with."""

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bfloat16(accelerator: str) -> bool:
    """Whether the hardware of a Lightning accelerator computes bfloat16 natively."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory; zeroing fresh pages from the system can cost a third of a CPU step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # blocks
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes, the largest possible value
