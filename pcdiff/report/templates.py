"""HTML from templates that escape every value; only what another template made is HTML already.

A unit stays on the line of its number: the space between them does not break. A name is shown as it is by `| e`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pcdiff.report.words import value_text

BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:mm|ml|cm2|cm\u00b2|HU|MB|g|s|degrees)\b|%)")


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
        finalize=_with_units,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["value_text"] = value_text
    return environment


def _with_units(value: Any) -> Any:
    """A text whose units do not leave their numbers; anything else unchanged."""
    return BEFORE_UNIT.sub("\u00a0", value) if type(value) is str else value
