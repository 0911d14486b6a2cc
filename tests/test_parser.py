import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from jsonargparse import ArgumentError, Namespace, capture_parser
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch.utils.data import DataLoader, TensorDataset

from cli.parser import StrictParser

# Lightning 2.6 still calls what jsonargparse 5 will drop
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

DEFAULTS = """
trainer:
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
"""
TOY = f"""
model:
  class_path: {__name__}.ToyModel
  init_args: {{latent_dim: 4}}
data:
  class_path: {__name__}.ToyData
  init_args: {{size: 64}}
"""


class ToyModel(LightningModule):
    def __init__(
        self, image_size: int, latent_dim: int = 8, lr: float = 0.1, loss: Literal["mse", "mae"] = "mse"
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self.layer(*batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


class SizelessModel(ToyModel):
    def __init__(self, loss: Literal["mse", "mae"], lr: float = 0.1) -> None:
        super().__init__(image_size=1, loss=loss, lr=lr)


class ToyData(LightningDataModule):
    def __init__(self, root: str | None = None, size: int = 128) -> None:
        super().__init__()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.zeros(2, 1)))


class Watch(Callback):
    def __init__(self, every_n_epochs: int = 1, names: list[str] | None = None) -> None:
        pass


class ToyCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.init_args.size", "model.init_args.image_size")


def run(args: list[str], defaults: Path | str) -> ToyCLI:
    fit = {"default_config_files": [str(defaults)]}
    return ToyCLI(parser_class=StrictParser, parser_kwargs={"fit": fit}, seed_everything_default=0, args=args)


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> StrictParser:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        built = capture_parser(run, [], write(tmp_path_factory.mktemp("configs") / "defaults.yaml", DEFAULTS))
    assert isinstance(built, StrictParser)
    return built


@pytest.fixture(autouse=True)
def toy(tmp_path: Path) -> Path:
    return write(tmp_path / "toy.yaml", TOY)


class Refused:
    """The lines that answer a mistake on the command line or in mine.yaml, given along with a correct config."""

    def __init__(self, parser: StrictParser, capsys: pytest.CaptureFixture[str]) -> None:
        self.parser, self.capsys = parser, capsys

    def __call__(self, *args: str, yaml: str | None = None) -> str:
        if yaml is not None:
            write(Path("mine.yaml"), yaml)
            args = ("--config=mine.yaml", *args)
        return self.by(self.parser.parse_args, ["fit", "--config=toy.yaml", *args])

    def by(self, parse: Callable[..., object], *args: object) -> str:
        with pytest.raises(SystemExit) as stop:
            parse(*args)
        stdout, stderr = self.capsys.readouterr()
        assert stop.value.code == 2
        assert not stdout
        assert stderr.startswith("error: ")
        assert len(stderr.splitlines()) <= 3
        return stderr


@pytest.fixture
def refused(parser: StrictParser, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(parser, capsys)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def model(init_args: str) -> str:
    return f"model:\n  class_path: {__name__}.ToyModel\n  init_args:\n    {init_args}\n"


def callbacks(init_args: str, key: str = "callbacks") -> str:
    return f"trainer:\n  {key}:\n    - class_path: {__name__}.Watch\n      init_args:\n        {init_args}\n"


@pytest.mark.parametrize(
    ("yaml", "wrong", "right", "line"),
    [
        ("trainerr:\n  max_epochs: 3", "trainerr", "trainer", 1),
        ("trainer:\n  max_epoch: 3", "trainer.max_epoch", "trainer.max_epochs", 2),
        ("max_epochs: 3", "max_epochs", "trainer.max_epochs", 1),
        (model("latent_dims: 3"), "model.init_args.latent_dims", "latent_dim", 4),
        ("data:\n  init_args:\n    rot: x", "data.init_args.rot", "root", 3),
        (callbacks("every_n_epoch: 3"), "trainer.callbacks.init_args.every_n_epoch", "every_n_epochs", 5),
        (callbacks("every_n_epoch: 3", "callbacks+"), "trainer.callbacks.init_args.every_n_epoch", "every_n_epochs", 5),
    ],
)
@pytest.mark.parametrize("value", ["3", "{}", "null", ""])
def test_misspelled_key_whatever_it_holds(
    refused: Refused, yaml: str, wrong: str, right: str, line: int, value: str
) -> None:
    answer = refused(yaml=yaml.replace(": 3", f": {value}").replace(": x", f": {value}"))
    assert answer == f"error: {wrong}: no such key, did you mean {right}?\n  in mine.yaml, line {line}\n"


def test_key_that_resembles_none_lists_those_there_are(refused: Refused) -> None:
    answer = refused(yaml=model("zzz: 3"))
    assert "model.init_args.zzz: no such key, choose from image_size, latent_dim, loss, lr\n" in answer


def test_a_key_of_older_runs_is_said_to_be_removed(refused: Refused) -> None:
    assert "on_device: no such key, it was removed, so delete it" in refused("--data.init_args.on_device=false")


def test_argument_beside_class_path(refused: Refused) -> None:
    answer = refused(yaml=f"model:\n  class_path: {__name__}.ToyModel\n  latent_dim: 3")
    assert answer == "error: model.latent_dim: belongs under model.init_args\n  in mine.yaml, line 3\n"


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [
        ("--trainer.max_epoch=3", "trainer.max_epoch", "trainer.max_epochs"),
        ("--trainer.max_epoch={}", "trainer.max_epoch", "trainer.max_epochs"),
        ("--trainer={max_epoch: 3}", "trainer.max_epoch", "trainer.max_epochs"),
        ("--modl.init_args={}", "modl.init_args", "model.init_args"),
        ("--model.init_args.latent_dims=4", "model.init_args.latent_dims", "latent_dim"),
        ("--model.latent_dims=4", "model.init_args.latent_dims", "latent_dim"),
        ("--modl.init_args.latent_dim=4", "modl.init_args.latent_dim", "model.init_args.latent_dim"),
        ("--data.rot=x", "data.init_args.rot", "root"),
    ],
)
def test_misspelled_option(refused: Refused, option: str, wrong: str, right: str) -> None:
    expected = f"error: {wrong}: no such key, did you mean {right}?\n  on the command line\n"
    assert refused(option) == expected
    assert refused(*option.split("=")) == expected


def test_abbreviations_are_not_even_considered(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    assert "no such key, did you mean print_config?" in refused("--print_confi")
    assert not [warning for warning in recwarn if "abbrev" in str(warning.message)]


@pytest.mark.parametrize(
    ("yaml", "what", "line"),
    [
        ("trainer:\n  max_epochs: many", "trainer.max_epochs: expected int or null, got many", 2),
        ("trainer: 3", "trainer: expected keys below it, got 3", 1),
        ("trainer:\n# max_epochs: 3", "trainer: expected keys below it, got nothing", 1),
        ("trainer: [3]", "trainer: expected keys below it, got a list", 1),
        ("model: 3", "model: expected LightningModule or null, got 3", 1),
        ("trainer:\n  callbacks: 3", "trainer.callbacks: expected list, Callback or null, got 3", 2),
        (model("lr: fast"), "model.init_args.lr: expected float, got fast", 4),
        (model("loss: msee"), "model.init_args.loss: expected 'mse' or 'mae', got msee", 4),
        (model(""), "model.init_args: expected keys below it, got nothing", 3),
        (model("[3]"), "model.init_args: expected keys below it, got a list", 3),
    ],
)
def test_wrong_type_in_yaml(refused: Refused, yaml: str, what: str, line: int) -> None:
    right = "--trainer.max_epochs=5", "--model.lr=0.1"  # the answer must not point here
    assert refused(*right, yaml=yaml) == f"error: {what}\n  in mine.yaml, line {line}\n"


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("--trainer.max_epochs=many", "trainer.max_epochs: expected int or null, got many"),
        ("--trainer.max_epochs=", "trainer.max_epochs: expected int or null, got nothing"),
        ("--trainer={max_epochs: many}", "trainer.max_epochs: expected int or null, got many"),
        ("--trainer={max_epochs", "trainer: expected keys below it, got {max_epochs"),
        ("--trainer.precision=bf17", "'bf16' or null, got bf17"),
        ("--model.init_args.lr=fast", "model.init_args.lr: expected float, got fast"),
        ("--model.loss=msee", "model.init_args.loss: expected 'mse' or 'mae', got msee"),
    ],
)
def test_wrong_type_on_the_command_line(refused: Refused, option: str, what: str) -> None:
    assert refused(option).endswith(f"{what}\n  on the command line\n")


def test_null_is_no_float(refused: Refused) -> None:
    answer = refused(yaml=model("lr:"))
    assert answer == "error: model.init_args.lr: expected float, got nothing\n  in mine.yaml, line 4\n"


def test_missing_argument_of_a_class(refused: Refused) -> None:
    answer = refused(f"--model={__name__}.SizelessModel")
    assert "model.init_args.loss: expected 'mse' or 'mae', got nothing\n" in answer


@pytest.mark.parametrize(
    ("yaml", "key", "line"),
    [
        ("trainer: {}\ntrainer: {}", "trainer", 2),
        ("seed_everything: 1\nseed_everything: 1", "seed_everything", 2),
        ("trainer:\n  max_epochs: 3\n  max_epochs: 4", "trainer.max_epochs", 3),
        (model("lr: 1.0\n    lr: 2.0"), "model.init_args.lr", 5),
        (callbacks("every_n_epochs: 1\n        every_n_epochs: 2"), "trainer.callbacks.init_args.every_n_epochs", 6),
    ],
)
def test_duplicate_key(refused: Refused, yaml: str, key: str, line: int) -> None:
    expected = f"error: {key}: given twice\n  in mine.yaml, line {line}\n"
    assert refused("-c", "toy.yaml", yaml=yaml) == expected
    assert refused.by(run, ["fit", "--config=toy.yaml"], "mine.yaml") == expected


@pytest.mark.parametrize(
    ("yaml", "what"),
    [
        (
            "trainer:\n  max_epochs: [3\n  x: 4",
            "not valid YAML: expected ',' or ']', but got ':'\n  in mine.yaml, line 3",
        ),
        ("trainer:\n\tmax_epochs: 3", "that cannot start any token\n  in mine.yaml, line 2"),
        ("", "expected lines of 'key: value', got nothing\n  in mine.yaml"),
        ("# trainer:", "expected lines of 'key: value', got nothing\n  in mine.yaml"),
        ("- trainer", "expected lines of 'key: value', got something else\n  in mine.yaml"),
    ],
)
def test_unreadable_config(refused: Refused, yaml: str, what: str) -> None:
    assert refused(yaml=yaml).endswith(f"{what}\n")


def test_config_that_does_not_exist(refused: Refused) -> None:
    answer = "error: no such file: tooy.yaml, did you mean toy.yaml?\n  on the command line\n"
    assert refused("--config=tooy.yaml") == answer
    assert refused("-c", "tooy.yaml") == answer


def test_an_argument_that_is_not_text_is_refused(refused: Refused) -> None:
    assert (
        refused("--data.root=x\udcff")
        == "error: --data.root=x\\udcff: not valid utf-8, which a config cannot hold; rename it\n"
    )


def test_control_characters_are_shown_escaped(refused: Refused) -> None:
    assert refused("--config=no\x1b[31m.yaml").startswith("error: no such file: no\\x1b[31m.yaml, ")
    assert "got f\\x1bst\n" in refused("--model.lr=f\x1bst")


def test_home_is_expanded_in_values_and_the_items_of_lists(
    parser: StrictParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    write(Path("mine.yaml"), callbacks("names: [~/a, b~, ~_/c]"))
    options = ["--data.root=~/images", "--trainer.default_root_dir", "~/runs"]
    parsed = parser.parse_args(["fit", "-c", "toy.yaml", "-c", "mine.yaml", *options]).fit
    assert (parsed.data.init_args.root, parsed.trainer.default_root_dir) == ("/home/me/images", "/home/me/runs")
    assert parsed.trainer.callbacks[0].init_args.names == ["/home/me/a", "b~", "~_/c"]


def test_config_that_is_not_text(refused: Refused) -> None:
    Path("model.ckpt").write_bytes(b"\xd0\x00")
    assert "not valid YAML" in refused("--config=model.ckpt")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("{}.ToyModl", "did you mean {}.ToyModel?"),
        ("torchh.ToyModel", "No module named 'torchh', did you mean torch.ToyModel?"),
        ("{}.ToyData", "model: expected LightningModule or null, got {}.ToyData"),
        ("ToyModl", "model: expected LightningModule or null, got ToyModl"),
    ],
)
def test_class_path_that_leads_nowhere(refused: Refused, given: str, what: str) -> None:
    given, what = given.format(__name__), what.format(__name__)
    assert refused(f"--model={given}").endswith(f"{what}\n  on the command line\n")
    assert refused(yaml=f"model: {given}").endswith(f"{what}\n  in mine.yaml, line 1\n")


def test_class_that_is_no_callback_among_some_that_are(refused: Refused) -> None:
    classes = "Watch", "ToyData", "Watch"
    answer = refused(yaml="trainer:\n  callbacks:\n" + "".join(f"    - {__name__}.{name}\n" for name in classes))
    what = f"error: trainer.callbacks: expected list, Callback or null, got {__name__}.ToyData"
    assert answer == f"{what}\n  in mine.yaml, line 4\n"


def test_misspelled_callback_class(refused: Refused) -> None:
    answer = refused(yaml=callbacks("every_n_epochs: 3").replace("Watch", "Wach"))
    assert answer.endswith(f"did you mean {__name__}.Watch?\n  in mine.yaml, line 3\n")


@pytest.mark.parametrize(
    ("args", "what"),
    [
        ([], "{fit,validate,test,predict}"),
        (["fitt"], "no such subcommand: fitt, did you mean fit?"),
        (["--config=toy.yaml", "fit"], "--config belongs after the subcommand (fit, validate, test, predict)"),
        (["fit"], "fit.model: must be given; is --config missing?"),
        (["fit", "--config=toy.yaml", "--", "more"], "unrecognized arguments: -- more"),
    ],
)
def test_subcommand(parser: StrictParser, refused: Refused, args: list[str], what: str) -> None:
    assert what in refused.by(parser.parse_args, args)


@pytest.mark.parametrize("short", [".init_args", ""])
def test_linked_argument_follows_its_source(parser: StrictParser, refused: Refused, short: str) -> None:
    what = "error: model.init_args.image_size: always equals data.init_args.size, here 64; set that instead\n"
    assert refused(f"--model{short}.image_size=32") == f"{what}  on the command line\n"
    assert refused(yaml=model("image_size: 32")) == f"{what}  in mine.yaml, line 4\n"
    sizes = [f"--model{short}.image_size=32", f"--data{short}.size=32"]
    accepted = parser.parse_args(["fit", "--config=toy.yaml", *sizes])
    assert accepted.fit.model.init_args.image_size == accepted.fit.data.init_args.size == 32


def test_link_leaves_a_model_without_its_target_alone(parser: StrictParser) -> None:
    write(Path("mine.yaml"), model("image_size: 32"))  # given to a model that the command line replaces
    sizeless = ["--config=mine.yaml", f"--model={__name__}.SizelessModel", "--model.loss=mae"]
    for options in (sizeless, sizeless[1:]):
        accepted = parser.parse_args(["fit", "--config=toy.yaml", *options])
        assert accepted.fit.model.init_args == Namespace(loss="mae", lr=0.1)


def test_saved_config_runs_again(tmp_path: Path) -> None:
    first = run(["fit", "--config=toy.yaml", "--model.latent_dim=2"], write(tmp_path / "defaults.yaml", DEFAULTS))
    saved = next(tmp_path.rglob("config.yaml"))
    empty = write(tmp_path / "empty.yaml", "trainer: {}")
    again = run(["fit", f"--config={saved}", "--trainer.fast_dev_run=true"], empty)
    assert again.model.hparams == first.model.hparams
    assert again.model.hparams.image_size == 64
    assert again.config.fit.trainer.max_epochs == 1


def test_what_is_right_is_accepted(parser: StrictParser) -> None:
    options = ["--trainer.max_epochs", "5", "--model.lr", "1e-3", f"--trainer.callbacks+={__name__}.Watch"]
    checkpoint = ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"]
    name = ["--trainer.callbacks.filename={epoch}-{step}"]
    write(Path("mine.yaml"), callbacks("names+: [a]", "callbacks+"))
    accepted = parser.parse_args(["fit", "-c", "toy.yaml", "-c", "mine.yaml", *options, *checkpoint, *name]).fit
    assert (accepted.trainer.max_epochs, accepted.model.init_args.lr) == (5, 1e-3)
    assert accepted.trainer.callbacks[0].init_args.names == ["a"]
    assert accepted.trainer.callbacks[2].init_args.filename == "{epoch}-{step}"


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["--help"], "predict"),
        (["fit", "--help"], "--trainer.max_epochs"),
        (["fit", "--model.help", f"{__name__}.ToyModel"], "--model.latent_dim"),
        (["fit", "--config=toy.yaml", "--print_config"], "latent_dim: 4"),
    ],
)
def test_help_and_print_config(capsys: pytest.CaptureFixture[str], args: list[str], shown: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(args, write(Path("defaults.yaml"), DEFAULTS))
    assert stop.value.code == 0
    assert shown in capsys.readouterr().out


def test_error_is_an_exception_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="broken"):
        StrictParser(exit_on_error=False).error("broken")
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(ArgumentError, match="broken"):
        StrictParser().error("broken")


def test_unknown_wording_keeps_its_first_line(parser: StrictParser, refused: Refused) -> None:
    assert refused.by(parser.error, "Something new\n  in many\n  lines") == "error: Something new\n"
    message = 'Parser key "a.b":\n  Something new\n  in many lines'
    assert refused.by(parser.error, message) == "error: a.b: Something new\n"
