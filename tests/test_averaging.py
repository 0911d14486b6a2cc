from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import AverageWeights
from colorization import PaletteColorizer
from tests.test_colorizer import SCRATCH, fit, make_trainer, skies_and_fields


class Look(Callback):
    """Look at the weights when validation is over, as pictures do."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


class Follow(AverageWeights):
    """Compute the same average in another way, and look at what validation sees."""

    def __init__(self, decay: float) -> None:
        super().__init__(decay)
        self.steps: list[dict[str, Tensor]] = []
        self.seen: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.steps.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self.seen = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def test_weights_and_statistics_are_averaged_and_all_else_is_as_it_was_last() -> None:
    model, follow = PaletteColorizer(**SCRATCH), Follow(decay=0.6)
    fit(model, skies_and_fields(4, size=32), max_steps=20, callbacks=[follow])
    is_averaged = {name for name, _ in model.named_parameters()}
    is_averaged |= {name for name in model.state_dict() if name.endswith(("running_mean", "running_var"))}
    for name, got in follow.seen.items():
        expected = follow.steps[0][name].double()
        for number, step in enumerate(follow.steps[1:], start=1):
            decay = min(0.6, number / (number + 10))
            expected = decay * expected + (1 - decay) * step[name].double()
        if name not in is_averaged:
            expected = follow.steps[-1][name].double()
        assert torch.allclose(got.double(), expected, atol=1e-5), name


def test_what_draws_after_validation_sees_the_average_wherever_it_is_listed() -> None:
    model, follow, before, after = PaletteColorizer(**SCRATCH), Follow(decay=0.6), Look(), Look()
    images: DataLoader[Tensor] = DataLoader(skies_and_fields(4, size=32), batch_size=4)
    trainer = make_trainer(max_steps=3, callbacks=[before, follow, after])
    trainer.fit(model, images, images)
    assert any(not torch.equal(last, follow.seen[name]) for name, last in follow.steps[-1].items())
    for look in (before, after):
        assert all(torch.equal(tensor, follow.seen[name]) for name, tensor in look.seen.items())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay is {decay}, must be 0 or more, and less than 1"):
        AverageWeights(decay)
