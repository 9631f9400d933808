"""The web pages of runs: `render` fills the templates of this folder.

Everything that is put into a template is escaped, and a name that a template
does not know is an error.
"""

from __future__ import annotations

__all__ = ["render"]

from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..status.records import render_count


def render(template: str, **values: Any) -> Markup:
    """Fill a template; the result can be put into another one as it is."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__name__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(render_count=render_count, utc=_format_utc)
    environment.globals["static"] = _read_static
    environment.tests["web_address"] = _is_web_address
    return environment


def _read_static(name: str) -> Markup:
    """Return a file of ours, to be put into a page as it is."""
    return Markup((files(__name__) / "static" / name).read_text(encoding="utf-8"))


def _format_utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _is_web_address(address: str) -> bool:
    """Tell whether an address may become a link: not if it runs a script."""
    return urlsplit(address).scheme in ("http", "https")
