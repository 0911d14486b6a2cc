"""The training step alone, on one batch in memory and with the best known settings: python -m benchmarks.bare A"""

import sys

import torch

from benchmarks.systems import DEVICE, SYSTEMS, images_per_second, make, say
from system.hardware import computes_bfloat16, keep_freed_memory


def main(name: str) -> None:
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    system = SYSTEMS[name]
    pixels = torch.randint(256, (system.batch_size, 3, system.size, system.size), dtype=torch.uint8, device=DEVICE)
    pixels = pixels.to(memory_format=torch.channels_last)
    net = make(name).to(DEVICE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001, fused=True)
    autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=computes_bfloat16(DEVICE.type))

    def step() -> None:
        with autocast:
            loss = net.loss(pixels.float().div_(255))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    say(images_per_second=images_per_second(name, step))


if __name__ == "__main__":
    main(*sys.argv[1:])
