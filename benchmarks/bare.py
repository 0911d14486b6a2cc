"""The training step alone, on one batch in memory, at the best settings known: python -m benchmarks.bare A"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.systems import DEVICE, SYSTEMS, VAE, images_per_second, make_net, say
from colorization.color import LAB_SCALE, rgb_to_lab
from train import computes_bfloat16, keep_freed_memory


def main(name: str) -> None:
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    system = SYSTEMS[name]
    pixels = torch.randint(256, (system.batch_size, 3, system.size, system.size), dtype=torch.uint8, device=DEVICE)
    scale = torch.tensor(LAB_SCALE, device=DEVICE).view(3, 1, 1)
    net = make_net(name).to(DEVICE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001, fused=True)
    autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=computes_bfloat16(DEVICE.type))

    def loss_of(images: Tensor) -> Tensor:
        if isinstance(net, VAE):
            return net.loss(images)
        lightness, chroma = (rgb_to_lab(images) / scale).split([1, 2], dim=1)
        return F.mse_loss(net(lightness).float(), chroma)

    def step() -> None:
        with autocast:
            loss = loss_of(pixels.float() / 255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    say(images_per_second=images_per_second(name, step))


if __name__ == "__main__":
    main(*sys.argv[1:])
