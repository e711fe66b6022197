"""What a person sees: progress on stderr, the result on stdout."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.status import Status
from rich.table import Table

from edge_sel.cli.live import LiveLine
from edge_sel.errors import escaped
from edge_sel.units import counted, format_duration, format_energy, format_flops, format_power


class _Stderr(RichConsole):
    def on_broken_pipe(self) -> None:
        """Nobody looks any more, as when the pipe's reader has ended; the run goes on."""
        self.quiet = True


class Console:
    """Shows session events: a live line on a terminal, one line per epoch anywhere else. Quiet shows nothing."""

    def __init__(self, quiet: bool) -> None:
        self._console = _Stderr(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False)
        self._console.soft_wrap = not self._console.is_terminal  # there lines end between words
        self._status: Status | None = None
        self._live = LiveLine(time.monotonic)

    def __enter__(self) -> Console:
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        kind = event["event"]
        if kind == "step":
            if self._status is not None and (line := self._live.line(event)) is not None:
                self._status.update(line)
        elif kind == "rung":
            self._live.begin(event["plan"])
            if event["why"] != "as told":
                self._console.print(f"ladder: {event['plan']} ({event['why']})")
        elif kind == "prefix":
            self._console.print(f"frozen backbone of {event['plan']} in {event['precision']}: {event['why']}")
        elif kind == "climbed":
            if event["why"] != "no more plans":
                self._console.print(f"ladder: ends ({event['why']})")
        elif kind == "reverted":
            self._console.print(f"{event['plan']} did not improve the model on the validation set: undone")
        elif kind == "checkpoints_damaged":
            self._console.print("every checkpoint here is damaged: starting from the beginning")
        elif kind == "outputs_damaged":
            self._console.print(f"missing or damaged, to be written again: {', '.join(event['files'])}")
        elif kind == "restored":
            self._console.print(f"was missing or damaged, now restored: {', '.join(event['files'])}")
        elif kind == "journal_damaged":
            self._console.print("the journal is damaged: some joules of earlier parts may be missing")
        elif kind == "journal_stopped":
            self._console.print(
                f"the journal cannot be written ({event['why']}): an interruption would lose joules from the count"
            )
        elif kind == "lost":
            lost = f"{format_energy(event['energy_j'])} in {format_duration(event['seconds'])}"
            self._console.print(f"lost to interruptions so far: {lost}")
        elif kind == "engine_changed":
            self._console.print(f"continues with the engine {event['now']}; it began with {event['before']}")
        elif kind == "device":
            self._console.print(f"computes on the processor: {event['why']}")
        elif kind == "unlocked":
            self._console.print(f"this folder cannot be locked against another process: {event['why']}")
        elif kind == "tuned":
            told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in event["settings"].items())
            self._console.print(f"tuned by `edge-sel tune`: {told}")
        elif kind == "tuning_ignored":
            self._console.print(f"tuning ignored, {event['why']} (run `edge-sel tune` again)")
        elif kind in ("started", "resumed"):
            self._console.print(
                f"{kind}: {event['images']} images to train on, {event['guard']} held out for validation"
            )
        elif kind == "evaluated":
            accuracy = event["accuracy"]
            self._console.print(f"before: {_percent(accuracy['before'])} on the {_shown(accuracy['on'])} images")
        elif kind == "expert":
            verdict = "begins with it" if event["taken"] else "ignored"
            told = f"{_percent(event['instead_of'])} → {_percent(event['accuracy'])}"
            self._console.print(f"expert: {told} on the validation images, {verdict}")
        elif kind == "epoch":
            self._console.print(epoch_line(event))
        elif kind == "guard":
            self._console.print(verdict_line(event))
        elif kind == "memory_short":
            self._console.print(batch_line(event["batch_limit"]))
        elif kind == "stopped":
            self._console.print(f"stopped ({event['reason']})")
        elif kind == "governor":
            self._console.print(governor_line(event))
        elif kind == "meter_lost":
            self._console.print(f"the meter {event['meter']} is lost, energy is unavailable from here: {event['why']}")


def verdict_line(event: dict[str, Any]) -> str:
    """What ships and why; where the validation images alone seem to say otherwise, the evidence comes first."""
    verdict = "the new model ships" if event["shipped"] else "the original model stays"
    before, after = event["before"], event["after"]
    told = f"{_percent(before)} → {_percent(after)}"
    if _contradicts(before, after, shipped=event["shipped"]):
        return f"{verdict}: {event['why']}; the validation images alone are too few to tell: {told}"
    return f"validation: {told}, {verdict} ({event['why']})"


def _contradicts(before: float | None, after: float | None, *, shipped: bool) -> bool:
    """Whether two accuracies alone would say the opposite of the verdict."""
    return None not in (before, after) and ((after or 0) < (before or 0) if shipped else (after or 0) > (before or 0))


def batch_line(images: int) -> str:
    """That memory was short, and what came of it."""
    return f"memory is short: batches of at most {images} images, learning rate in proportion"


def epoch_line(epoch: dict[str, Any]) -> str:
    """One epoch on one line: what it cost and what it did."""
    energy = "unavailable" if epoch["energy_j"] is None else format_energy(epoch["energy_j"])
    power = "" if epoch["power_w"] is None else f" at {format_power(epoch['power_w'])}"
    temperature = "" if epoch["temp_c"] is None else f", {epoch['temp_c']:.0f} °C"
    loss = "unknown" if epoch["train_loss"] is None else f"{epoch['train_loss']:.3f}"
    loss = f"loss {loss}" if epoch["trained"] else "nothing to train on"
    return (
        f"epoch {epoch['epoch']} {epoch['plan']}: {energy} {epoch['energy_source']}{power}{temperature}, "
        f"{epoch['trained']} of {epoch['candidates']} images trained, {1 - epoch['sparsity']:.1%} of weights updated, "
        f"{loss}, validation {_percent(epoch['guard_acc'])}"
    )


def governor_line(event: dict[str, Any]) -> str:
    """One decision of the governor and its reason."""
    action, limit = event["action"], event["limit"]
    if action == "resume":
        return f"governor: resumed after {format_duration(event['paused_s'])} at {event['duty']:.0%} of the time"
    doing = {
        "pressure": f"energy pressure {event.get('pressure', 0):.0%}",
        "duty": f"works {event.get('duty', 1):.0%} of the time",
        "pause": "pauses",
        "stop": "ends the run",
    }[action]
    return f"governor: {doing} for the {limit}" + (f" ({event['why']})" if event["why"] else "")


def print_result(result: dict[str, Any], page: Path | None = None) -> None:
    """The summary table and where the files are; ``page``: the report, if there is one."""
    console = RichConsole(highlight=False, markup=False, emoji=False)
    console.soft_wrap = not console.is_terminal
    if result["epochs"]:
        console.print(_epoch_table(result["epochs"]))
    for line in (*_accuracy_lines(result), *_energy_lines(result), *_image_lines(result)):
        console.print(line)
    if result["batch_limit"]:
        console.print(batch_line(result["batch_limit"]))
    for line in result["throttled"]:
        console.print(f"slowed down: {line}")
    if result["stopped"] != "done":
        console.print(
            f"stopped ({result['stopped']}); the same command with --resume --out {_quoted(result['run'])} continues"
        )
    console.print(f"files: {escaped(result['run'])}")
    console.print(
        f"report: {escaped(str(page))}" if page else f"a page about it: edge-sel report {_quoted(result['run'])}"
    )


def _quoted(path: str) -> str:
    """A path as a shell takes it."""
    return escaped(shlex.quote(path))


def _epoch_table(epochs: list[dict[str, Any]]) -> Table:
    source = " and ".join(sorted({str(epoch["energy_source"]) for epoch in epochs}))
    title = f"per epoch: joules ({source}), executed and nominal FLOP"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)  # 80 columns
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=True)
    for epoch in epochs:
        table.add_row(*_cells(epoch))
    return table


def _accuracy_lines(result: dict[str, Any]) -> Iterator[str]:
    accuracy = result["accuracy"]
    if accuracy["after"] is not None:
        evidence = result["evidence"]
        after = f", {_percent(accuracy['after'])} after"
        if not result["shipped"]:
            same = evidence is not None and evidence["gain"] == 0 and evidence["p_loss"] == 1
            after = ("" if same else f"{after} by the new model") + "; the original model stays"
        images = f"{result['images'][accuracy['on']]} {_shown(accuracy['on'])} images"
        own = "" if accuracy.get("pack") is None else f"{_percent(accuracy['pack'])} by the pack's own model, "
        line, why = f"accuracy on {images}: {own}{_percent(accuracy['before'])} before{after}", ""
        if evidence is not None:
            why = f"evidence: {evidence['why']}"
        if why and _contradicts(accuracy["before"], accuracy["after"], shipped=result["shipped"]):
            line, why = f"{line}; {why}", ""  # never the one without the other
        yield line
        if why:
            yield why
    for name, signers in result.get("signers", {}).items():
        if signers is not None:
            checked = "checked" if signers["checked"] else "not checked"
            yield f"{name} signed by {' and '.join(signers['fingerprints'])}, {checked}"


def _energy_lines(result: dict[str, Any]) -> Iterator[str]:
    energy = result["energy"]
    if energy["total_j"] is None:
        yield f"energy: unavailable ({energy['why'] or 'no meter'})"
        return
    net = "" if energy["net_j"] is None else f", {format_energy(energy['net_j'])} net of idle"
    yield (
        f"energy: {format_energy(energy['total_j'])} {energy['source']} by {energy['meter']}{net}, "
        f"in {format_duration(result['time_s'])}"
    )
    parts = sorted(energy["phases"].items(), key=lambda part: -part[1]["total_j"] if part[1]["total_j"] else 0.0)
    shares = [f"{_shown(name)} {part['total_j'] / energy['total_j']:.0%}" for name, part in parts if part["total_j"]]
    yield f"of which {', '.join(shares)}"
    if energy.get("lost_j"):
        yield (
            f"lost to interruptions: {format_energy(energy['lost_j'])} in {format_duration(energy['lost_s'])}, "
            "counted in the total"
        )


def _image_lines(result: dict[str, Any]) -> Iterator[str]:
    """What is wrong with some images, if anything is."""
    if (doubts := result["suspicious"])["share"] and doubts["share"] > DOUBTFUL:
        first = doubts["files"][0]
        left = "left out" if doubts["dropped"] else "--drop-suspicious leaves them out"
        yield (
            f"{doubts['share']:.0%} of the labels look wrong ({left}), the first: {escaped(first['path'])}, "
            f"{escaped(first['label'])}, looks like {escaped(first['looks_like'])}"
        )
    again = result["duplicates"]
    if again["left_out"]:
        yield (
            f"left out {counted(len(again['left_out']), 'image')} that repeat others, "
            f"the first: {escaped(again['left_out'][0])} (--keep-duplicates trains on them too)"
        )
    if again["contradictory"]:
        first = escaped(again["contradictory"][0])
        yield f"like an image of another class: {len(again['contradictory'])}, the first: {first}"
    if skipped := result["skipped_images"]:
        first, why = escaped(skipped[0]["path"]), skipped[0]["reason"]
        yield f"skipped {counted(len(skipped), 'file')}, the first: {first}, {why}"


DOUBTFUL = 0.02
"""Share of labels that look wrong worth a line; of good ones fewer do."""
_COLUMNS = ("", "plan", "gross", "net", "trained", "updated", "executed", "nominal", "loss", "valid.")


def _cells(epoch: dict[str, Any]) -> list[str]:
    return [
        str(epoch["epoch"]),
        epoch["plan"],
        *("–" if epoch[key] is None else format_energy(epoch[key]) for key in ("energy_j", "net_j")),
        f"{epoch['trained']}/{epoch['candidates']}",
        f"{1 - epoch['sparsity']:.1%}",
        format_flops(epoch["executed_flops_t"] * 1e12).removesuffix("FLOP"),
        format_flops(epoch["nominal_flops_t"] * 1e12).removesuffix("FLOP"),
        "–" if epoch["train_loss"] is None else f"{epoch['train_loss']:.3f}",
        "–" if epoch["guard_acc"] is None else _percent(epoch["guard_acc"]),
    ]


def _shown(name: str) -> str:
    """A name of ``run.json`` as a person knows it."""
    return {"guard": "validation", "prefix": "frozen backbone"}.get(name, name)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}%"
