"""A command line that answers a mistake in two lines: what is wrong, with the nearest right key, and where it is."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import SUPPRESS, ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from cli.given import Given, Mistake, read_config, read_option
from cli.hints import HELPERS, nearest_class, nearest_key
from system.errors import shown

# what jsonargparse says only in its messages, not in its exceptions' attributes
KEY = 'Parser key "'
CLASS = re.compile(r"Problem with given class_path '(.+?)':\s*(.+)")
VALUE = re.compile(r"Import path (\S+) does not|(?:Got|Given) value: (.*)")


class StrictParser(LightningArgumentParser):
    """For ``LightningCLI(parser_class=StrictParser)``: a mistake is one or two lines on stderr and exit status 2.

    It also refuses what jsonargparse accepts silently: abbreviated options, duplicate keys, unknown keys that hold
    nothing, null for any type, values where keys belong, and a linked value that contradicts the link's source.
    ``default_config_files`` and ``--config`` must name files that exist, not patterns or YAML.

    For each class in a config, jsonargparse makes another parser of this class, with ``exit_on_error=False``.
    The errors of such a parser begin with ``init_args.``; the outer parser puts the key of the class in front.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.given: list[Given] = []
        self.chosen = self  # or the parser of the subcommand
        self.links: dict[str, str] = {}  # target: source

    def link_arguments(self, source: Any, target: str, compute_fn: Any = None, apply_on: str = "parse") -> None:
        super().link_arguments(source, target, compute_fn, apply_on)
        if compute_fn is None and apply_on == "parse":
            self.links[target] = source

    def parse_args(  # type: ignore[override]  # as in jsonargparse
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None, **kwargs: bool
    ) -> Namespace:
        args = sys.argv[1:] if args is None else list(args)
        for arg in args:
            self.check_text(arg)
        if self._subcommands_action and args:
            self._choose(args[0], self._subcommands_action.choices)
        else:
            try:
                self.given = list(self._read(args))
            except Mistake as mistake:
                self.error(str(mistake), mistake)
            self._check_keys(self.given)
        config = super().parse_args(args, namespace, **kwargs)
        for target, source in self.links.items():
            values = [given.value for given in self.given if short(given.key) == short(target)]
            if values and target in config and source in config and values[-1] != str(config[source]):
                self.error(f"{target}: always equals {source}, here {config[source]}; set that instead")
        return expanded(config)

    def parse_object(
        self, obj: Namespace | dict[str, Any], namespace: Namespace | None = None, **kwargs: bool
    ) -> Namespace:
        # merging, which comes next, would drop unknown keys that hold {}
        keys = obj.keys(branches=True) if isinstance(obj, Namespace) else obj
        self._check_keys(Given(key.rstrip("+"), None, "") for key in keys)
        return super().parse_object(obj, namespace, **kwargs)

    def validate(self, namespace: Namespace, *, skip_unset: bool = True, **kwargs: Any) -> None:
        # jsonargparse lets null stand for any type; an argument of a class takes it only if its type says so
        super().validate(namespace, skip_unset=skip_unset and self.exit_on_error, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = self._in_one_line(message)
        if not self.exit_on_error:
            super().error(f"init_args.{message}", ex)
        if os.environ.get("JSONARGPARSE_DEBUG") == "true":
            super().error(message, ex)
        where = ex.where if isinstance(ex, Mistake) else self._where(message)
        sys.stderr.write(f"error: {shown(message)}\n" + (f"  {shown(where)}\n" if where else ""))
        self.exit(2)

    def check_text(self, text: str) -> None:
        if any("\ud800" <= char <= "\udfff" for char in text):
            self.error(f"{text}: not valid {sys.getfilesystemencoding()}, which a config cannot hold; rename it")

    def _choose(self, word: str, subcommands: dict[str, "StrictParser"]) -> None:
        if word in ("-h", "--help"):
            return
        if word.startswith("-"):
            self.error(f"{word.partition('=')[0]} belongs after the subcommand ({', '.join(subcommands)})")
        if word not in subcommands:
            self.error(f"no such subcommand: {word}, {nearest_key(word, subcommands)}")
        self.chosen = subcommands[word]

    def _check_keys(self, given: Iterable[Given]) -> None:
        names = {action.dest for action in self._actions} - {SUPPRESS} | HELPERS
        names = {name for name in names if not name.endswith(".help")}
        known = names - {name.rpartition(".")[0] for name in names}  # without trainer, as there is trainer.max_epochs
        for key, value, _ in given:
            leads_on = any(name.startswith(f"{key}.") for name in known)
            lies_within = any(f"{key}.".startswith(f"{name}.") for name in known)  # for jsonargparse to check
            if not (leads_on or lies_within or key == "dict_kwargs" or key.startswith("__")):  # as in __path__
                self.error(f"{key}: no such key, {nearest_key(key, known)}")
            if value is not None and (leads_on or key.endswith(".init_args")):
                self.error(f"{key}: expected keys below it, got {value or 'nothing'}")

    def _read(self, args: Sequence[str]) -> Iterator[Given]:
        """Everything that this parser was given; if a key has two values, the later one wins."""
        for path in self.default_config_files:
            yield from read_config(path)
        actions = [action for action in self._actions if isinstance(action, ActionConfigFile)]
        config_options = [option for action in actions for option in action.option_strings]
        for word, following in zip(args, [*args[1:], ""], strict=False):
            option, equals, value = word.partition("=")
            value = value if equals else following
            if option in config_options and value:
                yield from read_config(value)
            elif option.startswith("--") and option != "--":
                yield from read_option(option[2:].rstrip("+"), value)

    def _in_one_line(self, message: str) -> str:
        """``key: what is wrong``, from jsonargparse's many lines; if their wording is new, the first line."""
        if "arguments are required: " in message:
            return f"{message.rpartition(': ')[2]}: must be given; is --config missing?"
        if KEY not in message:
            return message.strip().partition("\n")[0]
        key, _, what = message.rpartition(KEY)[2].partition('":')  # the last is the innermost
        if found := CLASS.search(what):
            class_path, what = found.groups()
            if what.startswith("init_args."):
                return f"{key}.{what}"
            return f"{key}.class_path: {class_path}: {what}{nearest_class(class_path)}"
        types = {action.dest: getattr(action, "_typehint", None) for action in self.chosen._actions}
        if types.get(key) and (found := VALUE.search(what)):
            expected = " or ".join(", ".join(spelled(types[key])).rsplit(", ", 1))
            got = found[1] or found[2]
            got = "nothing" if got in ("None", "") else got
            return f"{key}: expected {expected}, got {got}"
        first_line = what.strip(" -\n").partition("\n")[0]
        return f"{key}: {first_line}"

    def _where(self, message: str) -> str | None:
        key = message.partition(": ")[0].partition(" is ")[0]
        while key:
            found = [there for there in reversed(self.chosen.given) if short(there.key) == short(key)]
            if found:  # if several, the one whose value the message names, or else the last
                return max(found, key=lambda there: f" {there.value}:" in f"{message}:").where
            key = key.rpartition(".")[0]
        return None


def expanded(value: Any) -> Any:
    """Expand a leading ``~`` in every value: YAML does not, nor does the shell after ``--key=``."""
    if isinstance(value, str | Path):
        return type(value)(os.path.expanduser(value))
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if isinstance(value, Namespace | dict):
        for key, item in list(value.items()):
            value[key] = expanded(item)
    return value


def short(key: str) -> str:
    """``--model`` and ``--model.lr`` are other ways to write ``model.class_path`` and ``model.init_args.lr``."""
    return key.replace(".init_args", "").removesuffix(".class_path")


def spelled(kind: Any) -> list[str]:
    """Put a type in words that a user can write: ["int", "null"], ["'mse'", "'mae'"]."""
    if get_origin(kind) is Literal:
        return [repr(choice) for choice in get_args(kind)]
    if get_origin(kind) in (Union, UnionType):
        return [word for part in get_args(kind) for word in spelled(part)]
    return ["null" if kind is NoneType else getattr(kind, "__name__", str(kind))]
