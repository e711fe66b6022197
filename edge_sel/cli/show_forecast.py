"""Print what ``edge-sel export --dry-run`` found."""

from __future__ import annotations

import click

from edge_sel.cli.common import echo_json
from edge_sel.config.settings import Settings
from edge_sel.errors import GraphError, escaped
from edge_sel.server.compile_plans import DEFAULT_PLANS, forecast, weight_bytes
from edge_sel.server.source.base import Source


def show_forecast(source: Source, plans: tuple[str, ...], optimizer: str, *, as_json: bool) -> None:
    """Print what each plan needs, or why this model cannot have it.

    Raises:
        GraphError: it can have none.
    """
    info = source.info
    found = forecast(source, plans or DEFAULT_PLANS, optimizer, Settings.batch_size)
    if as_json:
        echo_json({
            "schema": 1, "model": info.model, "classes": len(info.classes), "image_size": info.image_size,
            "weight_bytes": weight_bytes(source), "batch_size": Settings.batch_size,
            "plans": [{**plan._asdict(), "trainable": not plan.reason} for plan in found],
        })  # fmt: skip
        return
    height, width = info.image_size
    megabytes = weight_bytes(source) / 1e6
    click.echo(
        f"{escaped(info.model)}: {len(info.classes)} classes, {height}×{width} pixels, weights {megabytes:.1f} MB"
    )
    for plan in found:
        if plan.reason:
            click.echo(f"{plan.name:10} no: {plan.reason}")
            continue
        click.echo(
            f"{plan.name:10} {plan.parameters:10,} parameters  {plan.flops / 1e6:9.1f} MFLOP an image a step"
            f"{f' behind {plan.prefix_flops / 1e6:.1f} once' if plan.prefix_flops else ''}"
            f"  {plan.activation_bytes / 1e6:7.1f} MB of activations at {Settings.batch_size} images"
            f"  {plan.pack_bytes / 1e6:.1f} MB in the pack"
        )
    if all(plan.reason for plan in found):
        raise GraphError("no plan can train this model", where=info.model)
