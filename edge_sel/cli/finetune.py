"""``edge-sel finetune``."""

from __future__ import annotations

import json
import os
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from edge_sel.cli.options import settings_options
from edge_sel.errors import EXIT_STOPPED_RESUMABLE, SetupError, UsageError


@click.command()
@click.argument("pack", required=False, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="This device's labelled images: DIR/<class>/*.jpg.")
@click.option("--test", type=click.Path(path_type=Path), help="Images that only the before/after figures look at.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of this run. [default: runs/DATE-TIME]")
@click.option("--resume", is_flag=True, help="Continue the run in --out if there is one; start it otherwise.")
@click.option("--profile", help="Device profile: one of `edge-sel profiles`, or a .toml file. [default: detected]")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of the settings below.")
@click.option(
    "--metrics-file",
    "metrics",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the live run's figures in this OpenMetrics text file.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@settings_options
def command(
    pack: Path | None, data: Path | None, test: Path | None, out: Path | None, resume: bool, profile: str | None,
    config: Path | None, metrics: Path | None, as_json: bool, **flags: Any,
) -> int:  # fmt: skip
    """Fine-tune PACK on this device's own labelled images.

    With no argument: a small built-in pack on handwritten digits, re-lit as a field camera would see them.
    """
    from edge_sel.cli.show import Console, print_result
    from edge_sel.cli.signals import StopSignal
    from edge_sel.config.profiles import detect_profile, load_profile
    from edge_sel.config.settings import resolve

    if pack is not None and data is None:
        raise UsageError("--data is missing", fix="name the folder with this device's images, DIR/<class>/*.jpg")
    if resume and out is None:
        raise UsageError("--resume needs --out", fix="name the folder of the run to continue")
    device = load_profile(profile or detect_profile())
    layers = partial(resolve, profile=device, toml_file=config, environ=os.environ, flags=flags)
    layers()  # mistakes are told before anything is opened
    folder = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    stop = StopSignal()
    with Console(quiet=as_json) as console:
        result = _run(pack, data, test, folder, resume, device, layers, stop, console, metrics)
    if as_json:
        click.echo(json.dumps(result))
    else:
        print_result(result)
    return EXIT_STOPPED_RESUMABLE if result["stopped"] != "done" else 0


def _run(
    pack: Path | None, data: Path | None, test: Path | None, out: Path, resume: bool, device: Any, layers: Any,
    stop: Any, console: Any, metrics: Path | None,
) -> dict[str, Any]:  # fmt: skip
    from edge_sel.edge.governor.from_settings import limits_of, local_minute, require_sensors
    from edge_sel.edge.outputs.openmetrics import MetricsFile
    from edge_sel.edge.session import Session
    from edge_sel.edge.train.ladder import auto_ladder
    from edge_sel.edge.train.rungs import fixed_ladder
    from edge_sel.engines.choose import choose_engine
    from edge_sel.pack.builtin import builtin_pack
    from edge_sel.pack.reader import open_pack
    from edge_sel.power.battery import read_supply
    from edge_sel.power.find import find_meter, find_thermometer, sysfs_root
    from edge_sel.power.recorder import EnergyRecorder, clock_through_sleep
    from edge_sel.power.throttle import ThrottleReader

    opened = open_pack(pack) if pack is not None else builtin_pack()
    resolved = with_tuning(layers, opened.digest, device.name, out if resume else None, console)
    settings = resolved.settings
    fixed = None if settings.plan == "auto" else fixed_ladder(opened, settings.plan, settings.epochs)
    # The default engine works on the processor: a graphics card's watts would be somebody else's, or idle ones.
    meter, probes = find_meter(device, settings.meter, skip=() if settings.engine == "torch" else ("nvml",))
    if settings.require_measured and (meter is None or meter.source != "measured"):
        reasons = "; ".join(f"{p.name}: {p.why}" for p in probes if p.name != "psutil")
        raise SetupError("no meter measures energy here", where=reasons or None, fix="leave out --require-measured")
    supply = partial(read_supply, sysfs_root())
    limits = limits_of(resolved, clock_through_sleep())
    with EnergyRecorder(meter, profile=device, on_event=console, temperature=find_thermometer()) as recorder:
        recorder.measure_idle(2.0)
        require_sensors(resolved, recorder, supply())
        listeners = [console]
        if metrics is not None:
            listeners.append(MetricsFile(metrics, recorder, str(out), on_error=lambda line: click.echo(line, err=True)))
        prepare_out(out)
        images, tested, source = load_images(opened, data, test, settings.new_classes)

        def tell(event: dict[str, Any]) -> None:
            for listen in listeners:
                listen(event)

        session = Session(
            pack=opened,
            images=images,
            test=tested,
            engine=choose_engine(settings.engine, settings.threads, spinning=settings.spinning),
            ladder=fixed or auto_ladder(opened, len(images.classes)),
            resolved=resolved,
            recorder=recorder,
            out=out,
            should_stop=stop,
            listener=tell,
            clock=clock_through_sleep,
            source=source,
            limits=limits,
            supply=supply,
            minute=local_minute,
            throttling=ThrottleReader(sysfs_root()).read,
        )
        return session.run(resume=resume)


def with_tuning(layers: Any, pack: str, profile: str, resumed: Path | None, tell: Any) -> Any:
    """The settings, and below what the user gave what `edge-sel tune` found to take the fewest joules.

    A run that is resumed keeps what it began with.
    """
    from edge_sel.edge.outputs.identity import tuned_at_start
    from edge_sel.power.processors import usable_cores
    from edge_sel.tuning.choose import machine, read_tuning, tuned_settings, tuning_file

    plain = layers()
    tuned = None if resumed is None else tuned_at_start(resumed)
    path = tuning_file(pack, "ort", os.environ)
    if tuned is None and plain.settings.engine != "torch" and path is not None:
        costs, why = read_tuning(path, machine(profile, usable_cores()))
        tuned = {} if costs is None else tuned_settings(plain, costs, plain.settings.plan)
        if why:
            tell({"event": "tuning_ignored", "why": why})
    if not tuned:
        return plain
    tell({"event": "tuned", "settings": tuned})
    return layers(tuned=tuned)


def load_images(pack: Any, data: Path | None, test: Path | None, new_classes: str) -> tuple[Any, Any, str]:
    """The device's images, the test images or None, and a word for where they are from."""
    from edge_sel.data.folder import load_folder

    model = pack.manifest.model
    if data is None:
        from edge_sel.data.builtin import load_digits
        from edge_sel.data.shifts import apply_shift

        images = apply_shift("field_camera", load_digits("field"), seed=0)
        tested = apply_shift("field_camera", load_digits("test"), seed=0) if test is None else None
        source = "built-in handwritten digits, re-lit as by a field camera"
    else:
        images = load_folder(data, model.image_size, classes=model.classes, new_classes=new_classes)  # type: ignore[arg-type]
        tested, source = None, str(data)
    if test is not None:
        tested = load_folder(test, model.image_size, classes=images.classes)
    return images, tested, source


def prepare_out(out: Path) -> None:
    """Make the run's folder, or say at once why that will not work.

    Raises:
        UsageError: it is a file.
        SetupError: it cannot be made or written to.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError("--out is a file", where=out, fix="name a folder")
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".edge-sel-write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f"cannot write to --out ({error.strerror})", where=out, fix="choose a folder you may write to"
        ) from error
