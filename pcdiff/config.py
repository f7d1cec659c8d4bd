"""Recipes: typed, frozen, and strict; an unknown key is an error."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pcdiff.errors import InputError
from pcdiff.files import shipped_file

Config = TypeVar("Config", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _validated(kind: type[Config], values: dict[str, Any], where: str) -> Config:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{where}: {wrong}") from error


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 052 is a head's name, not an octal number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(r"^[-+]?(0|[1-9][0-9]*)$") if tag == "tag:yaml.org,2002:int" else pattern)
        for tag, pattern in resolvers
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _override(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets "section.key" in the recipe, a string as YAML reads it. Raises InputError where there is no such section."""
    *parents, last = name.split(".")
    room = values
    for parent in parents:
        room = room.setdefault(parent, {})
        if not isinstance(room, dict):
            raise InputError(
                f"{name}: expected section.key, got {parent!r}, which is no section; see "
                f"{shipped_file('configs/default.yaml')}"
            )
    try:
        room[last] = yaml.load(value, _Loader) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise InputError(f"{name}: expected a YAML value, got {value!r}; close its brackets and quotes") from error
