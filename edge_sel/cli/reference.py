"""``edge-sel reference``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from edge_sel.cli.common import GivenPath, echo_json, json_option, profile_option, require_server_extra, say
from edge_sel.cli.show import format_percent, format_teraflops, plain_console, plain_table
from edge_sel.config.profiles import Profile
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, UsageError
from edge_sel.power.meter import Meter
from edge_sel.reference.systems import SuiteOptions, System, find_scale, find_systems
from edge_sel.units import format_duration, format_energy

PAGE = "report.html"


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
    given = SimpleNamespace(**values)
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
    if not given.dry_run:
        return _run(wanted, options, given)
    from edge_sel.reference.suite import plan

    planned = plan(wanted, options)
    if given.as_json:
        echo_json({"schema": 1, "scale": scale.name, "data": data, "systems": planned})
    else:
        print_plan(planned, scale.label)
    return 0


def _run(wanted: list[System], options: SuiteOptions, given: SimpleNamespace) -> int:
    from edge_sel.api.inputs import open_profile
    from edge_sel.edge.open import prepare_folder
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
        other = f"a page: edge-sel report --reference {shlex.quote(str(given.out))}"
        say(f"report: {given.out / PAGE}" if given.report else other)
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


def _compare(given: SimpleNamespace) -> int:
    from edge_sel.reference.results import compare_claims, edge_epochs, list_results, overview, reference_epochs

    results = [r for r in list_results(given.out) if not given.systems or r["system"] in given.systems]
    if not results:
        raise UsageError(
            "no finished results", where=given.out, fix="run `edge-sel reference` first, or name its --out"
        )
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


# --- what a person sees: progress on stderr, tables on stdout


class ReferenceConsole:
    """One line per epoch and per finished run; quiet shows nothing."""

    def __init__(self, quiet: bool) -> None:
        self._console = plain_console(stderr=True, quiet=quiet, soft_wrap=True)

    def note(self, text: str) -> None:
        """One line of text."""
        self._console.print(text)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event of the suite."""
        name = f"{event['system']} seed {event['seed']}"
        if event["event"] == "epoch":
            self.note(
                f"{name}  {event['epoch']}/{event['epochs']} {event['phase']:<10} loss {_number(event['train_loss'])}  "
                f"test {format_percent(event['test_full'])}  active {format_percent(event['active_rate'])}  "
                f"{format_energy(event['energy_j'])} {event['energy_source']}"
            )
        elif event["event"] == "resumed":
            self.note(f"{name}  goes on after epoch {event['epoch']}")
        elif event["event"] == "uncompiled":
            self.note(f"{name}  steps are not compiled, which is slower: {event['why']}")
        elif event["event"] == "compiled":
            self.note(f"{name}  steps compiled in {format_duration(event['seconds'])}")
        elif event["event"] == "kept":
            self.note(f"{name}  is finished already")


def print_plan(systems: Sequence[Mapping[str, Any]], label: str) -> None:
    """The systems, before anything runs."""
    rows = []
    for row in systems:
        nominal = "depends" if row["nominal_flops_t"] is None else format_teraflops(row["nominal_flops_t"])
        rows.append([row["name"], str(row["epochs"]), row["model"], nominal, f"{row['text']} ({row['source']})"])
    _print(label, ["system", "epochs", "model", "nominal", "what"], rows)


def print_overview(systems: Sequence[Mapping[str, Any]], label: str) -> None:
    """One line per system."""
    columns = ["system", "seeds", "test", "100/class", "nominal", "executed", "joules", "net", "time", "J per point"]
    rows = [
        [
            row["system"],
            str(row["seeds"]),
            *(_spread(row, key) for key in ("test_full", "test_100")),
            *(format_teraflops(row[key]) for key in ("nominal_flops_t", "executed_flops_t")),
            f"{format_energy(row['energy_j'])} ({row['energy_source']})",
            format_energy(row["net_j"]),
            format_duration(row["time_s"]),
            format_energy(row["j_per_point"]),
        ]
        for row in systems
    ]
    _print(label, columns, rows)
    for row in systems:
        for reason in row["throttled"]:
            say(f"slowed down: {row['system']}, {row['meter']}: {reason}")


def print_comparison(claims: Sequence[Mapping[str, Any]], label: str) -> None:
    """Claim, ours, difference."""
    rows = []
    for row in claims:
        ours = _number(row["ours"])
        if row["seeds"] > 1 and row["std"] is not None:
            ours += f" ± {_number(row['std'])}"
        difference = "" if row["difference"] is None else f"{row['difference']:+.4g}"
        rows.append([row["system"], row["metric"], _number(row["claim"]), ours, difference, row["source"]])
    _print(label, ["system", "figure", "claim", "ours", "difference", "source"], rows)


def print_edge(edge: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> None:
    """What each epoch of a fine-tune run took, then a mean epoch of each reference system."""
    rows = [[f"edge, plan {row['plan']}", str(row["epoch"]), *_cost(row)] for row in edge]
    rows += [[f"reference, {row['system']}", "mean", *_cost(row)] for row in reference]
    columns = ["run", "epoch", "images", "joules", "net", "source", "J per 1000", "executed"]
    _print("joules per epoch", columns, rows)


def _cost(row: Mapping[str, Any]) -> list[str]:
    thousand_j = None if row["j_per_image"] is None else 1000 * row["j_per_image"]
    energy, net = (format_energy(row[key]) for key in ("energy_j", "net_j"))
    executed = format_teraflops(row["executed_flops_t"])
    return [f"{row['images']:.0f}", energy, net, row["energy_source"], format_energy(thousand_j), executed]


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console = plain_console()
    if not console.is_terminal:  # a pipe has no width: a table must not be folded into one that a terminal might have
        console.width = 200
    left = {"system", "run", "model", "what", "figure", "source"}
    console.print(plain_table(title, columns, rows, left=left, folded=columns))


def _spread(row: Mapping[str, Any], key: str) -> str:
    text = format_percent(row[key])
    return text if row["seeds"] < 2 or row[f"{key}_std"] is None else f"{text} ± {100 * row[f'{key}_std']:.1f}"


def _number(value: float | None) -> str:
    return "unavailable" if value is None else f"{value:.4g}"
