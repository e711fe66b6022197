"""What a person sees: progress on stderr, the result on stdout."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.status import Status
from rich.table import Table

from edge_sel.units import format_duration, format_energy, format_flops, format_power


class Console:
    """Shows session events: a live line on a terminal, one line per epoch anywhere else. Quiet shows nothing."""

    def __init__(self, quiet: bool) -> None:
        self._console = RichConsole(stderr=True, quiet=quiet, highlight=False)
        self._status: Status | None = None
        self._plan = ""

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
            if self._status is not None:
                self._status.update(f"{self._plan}: epoch {event['plan_epoch'] + 1}, {event['cursor']} images seen")
        elif kind == "rung":
            self._plan = event["plan"]
        elif kind in ("started", "resumed"):
            self._console.print(f"{kind}: {event['images']} images to learn from, {event['guard']} held back as guard")
        elif kind == "evaluated":
            accuracy = event["accuracy"]
            self._console.print(f"before: {_percent(accuracy['before'])} on the {accuracy['on']} images")
        elif kind == "epoch":
            self._console.print(epoch_line(event))
        elif kind == "guard":
            verdict = "ships" if event["shipped"] else "stays behind: the original model ships"
            self._console.print(
                f"guard: {_percent(event['before'])} → {_percent(event['after'])}, the new model {verdict}"
            )
        elif kind == "stopped":
            self._console.print(f"stopped ({event['reason']}): continue with --resume --out DIR")
        elif kind.startswith("meter"):
            self._console.print(f"meter: {event}")


def epoch_line(epoch: dict[str, Any]) -> str:
    """One epoch on one line: what it cost and what it did."""
    energy = "unavailable" if epoch["energy_j"] is None else format_energy(epoch["energy_j"])
    power = "" if epoch["power_w"] is None else f" at {format_power(epoch['power_w'])}"
    temperature = "" if epoch["temp_c"] is None else f", {epoch['temp_c']:.0f} °C"
    return (
        f"epoch {epoch['epoch']} {epoch['plan']}: {energy} {epoch['energy_source']}{power}{temperature}, "
        f"{epoch['trained']} of {epoch['candidates']} images trained, {1 - epoch['sparsity']:.1%} of weights updated, "
        f"loss {epoch['train_loss']:.3f}, guard {_percent(epoch['guard_acc'])}"
    )


def print_result(result: dict[str, Any]) -> None:
    """The summary table and where the files are."""
    console = RichConsole(highlight=False)
    table = Table(title="joules per epoch", title_justify="left")
    for name, justify in _COLUMNS:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for epoch in result["epochs"]:
        table.add_row(*_cells(epoch))
    console.print(table)
    accuracy, energy = result["accuracy"], result["energy"]
    if accuracy["after"] is not None:
        console.print(
            f"accuracy on {result['images'][accuracy['on']]} {accuracy['on']} images: "
            f"{_percent(accuracy['before'])} before, {_percent(accuracy['after'])} after"
            + ("" if result["shipped"] else " — not better on the guard set, so the original model ships")
        )
    if energy["total_j"] is None:
        console.print(f"energy: unavailable ({energy['why'] or 'no meter'})")
    else:
        net = "" if energy["net_j"] is None else f", {format_energy(energy['net_j'])} net of idle"
        console.print(
            f"energy: {format_energy(energy['total_j'])} {energy['source']} by {energy['meter']}{net}, "
            f"in {format_duration(result['time_s'])}"
        )
    if result["skipped_images"]:
        first = result["skipped_images"][0]
        console.print(f"skipped {len(result['skipped_images'])} files, the first: {first['path']}, {first['reason']}")
    console.print(f"files: {result['run']}", soft_wrap=True)


_COLUMNS = (
    ("epoch", "right"), ("plan", "left"), ("gross", "right"), ("net", "right"), ("source", "left"), ("power", "right"),
    ("trained", "right"), ("gate", "right"), ("updated", "right"), ("executed", "right"), ("nominal", "right"),
    ("loss", "right"), ("guard", "right"),
)  # fmt: skip


def _cells(epoch: dict[str, Any]) -> list[str]:
    joules = [("–" if epoch[k] is None else format_energy(epoch[k])) for k in ("energy_j", "net_j")]
    return [
        str(epoch["epoch"]),
        epoch["plan"],
        *joules,
        epoch["energy_source"],
        "–" if epoch["power_w"] is None else format_power(epoch["power_w"]),
        str(epoch["trained"]),
        f"{epoch['active_rate']:.0%}",
        f"{1 - epoch['sparsity']:.1%}",
        format_flops(epoch["executed_flops_t"] * 1e12),
        format_flops(epoch["nominal_flops_t"] * 1e12),
        f"{epoch['train_loss']:.3f}",
        _percent(epoch["guard_acc"]),
    ]


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"
