"""``edge-sel reference``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from edge_sel.cli.common import GivenPath, echo_json, json_option, profile_option, require_server_extra
from edge_sel.config.profiles import Profile
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, UsageError, escaped
from edge_sel.power.meter import Meter
from edge_sel.reference.systems import FirstWeights, SuiteOptions, System, find_scale, find_systems

PAGE = "report.html"


@dataclass(frozen=True)
class _Given:
    """The command line, as click read it."""

    systems: tuple[str, ...]
    data: str | None
    scale: str
    smoke: bool
    out: Path
    seeds: int
    model: str | None
    epochs: int | None
    image_size: int | None
    weights: FirstWeights
    device: str
    meter: str
    profile: str | None
    dry_run: bool
    comparing: bool
    edge: Path | None
    report: bool
    as_json: bool


@click.command()
@click.argument("systems", nargs=-1)
@click.option(
    "--data",
    metavar="NAME|DIR",
    help="digits, cifar10 or another data set of torchvision by its name, or an image folder.",
)
@click.option("--scale", default="full", show_default=True, metavar="smoke|small|full", help="Size of the benchmark.")
@click.option("--smoke", is_flag=True, help="The same as --scale smoke: seconds, offline, on built-in digits.")
@click.option("--out", default=Path("runs/reference"), type=GivenPath(), show_default=True,
              help="Folder of results; finished runs there are not repeated, others are continued.")  # fmt: skip
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Repeat with this many seeds.")
@click.option(
    "--model", help="Model for all systems, such as wrn-28-10, torchvision:NAME or timm:NAME, instead of their own."
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs of all systems, instead of their own.")
@click.option(
    "--image-size",
    type=click.IntRange(8),
    metavar="PIXELS",
    help="Of the images, instead of the systems' own (mostly 32).",
)
@click.option("--weights", default="auto", show_default=True, type=click.Choice(["auto", "imagenet", "random"]),
              help="Initial weights of ResNets; auto: ImageNet if the source uses it and it is available.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1; or start with torchrun.")
@click.option("--meter", default="auto", show_default=True, help="Energy meter.")
@profile_option
@click.option("--dry-run", is_flag=True, help="Only list what would run.")
@click.option("--compare", "comparing", is_flag=True, help="Run nothing; show published figures beside those in --out.")
@click.option(
    "--edge",
    type=GivenPath(),
    help="With --compare: the folder of a fine-tuning run, whose joules are shown beside these.",
)
@click.option("--report", is_flag=True, help="Write report.html into --out (needs edge-sel[report]).")
@json_option
def command(**values: Any) -> int:
    """Run the systems of the source documents and set measured energy beside their claims.

    SYSTEMS are names as --dry-run lists them; without any, the suite of ten (full), six (small) or all (smoke).
    """
    given = _Given(**values)
    if not given.comparing:  # results are read without torch: on the device they stand beside its own run
        require_server_extra("reference", "torch")
    scale = find_scale("smoke" if given.smoke else given.scale)
    wanted = find_systems(list(given.systems), scale)
    if given.edge is not None and not given.comparing:
        raise UsageError("--edge needs --compare")
    if given.comparing:
        return _compare(given)
    if given.data == "":
        raise UsageError("--data is empty", fix="name a set or a folder")
    if given.report:
        from edge_sel.report.charts import require_matplotlib
        from edge_sel.report.page import refuse_other

        require_matplotlib()  # before hours of work
        refuse_other(given.out / PAGE)
    data = given.data or scale.data
    if given.image_size is not None and data == "digits":
        raise UsageError("the built-in digits have 16 pixels each way", where="--image-size", fix="name other --data")
    options = SuiteOptions(
        scale, data, given.out, tuple(range(given.seeds)), device=given.device, weights=given.weights,
        model=given.model, epochs=given.epochs, image_size=given.image_size,
    )  # fmt: skip
    return _plan(wanted, options, given) if given.dry_run else _run(wanted, options, given)


def _plan(wanted: list[System], options: SuiteOptions, given: _Given) -> int:
    from edge_sel.cli.show_reference import print_plan
    from edge_sel.reference.suite import plan

    planned = plan(wanted, options)
    if given.as_json:
        answer = {"schema": 1, "scale": options.scale.name, "data": options.data, "systems": planned}
        echo_json(answer)
    else:
        print_plan(planned, options.scale.label)
    return 0


def _run(wanted: list[System], options: SuiteOptions, given: _Given) -> int:
    from edge_sel.api.inputs import open_profile
    from edge_sel.cli.show_reference import ReferenceConsole, print_overview
    from edge_sel.edge.hold import prepare_folder
    from edge_sel.power.recorder import EnergyRecorder
    from edge_sel.power.temperature import find_thermometer
    from edge_sel.reference import parallel
    from edge_sel.reference.data import load_sets
    from edge_sel.reference.results import overview
    from edge_sel.reference.suite import run_suite
    from edge_sel.reference.trainer import Stopped
    from edge_sel.runs.stop_signal import StopSignal

    prepare_folder(options.out)
    profile = open_profile(given.profile)
    device = parallel.start(options.device)
    stop, first = StopSignal(), parallel.rank() == 0
    console = ReferenceConsole(quiet=given.as_json or not first)
    meter = _find_meter(profile, given.meter, device.type == "cuda", console.note)
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
    if given.report:
        from edge_sel.report.page import write_report

        write_report(given.out / PAGE, [], reference=given.out, now=datetime.now())
    if given.as_json:
        kept = [{key: value for key, value in result.items() if key != "rows"} for result in results]
        echo_json({"schema": 1, "out": os.fspath(options.out), "systems": overview(results), "runs": kept})
    else:
        print_overview(overview(results), _labels(results))
        told = (
            f"report: {given.out / PAGE}"
            if given.report
            else f"a page: edge-sel report --reference {shlex.quote(str(given.out))}"
        )
        click.echo(escaped(told))
    return 0


def _find_meter(profile: Profile, name: str, gpu: bool, note: Callable[[str], None]) -> Meter | None:
    from edge_sel.power.find import METER_KINDS, find_meter, why_none

    if gpu and name == "auto":
        # Before all others: those of a desktop know the processor only.
        of_gpu = tuple(meter for meter, kind in METER_KINDS.items() if kind.of == "gpu")
        meter, tried = find_meter(replace(profile, meters=of_gpu))
        if meter is not None:
            return meter
        note(f"joules are not the GPU's, as no meter of GPUs works: {why_none(tried)}")
    return find_meter(profile, name, on_processor=True)[0]


def _compare(given: _Given) -> int:
    from edge_sel.cli.show_reference import print_comparison, print_edge, print_overview
    from edge_sel.reference.results import compare_claims, edge_epochs, list_results, overview, reference_epochs

    results = [r for r in list_results(given.out) if not given.systems or r["system"] in given.systems]
    if not results:
        fix = "run `edge-sel reference` first, or name its --out"
        raise UsageError("no finished results", where=given.out, fix=fix)
    claims = compare_claims(results, given.data)
    epochs = None if given.edge is None else edge_epochs(given.edge)
    if given.as_json:
        answer = {"schema": 1, "systems": overview(results), "claims": claims}
        if given.edge is not None:
            answer |= {"edge": {"run": os.fspath(given.edge), "epochs": epochs}}
            answer |= {"reference_epochs": reference_epochs(results)}
        echo_json(answer)
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
