"""``edge-sel reference``."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from edge_sel.cli.common import require_server_extra
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, UsageError


@click.command()
@click.argument("systems", nargs=-1)
@click.option("--data", metavar="NAME|DIR", help="digits, cifar10 and other sets by torchvision name, or folders.")
@click.option("--scale", default="full", show_default=True, metavar="smoke|small|full", help="How much of it to run.")
@click.option("--smoke", is_flag=True, help="The same as --scale smoke: seconds, offline, on built-in digits.")
@click.option("--out", default=Path("runs/reference"), type=click.Path(path_type=Path), show_default=True,
              help="Folder of results; what is finished there is not run again, what is not goes on.")  # fmt: skip
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Repeat with this many seeds.")
@click.option("--model", help="Instead of the systems' own, such as wrn-28-10; torchvision:NAME, timm:NAME.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the systems' own.")
@click.option("--image-size", type=click.IntRange(8), metavar="PIXELS", help="Instead of the systems' own: mostly 32.")
@click.option("--weights", default="auto", show_default=True, type=click.Choice(["auto", "imagenet", "random"]),
              help="What ResNets begin with; auto: ImageNet where the source does and it can be had.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1; or start with torchrun.")
@click.option("--meter", default="auto", show_default=True, help="What measures energy.")
@click.option("--profile", help="Device profile. [default: detected]")
@click.option("--dry-run", is_flag=True, help="Only say what would run.")
@click.option("--compare", "comparing", is_flag=True, help="Run nothing: published figures beside those in --out.")
@click.option("--edge", type=click.Path(path_type=Path), help="With --compare: a fine-tune run, joule beside joule.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    systems: tuple[str, ...], data: str | None, scale: str, smoke: bool, out: Path, seeds: int, model: str | None,
    epochs: int | None, image_size: int | None, weights: str, device: str, meter: str, profile: str | None,
    dry_run: bool, comparing: bool, edge: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Run the systems of the source documents and set measured energy beside their claims.

    SYSTEMS are names as --dry-run lists them; without any, the suite of ten (full), six (small) or all (smoke).
    """
    if not comparing:  # results are read without torch: on the device they stand beside its own run
        require_server_extra("reference", "torch")
    from edge_sel.reference.setup import find_scale
    from edge_sel.reference.systems import find_systems

    chosen = find_scale("smoke" if smoke else scale)
    wanted = find_systems(list(systems), chosen)
    if edge is not None and not comparing:
        raise UsageError("--edge needs --compare")
    if comparing:
        return _compare(wanted if systems else None, out, data, edge, as_json)
    from edge_sel.reference.suite import Options, plan

    if image_size is not None and (data or chosen.data) == "digits":
        raise UsageError("the built-in digits have 16 pixels each way", where="--image-size", fix="name other --data")
    options = Options(chosen, data or chosen.data, out, tuple(range(seeds)), device, weights, model, epochs, image_size)  # type: ignore[arg-type]
    if dry_run:
        from edge_sel.cli.show_reference import print_plan

        planned = plan(wanted, options)
        if as_json:
            click.echo(json.dumps({"schema": 1, "scale": chosen.name, "data": options.data, "systems": planned}))
        else:
            print_plan(planned, chosen.label)
        return 0
    return _run(wanted, options, meter, profile, as_json)


def _run(wanted: list[Any], options: Any, meter_name: str, profile_name: str | None, as_json: bool) -> int:
    from edge_sel.cli.common import prepare_out
    from edge_sel.cli.show_reference import Console, print_overview
    from edge_sel.cli.signals import StopSignal
    from edge_sel.config.profiles import detect_profile, load_profile
    from edge_sel.power.find import find_meter, find_thermometer
    from edge_sel.power.recorder import EnergyRecorder
    from edge_sel.reference import parallel
    from edge_sel.reference.compare import overview
    from edge_sel.reference.data import load_sets
    from edge_sel.reference.suite import Stopped, run_suite

    prepare_out(options.out)
    profile = load_profile(profile_name or detect_profile())
    device = parallel.start(options.device)
    stop, first = StopSignal(), parallel.rank() == 0
    console = Console(quiet=as_json or not first)
    meter = None
    if device.type == "cuda" and meter_name == "auto":
        # Before all others: those of a desktop know the processor only.
        meter, tried = find_meter(profile, "nvml")
        if meter is None:
            console.note(f"joules are not the GPU's, as NVML does not work: {tried[0].why}")
    if meter is None:
        # And while the work is on the processor, a graphics card's watts are idle ones or somebody else's.
        meter, _ = find_meter(profile, meter_name, skip=("nvml",) if meter_name == "auto" else ())
    if options.scale.label:
        console.note(options.scale.label)
    try:
        with EnergyRecorder(meter, profile=profile, temperature=find_thermometer()) as recorder:
            recorder.measure_idle(2.0)
            sets_of = partial(load_sets, options.data, options.scale)
            results = run_suite(wanted, sets_of, options, recorder, should_stop=stop, listen=console)
    except Stopped:
        console.note("stopped; the same command goes on from the last finished epoch")
        return EXIT_STOPPED_RESUMABLE
    finally:
        parallel.finish()
    if not first:
        return 0
    if as_json:
        kept = [{key: value for key, value in result.items() if key != "rows"} for result in results]
        click.echo(json.dumps({"schema": 1, "out": os.fspath(options.out), "systems": overview(results), "runs": kept}))
    else:
        print_overview(overview(results), _labels(results))
    return 0


def _compare(wanted: list[Any] | None, out: Path, data: str | None, edge: Path | None, as_json: bool) -> int:
    from edge_sel.cli.show_reference import print_comparison, print_edge, print_overview
    from edge_sel.reference.compare import compare, edge_epochs, overview, reference_epochs
    from edge_sel.reference.results import list_results

    results = list_results(out)
    if wanted is not None:
        names = {system.name for system in wanted}
        results = [result for result in results if result["system"] in names]
    if not results:
        raise UsageError("no finished results", where=out, fix="run `edge-sel reference` first, or name its --out")
    claims = compare(results, data)
    epochs = None if edge is None else edge_epochs(edge)
    if as_json:
        answer = {"schema": 1, "systems": overview(results), "claims": claims}
        if epochs is not None:
            answer |= {"edge": {"run": os.fspath(edge or ""), "epochs": epochs}}
            answer |= {"reference_epochs": reference_epochs(results)}
        click.echo(json.dumps(answer))
        return 0
    label = _labels(results)
    print_comparison([claim for claim in claims if claim["epoch"] is None], label)
    print_overview(overview(results), label)
    if epochs is not None:
        print_edge(epochs, reference_epochs(results))
    return 0


def _labels(results: list[dict[str, Any]]) -> str:
    """What must stand above their figures, a line each."""
    return "\n".join(dict.fromkeys(result["label"] for result in results if result["label"]))
