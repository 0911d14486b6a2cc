"""Training as the report's notebooks do it: python -m benchmarks.notebook A

Two workers open, resize and convert images to Lab one by one in ``__getitem__``. The network trains in float32, with
PyTorch's defaults.
"""

import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.systems import DEVICE, SYSTEMS, VAE, images_per_second, say


class Fruits(Dataset[Any]):
    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        image = Image.open(self.files[index]).convert("RGB").resize((self.size, self.size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class Paintings(Fruits):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.files[index]).convert("RGB").resize((self.size, self.size))
        lab = torch.from_numpy(rgb2lab(np.array(image))).permute(2, 0, 1).float()
        return lab[:1] / 100, lab[1:] / 128


def main(name: str) -> None:
    torch.manual_seed(0)
    system, net = SYSTEMS[name], SYSTEMS[name].make().to(DEVICE)
    images = (Fruits if isinstance(net, VAE) else Paintings)(system.files(), system.size)
    loader = DataLoader(images, system.batch_size, shuffle=True, drop_last=True, num_workers=2)
    batches: Iterator[Any] = (batch for epoch in cycle([loader]) for batch in epoch)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)

    def step() -> float:
        batch = next(batches)
        if isinstance(net, VAE):
            loss = net.loss(batch.to(DEVICE))
        else:
            lightness, chroma = (part.to(DEVICE) for part in batch)
            loss = F.mse_loss(net.net(lightness), chroma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    say(images_per_second=images_per_second(name, step))


if __name__ == "__main__":
    main(*sys.argv[1:])
