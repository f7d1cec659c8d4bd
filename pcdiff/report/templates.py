"""HTML from templates that escape every value; only what another template made is HTML already."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pcdiff.report.words import value_text


def fill(template: str, **values: Any) -> Markup:
    """A template of `web/` with values, each escaped unless it is Markup."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pcdiff.report", "web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["value_text"] = value_text
    return environment
