"""What the user gave, in config files and on the command line: every key, its value, and where it was given."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from cli.hints import did_you_mean

COMMAND_LINE = "on the command line"


class Given(NamedTuple):
    """A key, its value as written, or None if that is further keys, and its place."""

    key: str
    value: str | None
    where: str


class Mistake(Exception):
    """What is wrong, and where."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)
        self.where = where


def read_config(path: str) -> list[Given]:
    path = os.path.expanduser(path)
    if not Path(path).is_file():
        beside = [str(file) for file in Path(path).parent.glob("*.yaml")]
        raise Mistake(f"no such file: {path}{did_you_mean(path, beside)}", COMMAND_LINE)
    try:
        root = yaml.compose(Path(path).read_text(), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise Mistake(f"not valid YAML: {getattr(error, 'problem', error)}", f"in {path}{line}") from error
    if not isinstance(root, yaml.MappingNode):
        raise Mistake(f"expected lines of 'key: value', got {'something else' if root else 'nothing'}", f"in {path}")
    return list(walk(root, "", lambda node: f"in {path}, line {node.start_mark.line + 1}"))[1:]  # the root has no key


def read_option(key: str, value: str) -> list[Given]:
    node = None
    with contextlib.suppress(yaml.YAMLError):  # "{epoch}-{step}" is a plain string
        node = yaml.compose(value, yaml.SafeLoader) if value.startswith("{") else None
    return list(walk(node or yaml.ScalarNode("", value), key, lambda _: COMMAND_LINE))


def walk(node: yaml.Node, key: str, place: Callable[[yaml.Node], str], where: str | None = None) -> Iterator[Given]:
    """Yield a key and all keys below it; the items of a list share the key of the list."""
    where = where or place(node)
    if isinstance(node, yaml.ScalarNode):
        yield Given(key, node.value, where)
    elif isinstance(node, yaml.SequenceNode):
        yield Given(key, "a list", where)
        for item in node.value:
            yield from walk(item, key, place)
    else:
        yield Given(key, None, where)
        names = [name.value for name, _ in node.value]
        for number, (name, value) in enumerate(node.value):
            below = f"{key}.{name.value}".strip(".+")  # callbacks+ appends to callbacks
            if name.value in names[:number]:
                raise Mistake(f"{below}: given twice", place(name))
            if "class_path" in names and name.value not in ("class_path", "init_args", "dict_kwargs"):
                raise Mistake(f"{below}: belongs under {key}.init_args", place(name))
            yield from walk(value, below, place, place(name))
