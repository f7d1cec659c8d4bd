"""Strict configurations: typed, frozen, read from YAML; an unknown key is an error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pcdiff.errors import InputError
from pcdiff.files import shipped_file
from pcdiff.foreign import cause_of, parsing, read_bytes

Config = TypeVar("Config", bound=BaseModel)

MAX_YAML_BYTES = 2**20
MAX_INTEGER = 2**63


class StrictConfig(BaseModel):
    """Base of every configuration: frozen; an unknown key and a number that is not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def validate_config(kind: type[Config], values: dict[str, Any], source: str, remedy: str = "") -> Config:
    """The values as a configuration of this kind.

    Args:
        kind: the class of the configuration.
        values: names and values; those left out keep their defaults.
        source: where the values come from, such as a file's path; starts the error message.
        remedy: what the user can do about an error; ends the message.

    Raises:
        InputError: one line that names every unknown key and every wrong value.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {cause_of(error)}{remedy and f'; {remedy}'}") from error


def read_yaml(path: Path, expected: str) -> dict[str, Any]:
    """The names and values of a YAML file; an empty file has none.

    Args:
        path: the file.
        expected: what the file should hold, for the error message, such as "a YAML recipe with sections".

    Raises:
        InputError: the file cannot be read, is not YAML, or is not a list of names and values.
    """
    remedy = "correct the file"
    values = _parse_yaml(read_bytes(path, expected, "check the path", MAX_YAML_BYTES), path, expected, remedy) or {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected {expected}, got a {type(values).__name__}; {remedy}")
    return values


class YamlLoader(yaml.SafeLoader):
    """Safe YAML in which 052 is a text (the name of a case) and not an octal number.

    Aliases are refused, because a few of them can stand for any number of values; so are a key that stands twice in one
    section, and integers beyond 64 bits.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """See yaml.composer."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*), which is not read: write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """See yaml.constructor."""
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            raise yaml.YAMLError(f"a key that stands twice in one section, line {node.start_mark.line + 1}")
        return values

    def construct_integer(self, node: Any) -> int:
        """An integer of 64 bits."""
        value = self.construct_yaml_int(node)
        if abs(value) >= MAX_INTEGER:
            raise yaml.YAMLError("an integer beyond 64 bits")
        return int(value)


YamlLoader.add_constructor("tag:yaml.org,2002:int", YamlLoader.construct_integer)
YamlLoader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(r"^[-+]?(0|[1-9][0-9]*)$") if tag == "tag:yaml.org,2002:int" else pattern)
        for tag, pattern in resolvers
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def override(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets the key "section.key" in `values`; a string is read as YAML.

    Raises:
        InputError: the name leads through a key that is not a section, or the string is not YAML.
    """
    *parents, last = name.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise InputError(
                f"{name}: expected section.key, got {parent!r}, which is no section; see "
                f"{shipped_file('configs/diffusion.yaml')}"
            )
    if isinstance(value, str):
        value = _parse_yaml(value, name, "a YAML value", f"close the brackets and quotes of {value[:80]!r}")
    section[last] = value


def _parse_yaml(text: str | bytes, source: object, expected: str, remedy: str) -> Any:
    """The values of a YAML text; bytes are UTF-8 or UTF-16."""
    with parsing(source, expected, remedy):
        return yaml.load(text, YamlLoader)
