import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW

from colorization import PaletteColorizer
from colorization.color import rgb_to_lab
from colorization.encoders import PACKAGE, TimmEncoder, read_weights
from colorization.hints import Hint
from colorization.metrics import ciede2000
from colorization.palette import resize
from colorization.weights import PALETTE
from images.colorfulness import colorfulness
from resuming.checkpoints import load_model
from system.errors import PigmentError
from tests.test_colorizer import SCRATCH, fit, skies_and_fields
from tests.world import CONFIGS, last, live_in, tiny, write_paintings
from train import PigmentCLI, main

CONFIG = CONFIGS / "colorization" / "10_palette.yaml"
LITE0 = "tf_efficientnet_lite0"


def make(**settings: Any) -> PaletteColorizer:
    return PaletteColorizer(**SCRATCH | settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PigmentCLI:
    """Three epochs on tiny paintings, which tests only read."""
    folder = tmp_path_factory.mktemp("palette")
    with pytest.MonkeyPatch.context() as monkeypatch:
        live_in(folder, monkeypatch)
        options = ["--trainer.max_epochs=3", f"--trainer.default_root_dir={folder / 'runs'}"]
        return main(tiny("fit", write_paintings(folder / "paintings"), *options, config=CONFIG))


def pretrained(weights: str) -> TimmEncoder:
    encoder = TimmEncoder(LITE0)
    encoder.load_pretrained(read_weights(weights, LITE0), weights)
    return encoder


def validation_images(run: PigmentCLI) -> Tensor:
    return torch.stack(list(run.datamodule.val_dataloader().dataset)) / 255


@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 70)])
def test_the_mirror_image_gets_the_mirrored_colors(height: int, width: int) -> None:
    model, lightness = make().eval(), torch.rand(2, 1, height, width)
    assert torch.allclose(model(lightness.flip(3)), model(lightness).flip(3), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "enlarged"),
    [
        ({"backbone": None}, (24, 40)),
        ({"backbone": LITE0, "weights": "package", "freeze_encoder": True}, (32, 48)),
        ({"backbone": LITE0, "weights": "timm", "freeze_encoder": True}, (32, 48)),
        ({"backbone": LITE0, "weights": "package", "freeze_encoder": False}, (24, 40)),
        ({"backbone": LITE0, "weights": "any.safetensors", "freeze_encoder": True}, (24, 40)),
    ],
    ids=["from scratch", "as published", "as timm has it", "learns", "from a file"],
)
def test_evaluation_looks_at_images_enlarged_and_as_they_are(
    settings: dict[str, Any], enlarged: tuple[int, int]
) -> None:
    model, seen = make(**settings).eval(), []
    model.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    predicted = model.predict(torch.rand(1, 1, 64, 96)).chroma
    averages = [(one + mirrored.flip(2)) / 2 for one, mirrored in (model.net(images).chroma for images in seen[:2])]
    assert [one.shape[1:] for one in averages] == [enlarged, (16, 24)]
    assert torch.allclose(predicted, (averages[0] + resize(averages[1][None], predicted)) / 2, atol=1e-6)


def test_every_parameter_learns() -> None:
    model = make()
    lightness, chroma = model.split(torch.rand(2, 3, 64, 64))
    model._terms(model.net(lightness), chroma)["loss"].backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_the_decoder_misses_other_channels_at_each_step_of_training_and_none_in_use() -> None:
    model, lightness = make(dropout=0.5), torch.rand(1, 1, 64, 64)
    maps: list[Tensor] = []  # of a quarter of the size, as the decoder gets them
    model.net.fine.register_forward_pre_hook(lambda _, given: maps.append(given[1]))
    for training in (True, True, False, False):
        model.net.train(training)(lightness)
    first, second, whole, _ = ((one != 0).any(dim=(2, 3)) for one in maps)
    assert 0.2 < first[whole].float().mean() < 0.8
    assert not torch.equal(first, second)
    assert torch.equal(maps[2], maps[3])
    assert whole.float().mean() > 0.9


def test_both_terms_of_the_loss_are_least_for_the_truth() -> None:
    model = make()
    chroma = model.split(skies_and_fields(2, size=32))[1]
    truth = torch.nn.functional.avg_pool2d(chroma, 4)
    distances = torch.cdist(128 * truth.flatten(2).mT, model.colors)
    scores = (-0.5 * (distances / 5) ** 2).mT.unflatten(2, (8, 8))
    prediction = model.net(torch.rand(2, 1, 32, 32))
    right = model._terms(prediction._replace(chroma=truth, scores=scores), chroma)
    assert right["chroma_difference"] < 1e-3
    for change in ({"chroma": truth + 0.05, "scores": scores}, {"chroma": truth, "scores": 2 * scores}):
        assert model._terms(prediction._replace(**change), chroma)["loss"] > right["loss"] + 0.05


def test_color_that_follows_lightness_is_learned_and_likely() -> None:
    model, images = make(lr=0.005), skies_and_fields(4, size=32)
    fit(model, images, max_steps=60)
    lightness, chroma = model.split(images)
    error = (model.split(model.colorize(images))[1] - chroma).abs().mean()
    assert error < 0.5 * (chroma - chroma.mean(dim=(0, 2, 3), keepdim=True)).abs().mean()
    prediction = model.eval().predict(lightness[1:2])
    likeliest, *others = model.likeliest(prediction, lightness[1:2], 0.5, 0.5, number=259)
    assert likeliest.probability > 0.1
    assert likeliest.probability + sum(one.probability for one in others) == pytest.approx(1, abs=1e-4)
    lab = rgb_to_lab(torch.tensor(likeliest.color).view(1, 3, 1, 1))
    assert (lab - rgb_to_lab(images[1:2, :, :1, :1])).norm() < 10


def test_likely_colors_are_as_light_as_the_picture_there_or_light_enough_to_be_seen() -> None:
    model, image = make().eval(), torch.zeros(1, 3, 40, 60)
    image[..., 30:, 50:] = 0.6
    lightness, _ = model.split(image)
    prediction = model.predict(lightness)
    for x, y, expected in ((0.9, 0.9, lightness[0, 0, -1, -1]), (1, 1, lightness[0, 0, -1, -1]), (0.1, 0.9, 0.4)):
        likely = model.likeliest(prediction, lightness, x, y, number=5)
        colors = torch.tensor([one.color for one in likely])
        assert rgb_to_lab(colors.T[None, :, None])[0, 0, 0].tolist() == pytest.approx(
            [100 * float(expected)] * 5, abs=0.5
        )
        probabilities = [one.probability for one in likely]
        assert probabilities == sorted(probabilities, reverse=True)


def test_vividness_is_calibrated_on_the_validation_images(run: PigmentCLI) -> None:
    model, images = run.model, validation_images(run)
    gains, differences, _ = model.curve.T
    assert gains[differences.argmin()] == pytest.approx(model.gain(0))
    truth = rgb_to_lab(images)
    measured = {}
    with torch.no_grad():
        model.eval()
        lightness, _ = model.split(images)
        for gain in gains.tolist():
            colored = model.join(lightness, gain * model(lightness) / model.gain(0))[..., ::8, ::8]
            measured[gain] = ciede2000(rgb_to_lab(colored), truth[..., ::8, ::8]).mean()
    assert differences.tolist() == pytest.approx([one.item() for one in measured.values()], rel=1e-3)


def test_vividness_leads_from_the_least_difference_to_the_colors_of_the_truth() -> None:
    model = make()
    assert model.gain(0) == model.gain(1) == 1  # before it was calibrated
    model.curve = torch.tensor([[0.8, 9.0, 0.4], [1.0, 8.5, 0.6], [1.5, 8.8, 0.9], [2.0, 9.5, 1.1]])
    assert [model.gain(vividness) for vividness in (0, 0.5, 1)] == pytest.approx([1, 1.375, 1.75])
    images = torch.rand(2, 3, 32, 32)
    lightness, _ = model.split(images)
    with torch.no_grad():
        assert torch.allclose(model.eval()(lightness, 1), 1.75 * model(lightness), atol=1e-6)


def test_a_hint_keeps_its_color_whatever_the_vividness(run: PigmentCLI) -> None:
    images = validation_images(run)[:1]
    hint = Hint(0.5, 0.3, (0.8, 0.3, 0.3))
    wanted = rgb_to_lab(torch.tensor(hint.color).view(1, 3, 1, 1))[0, 1:, 0, 0]
    for vividness in (0, 1):
        lightness, _ = run.model.split(images)
        chroma = run.model.eval()(lightness, vividness, [hint])
        assert (128 * chroma[0, :, 4, 8] - wanted).norm() < 2
        assert not torch.allclose(run.model(lightness, vividness), chroma)


def test_what_hints_and_vividness_are_worth_is_tested(run: PigmentCLI) -> None:
    checkpoint = torch.load(last(run), weights_only=True)
    checkpoint["curve"] = torch.tensor([[1.0, 8.0, 0.5], [2.0, 9.0, 1.0]])
    torch.save(checkpoint, "calibrated.ckpt")
    again = main(tiny("test", run.datamodule.root, "--ckpt_path=calibrated.ckpt", config=CONFIG))
    logged = again.trainer.callback_metrics
    assert logged["test/100_hints_ciede2000"] < 0.8 * logged["test/ciede2000"]
    assert logged["test/100_hints_psnr"] > logged["test/psnr"] + 1
    assert {"test/1_hints_mae", "test/10_hints_ssim"} <= logged.keys()
    images, model = validation_images(run), again.model
    for name, vividness in (("", 0), ("half_vivid_", 0.5), ("vivid_", 1)):
        difference = colorfulness(model.colorize(images, vividness)).mean() - colorfulness(images).mean()
        assert logged[f"test/{name}colorfulness_difference"] == pytest.approx(difference.item(), abs=1e-3)


def test_a_checkpoint_holds_the_curve(run: PigmentCLI) -> None:
    loaded = PaletteColorizer.load_from_checkpoint(last(run), weights_only=True, map_location="cpu")
    assert torch.equal(loaded.curve, run.model.curve)
    assert loaded.gain(0.5) == run.model.gain(0.5) != 1


def test_a_frozen_encoder_stays_what_it_was_and_all_else_learns(run: PigmentCLI) -> None:
    before = pretrained("package").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.net.encoder.state_dict().items())
    changed = make(backbone=LITE0, weights="package", freeze_encoder=True).net.state_dict()
    for name, parameter in run.model.net.named_parameters():
        assert name.startswith("encoder.") or not torch.equal(parameter, changed[name])


def test_a_fit_can_start_from_a_trained_palette_colorizer(run: PigmentCLI) -> None:
    images = torch.rand(2, 3, 32, 32)
    for weights, learned in ((PALETTE, load_model(PALETTE, PaletteColorizer)[0]), (last(run), run.model)):
        model = make(backbone=LITE0, weights=str(weights), freeze_encoder=True, lr=1e-30)
        fit(model, images, max_steps=1)
        expected = dict(learned.named_parameters())
        assert all(torch.allclose(parameter, expected[name]) for name, parameter in model.named_parameters())
    torch.save({"state_dict": {"net.some": torch.zeros(3)}}, "shallow.ckpt")
    with pytest.raises(PigmentError, match=r"'shallow.ckpt' holds a model with different layers"):
        fit(make(backbone=LITE0, weights="shallow.ckpt", freeze_encoder=True), images, max_steps=1)


def test_an_encoder_that_learns_does_so_slowly() -> None:
    model = make(backbone=LITE0, weights="package", lr=0.01, weight_decay=0.07)
    model.trainer = Trainer(logger=False)
    optimizer = model.configure_optimizers()["optimizer"]
    assert type(optimizer) is AdamW
    others, encoder = optimizer.param_groups
    assert (others["weight_decay"], encoder["weight_decay"]) == (0.07, 0.07)
    assert (others["initial_lr"], encoder["initial_lr"]) == (0.01, pytest.approx(0.001))
    assert {*others["params"], *encoder["params"]} == set(model.parameters())


def test_the_learning_rate_rises_and_falls() -> None:
    model, images, rates = make(warmup_steps=10), torch.rand(2, 3, 32, 32), []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(model, images, max_steps=60, callbacks=[Watch()])
    assert rates[:10] == pytest.approx([0.001 * step / 11 for step in range(1, 11)])
    assert rates[11:] == pytest.approx([0.0005 * (1 + math.cos(math.pi * step / 60)) for step in range(11, 60)])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="freeze_encoder is true, but weights is null: it would stay random"):
        make(backbone=LITE0, freeze_encoder=True)
    with pytest.raises(ValueError, match="warmup_steps is -1, must be 0 or more"):
        make(warmup_steps=-1)
    with pytest.raises(ValueError, match="dropout is 1, must be 0 or more, and less than 1"):
        make(dropout=1)
    with pytest.raises(ValueError, match="but they need a backbone; use null"):
        make(weights="package")
    with pytest.raises(ValueError, match="backbone: Unknown model"):
        make(backbone="resnet9999")
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 has strides"):
        make(backbone="vit_tiny_patch16_224")


@pytest.mark.usefixtures("no_network")
def test_weights_that_cannot_be_had_are_answered_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Hugging Face's hub waits longer before each new attempt
    (tmp_path / "html.pth").write_text("<html>log in")
    torch.save({"some": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"weights": {"some": torch.zeros(3)}, "epoch": 3}, tmp_path / "nested.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    encoder = TimmEncoder(LITE0)
    for weights, said in {
        "nowhere.pth": r"'nowhere.pth' could not be read \(No such file",
        str(tmp_path / "html.pth"): "html.pth' could not be read",
        str(tmp_path / "nested.pth"): "nested.pth' does not hold a network's weights by their names",
        str(tmp_path / "list.pth"): "list.pth' does not hold a network's weights",
        str(tmp_path / "other.pth"): "other.pth' do not fit tf_efficientnet_lite0",
        "timm": rf"'timm' could not be read .* install {PACKAGE}",
    }.items():
        with pytest.raises(PigmentError, match=said):
            encoder.load_pretrained(read_weights(weights, LITE0), weights)


def test_the_same_weights_come_from_the_package_and_from_files(tmp_path: Path) -> None:
    whole = timm.create_model(LITE0, pretrained=False).state_dict()
    torch.save(whole, tmp_path / "a.pth")
    torch.save({"state_dict": whole, "epoch": 3}, tmp_path / "nested.pth")
    save_file(whole, tmp_path / "b.safetensors")
    for name in ("a.pth", "nested.pth", "b.safetensors"):
        encoder = pretrained(str(tmp_path / name))
        assert torch.equal(encoder.layers.conv_stem.weight, whole["conv_stem.weight"])
    encoder = pretrained("package")
    assert encoder.layers.conv_stem.weight.std() > 2 * whole["conv_stem.weight"].std()  # it has learned something
