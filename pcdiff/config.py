"""Strict configurations: typed, frozen, read from YAML; an unknown key is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pcdiff.errors import InputError
from pcdiff.files import shipped_file

Config = TypeVar("Config", bound=BaseModel)


class StrictConfig(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{source}: {wrong}{remedy and f'; {remedy}'}") from error


def read_yaml(path: Path, expected: str) -> dict[str, Any]:
    """The names and values of a YAML file; an empty file has none.

    Args:
        path: the file.
        expected: what the file should hold, for the error message, such as "a YAML recipe with sections".

    Raises:
        InputError: the file cannot be read, is not YAML, or is not a list of names and values.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), YamlLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected {expected}, got {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected {expected}, got a {type(values).__name__}")
    return values


class YamlLoader(yaml.SafeLoader):
    """Safe YAML in which 052 is a text (the name of a case) and not an octal number."""


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
                f"{shipped_file('configs/default.yaml')}"
            )
    try:
        section[last] = yaml.load(value, YamlLoader) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise InputError(f"{name}: expected a YAML value, got {value!r}; close its brackets and quotes") from error
