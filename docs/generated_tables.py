"""The directive ``{generated-table} NAME``: a table that is made of the code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from edge_sel.cli.main import cli
from edge_sel.config.profiles import Profile, list_profiles, load_profile
from edge_sel.config.schema import schema_of
from edge_sel.config.settings import Settings


def settings_table() -> str:
    """Every setting of ``finetune``, as a table in Markdown."""
    finetune = cli.get_command(click.Context(cli), "finetune")
    assert finetune is not None
    flags = {option.name: option.opts[0] for option in finetune.params}
    rows = (
        (f"`{flags[name]}`", f"`{name}`", _shown(default), f"{_sentence(spec.help)} {_sentence(spec.allowed())}")
        for (name, spec), default in zip(schema_of(Settings).items(), vars(Settings()).values(), strict=True)
    )
    return _table(("flag", "TOML key", "default", "what it is, and what it may be"), rows)


def profile_keys_table() -> str:
    """Every key of a profile."""
    rows = ((f"`{spec.table}`", f"`{key}`", spec.help, spec.allowed()) for key, spec in schema_of(Profile).items())
    return _table(("TOML table", "key", "what it is", "allowed"), rows)


def profiles_table() -> str:
    """Every profile that comes with edge-sel."""
    profiles = [load_profile(name) for name in list_profiles()]
    rows = ((f"`{p.name}`", f"{p.idle_w:g}", f"{p.max_w:g}", ", ".join(p.meters), _shown(p.max_c)) for p in profiles)
    return _table(("profile", "idle, W", "busy, W", "meters, in the order tried", "limit, °C"), rows)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:_g}".replace("_", " ") if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES = {"settings": settings_table, "profiles": profiles_table, "profile-keys": profile_keys_table}


class GeneratedTable(SphinxDirective):
    """The table that the argument names."""

    required_arguments = 1

    def run(self) -> list[Node]:
        """The table, read as Markdown."""
        return self.parse_text_to_nodes(TABLES[self.arguments[0]]())


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("generated-table", GeneratedTable)
    return {"parallel_read_safe": True}
