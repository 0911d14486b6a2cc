"""A command line that answers a mistake in two lines: what is wrong, with the nearest right key, and where it is."""

import contextlib
import difflib
import os
import pkgutil
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from jsonargparse import SUPPRESS, ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser

COMMAND_LINE = "on the command line"
HELPERS = {"help", "print_config", "print_shtab"}  # options that set no key


class Given(NamedTuple):
    """A key that the user has set: its scalar as written, None where further keys follow, and where it stands."""

    key: str
    value: str | None
    where: str


class Mistake(Exception):
    """What is wrong, and where: found in what the user gave, before jsonargparse sees it."""


class StrictParser(LightningArgumentParser):
    """For ``LightningCLI(parser_class=StrictParser)``: a mistake is one or two lines on stderr and exit status 2.

    Also refuses what jsonargparse accepts in silence: abbreviated options, duplicate keys, unknown keys that hold
    nothing, null for any type, one value where keys belong, and a linked value that contradicts the link's source.
    ``default_config_files`` and ``--config`` name files, which must exist: neither patterns nor YAML itself.

    jsonargparse makes another parser of this class, with ``exit_on_error=False``, for each class in a config.
    The message that such a parser raises is one line, ``key: what is wrong``; the outer parser puts its key in front.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.given: list[Given] = []
        self.links: dict[str, str] = {}  # target: source

    def link_arguments(self, source: Any, target: str, compute_fn: Any = None, apply_on: str = "parse") -> None:
        super().link_arguments(source, target, compute_fn, apply_on)
        if compute_fn is None and apply_on == "parse":
            self.links[target] = source

    def parse_args(  # type: ignore[override]  # as in jsonargparse
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None, **kwargs: bool
    ) -> Namespace:
        args = sys.argv[1:] if args is None else list(args)
        subcommands = self._by_subcommand()
        if subcommands and args and args[0] not in subcommands and not args[0].startswith("-"):
            self.error(f"no such subcommand: {args[0]}, {hint(args[0], subcommands)}")
        try:
            self.given = list(self._read(args))
        except Mistake as mistake:
            self.error(mistake.args[0], mistake)
        self._refuse_unknown(given.key for given in self.given)
        known = self._known()
        for key, value, _ in self.given:
            is_branch = key.endswith(".init_args") or any(name.startswith(f"{key}.") for name in known)
            if is_branch and value is not None:
                self.error(f"{key}: expected keys below it, got {value or 'nothing'}")
        config = super().parse_args(args, namespace, **kwargs)
        for target, source in self.links.items():
            values = [given.value for given in self.given if short(given.key) == short(target)]
            if values and target in config and source in config and values[-1] != str(config[source]):
                self.error(f"{target}: is always {source}, here {config[source]}; set that instead")
        return config

    def parse_object(
        self, obj: Namespace | dict[str, Any], namespace: Namespace | None = None, **kwargs: bool
    ) -> Namespace:
        # merging, which comes next, would drop the unknown keys that hold {}
        self._refuse_unknown(obj.keys(branches=True) if isinstance(obj, Namespace) else obj)
        return super().parse_object(obj, namespace, **kwargs)

    def validate(self, namespace: Namespace, *, skip_unset: bool = True, **kwargs: Any) -> None:
        # jsonargparse lets null stand for any type; in a class it is right only where the type says so
        super().validate(namespace, skip_unset=skip_unset and self.exit_on_error, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = in_one_line(message)
        if not self.exit_on_error or os.environ.get("JSONARGPARSE_DEBUG") == "true":
            super().error(message, ex)
        where = ex.args[1] if isinstance(ex, Mistake) else self._where(message)
        sys.stderr.write(f"error: {message}\n" + (f"  {where}\n" if where else ""))
        self.exit(2)

    def _by_subcommand(self) -> dict[str, "StrictParser"]:
        return self._subcommands_action.choices if self._subcommands_action else {}

    def _known(self) -> set[str]:
        """Every key and option, those of subcommands included, but neither branches nor ``.help``."""
        names = {action.dest for action in self._actions} - {SUPPRESS}
        options = [option for action in self._actions for option in action.option_strings]
        names |= {option[2:].rstrip("+") for option in options if option.startswith("--")}
        names |= {f"{name}.{key}" for name, parser in self._by_subcommand().items() for key in parser._known()}
        names = {name for name in names if not name.endswith(".help")}
        return names - {name.rpartition(".")[0] for name in names}

    def _refuse_unknown(self, keys: Iterable[str]) -> None:
        known, subparsers = self._known(), self._by_subcommand()
        for key in (key.rstrip("+") for key in keys):  # callbacks+ appends to callbacks
            if stands_in(known, key) or key == "dict_kwargs" or key.startswith("__"):  # jsonargparse's own: __path__
                continue
            if any(stands_in(parser._known(), key) for parser in subparsers.values()):
                self.error(f"{key}: belongs after the subcommand ({', '.join(subparsers)})")
            self.error(f"{key}: no such key, {hint(key, known)}")

    def _read(self, args: Sequence[str]) -> Iterator[Given]:
        """All that is given to this parser, in the order in which the later beats the earlier."""
        for path in self.default_config_files:
            yield from read_config(path)
        config_options = [o for a in self._actions if isinstance(a, ActionConfigFile) for o in a.option_strings]
        for word, following in zip(args, [*args[1:], ""], strict=False):
            if word in self._by_subcommand():
                return  # what follows is given to the subcommand's own parser
            option, equals, value = word.partition("=")
            value, key = value if equals else following, option[2:].rstrip("+")
            if option in config_options and value:
                yield from read_config(value)
            elif option.startswith("--"):
                holds_keys = value.startswith("{")
                yield Given(key, None if holds_keys else value, COMMAND_LINE)
                with contextlib.suppress(yaml.YAMLError):  # "{epoch}-{step}" is a plain string
                    yield from flatten(yaml.compose(value, yaml.SafeLoader) if holds_keys else None, key, COMMAND_LINE)

    def _where(self, message: str) -> str | None:
        given = [*self.given, *(given for parser in self._by_subcommand().values() for given in parser.given)]
        key = message.partition(": ")[0].partition(" is ")[0]
        while key:
            found = [there for there in reversed(given) if short(there.key) == short(key)]
            if found:  # of several, the one whose value the message names, or else the last, which counts
                return max(found, key=lambda there: f" {there.value}:" in message + ":").where
            key = key.rpartition(".")[0]
        return None


def short(key: str) -> str:
    """``--model`` and ``--model.lr`` are other ways to write ``model.class_path`` and ``model.init_args.lr``."""
    return key.replace(".init_args", "").removesuffix(".class_path")


def stands_in(known: Collection[str], key: str) -> bool:
    """Whether a key is known, leads to one that is, or lies within one, where jsonargparse checks it."""
    return any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in known)


def read_config(path: str) -> Iterator[Given]:
    if not Path(path).is_file():
        beside = [str(file) for file in Path(path).parent.glob("*.yaml")]
        raise Mistake(f"no such file: {path}" + did_you_mean(path, beside), COMMAND_LINE)
    try:
        root = yaml.compose(Path(path).read_text(), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise Mistake(f"not valid YAML: {getattr(error, 'problem', error)}", f"in {path}{line}") from error
    if not isinstance(root, yaml.MappingNode):
        raise Mistake(f"expected lines of 'key: value', got {'something else' if root else 'nothing'}", f"in {path}")
    yield from flatten(root, "", f"in {path}, line ")


def flatten(node: yaml.Node | None, key: str, where: str) -> Iterator[Given]:
    """Every key below a node; the items of a list share the key of the list."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from flatten(item, key, where)
    elif isinstance(node, yaml.MappingNode):
        names = [name.value for name, _ in node.value]
        for number, (name, value) in enumerate(node.value):
            below = f"{key}.{name.value}".strip(".+")
            here = where if where == COMMAND_LINE else f"{where}{name.start_mark.line + 1}"
            if name.value in names[:number]:
                raise Mistake(f"{below}: given twice", here)
            if "class_path" in names and name.value not in ("class_path", "init_args", "dict_kwargs"):
                raise Mistake(f"{below}: belongs under {key}.init_args", here)
            yield Given(below, value.value if isinstance(value, yaml.ScalarNode) else None, here)
            yield from flatten(value, below, where)


def in_one_line(message: str) -> str:
    """``key: what is wrong``, out of jsonargparse's many lines; where its wording is new, the first of them."""
    parser_key = re.search(r'Parser key "(.+?)".*?:[\s-]*(.*)', message)
    class_problem = re.search(r"Problem with given class_path '(.+?)':\n\s*(.+)", message)
    base_class = re.search(r"Import path .*?does not correspond to a subclass of (\w+)", message)
    expected = re.search(r"(?m)Subtypes: \[(.+)\]|Expected an? (?!path but)(.+?)(?:\. Got value: .*)?$", message)
    got = re.search(r"(?:Got|Given) value: (.*)", message)
    choice = re.search(r"argument (\w+): invalid choice: '(.+)' \(choose from (.+)\)", message)
    if choice:
        return f"no such {choice[1]}: {choice[2]}, {hint(choice[2], re.findall('[a-z_]+', choice[3]))}"
    if "arguments are required" in message:
        return f"{message}; is --config missing?"
    if not parser_key:
        return message.strip().partition("\n")[0]
    key, first_line = parser_key.groups()
    if class_problem:
        class_path, what = class_problem.groups()
        if inner := re.fullmatch(r"([\w.]+): (.+)", what):
            return f"{key}.init_args.{inner[1]}: {inner[2]}"
        return f"{key}.class_path: {class_path}: {what}{nearest_class(class_path)}"
    if base_class and got:
        return f"{key}.class_path: expected a {base_class[1]}, got {got[1]}"
    if expected and got:
        types = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*?)\]", r"\1\2", expected[1] or expected[2])
        types = " or ".join(types.replace("NoneType", "null").rsplit(", ", 1))
        return f"{key}: expected {types}, got {'nothing' if got[1] == 'None' else got[1]}"
    return f"{key}: {first_line}"


def hint(key: str, known: Collection[str]) -> str:
    """The nearest known key, sought from dot to dot; else one that ends like it; else all that could stand there."""
    elsewhere = [name for name in known if name.endswith(f".{key}")]
    path = ""
    for part in key.split("."):
        level = {name.removeprefix(path).partition(".")[0] for name in known if name.startswith(path)}
        close = difflib.get_close_matches(part, level, n=1)
        if level and not close:
            choices = textwrap.shorten(", ".join(sorted(level - HELPERS)), 100, placeholder=" ...")
            return f"did you mean {min(elsewhere, key=len)}?" if elsewhere else f"known are {choices}"
        path += f"{close[0] if level else part}."
    return f"did you mean {path[:-1]}?"


def did_you_mean(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]}?" if close and close[0] != name else ""


def nearest_class(class_path: str) -> str:
    """Sought in the module, if it could be imported, else among the names of modules: a hint imports nothing."""
    module, rest = class_path.rpartition(".")[0], class_path.partition(".")[2]
    if module in sys.modules:
        classes = [name for name, value in vars(sys.modules[module]).items() if isinstance(value, type)]
        return did_you_mean(class_path, [f"{module}.{name}" for name in classes])
    return did_you_mean(class_path, [f"{found.name}.{rest}" for found in pkgutil.iter_modules()])
