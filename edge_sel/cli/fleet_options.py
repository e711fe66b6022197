"""Options that commands of `edge-sel fleet` share, of files and over a network."""

from __future__ import annotations

import click

from edge_sel.cli.common import FiniteRange, GivenPath

DELTA = 1e-5

data_option = click.option("--data", required=True, type=GivenPath(), help="This device's images: DIR/<class>/*.jpg.")
kind_option = click.option(
    "--kind",
    type=click.Choice(["statistics", "delta"]),
    default="statistics",
    show_default=True,
    help="Sums of features, for a head; or what training changed, for more than the head.",
)
plan_option = click.option("--plan", default="last", show_default=True, help="What a delta trains.")
rule_option = click.option(
    "--rule",
    type=click.Choice(["mean", "momentum", "trimmed", "median", "krum"]),
    default="mean",
    show_default=True,
    help="How deltas are combined.",
)
forget_option = click.option(
    "--forget",
    default=0.33,
    show_default=True,
    type=FiniteRange(0, 1),
    help="Share of what the server's model knew that may be lost.",
)
epsilon_option = click.option(
    "--epsilon", type=FiniteRange(1e-3, 100), help="Add noise for this ε of differential privacy, in each round anew."
)
privacy_delta_option = click.option(
    "--privacy-delta", default=DELTA, show_default=True, type=FiniteRange(1e-12, 0.5), help="δ of the same."
)
config_option = click.option("--config", type=GivenPath(dir_okay=False), help="TOML file with settings and limits.")
pack_key_option = click.option("--key", type=GivenPath(dir_okay=False), help="Private key to sign the new pack with.")
threads_option = click.option(
    "--threads", default=0, show_default=True, type=click.IntRange(0, 1024), help="0 for all."
)
