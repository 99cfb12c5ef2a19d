"""Render templates, quote values, write YAML, for all engines. Pure; imports jinja2 and pyyaml.

Values reach a script only through the filters `quote` (shlex) and `comment` (one line, no control
characters).
"""

from __future__ import annotations

import shlex

import jinja2
import yaml

from runner.common.launchers import script_words
from runner.common.packaged import templates_folder
from runner.common.units import format_bytes
from runner.common.yaml_text import represent_text
from runner.plans.base import Plan


def templates() -> jinja2.Environment:
    """The launch scripts' templates; an undefined value in one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_folder()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - shell, not HTML; every value goes through quote or comment
    )
    environment.filters["quote"] = shlex.quote
    environment.filters["comment"] = comment
    environment.globals["launcher_words"] = script_words
    return environment


def comment(text: str) -> str:
    """Text for a comment line: no line break or other control character can end the comment."""
    return "".join(character if character.isprintable() else " " for character in str(text)).strip()


def title(plan: Plan) -> str:
    """The first line of a launch script's head."""
    about = f": {plan.description}" if plan.description else ""
    return f"{plan.job} ({plan.variant}){about}"


def budget_line(plan: Plan) -> str:
    """The memory budget in words."""
    if plan.budget.limit_bytes is None:
        return "no budget"
    place = "on each GPU" if plan.budget.kind == "gpu" else "of the host, all processes"
    return f"budget {format_bytes(plan.budget.limit_bytes)} {place}"


class BlockDumper(yaml.SafeDumper):
    """Block style, no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


BlockDumper.add_representer(str, represent_text)
