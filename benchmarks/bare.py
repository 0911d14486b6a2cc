"""The training step alone, on one batch in memory and with the best known settings: python -m benchmarks.bare A"""

import sys
from collections.abc import Callable

import torch

from benchmarks.systems import DEVICE, SYSTEMS, images_per_second, say
from system.hardware import computes_bfloat16, keep_freed_memory

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def main(name: str) -> None:
    precision = "bf16-mixed" if computes_bfloat16(DEVICE.type) else "32-true"
    say(images_per_second=images_per_second(name, make_step(name, precision, SYSTEMS[name].batch_size)))


def make_step(name: str, precision: str, batch_size: int, is_compiled: bool = False) -> Callable[[], None]:
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    system = SYSTEMS[name]
    size = system.size
    pixels = torch.randint(256, (batch_size, 3, size, size), dtype=torch.uint8, device=DEVICE)
    pixels = pixels.to(memory_format=torch.channels_last)
    net = system.make().to(DEVICE).to(memory_format=torch.channels_last)
    if is_compiled:
        for child in net.children():  # as train.py does
            child.compile()
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.001, fused=True)
    # a few BatchNorms' statistics add nothing to the time
    averages = [weight.detach().clone() for weight in weights] if system.average is not None else []
    autocast = torch.autocast(DEVICE.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision == "16-mixed")

    def step() -> None:
        with autocast:
            loss = net.loss(pixels.float().div_(255))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if system.clip is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(weights, system.clip)
        scaler.step(optimizer)
        scaler.update()
        if system.average is not None:
            torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - system.average)

    return step


if __name__ == "__main__":
    main(*sys.argv[1:])
