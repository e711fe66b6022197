"""What a person sees: progress on stderr, the result on stdout."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.console import JustifyMethod, OverflowMethod
from rich.status import Status
from rich.table import Table

from edge_sel.errors import escaped
from edge_sel.units import counted, format_duration, format_energy, format_flops, format_power

PERIOD_S = 0.25
"""Between two updates: looking at the joules takes time too."""
SURE_S = 2.0
"""Before that the pace is not known well enough to tell the time left."""


class PlainConsole(RichConsole):
    """Prints lines of text as they are, and shows control characters in them instead of obeying them."""

    def print(self, *objects: Any, **given: Any) -> None:
        """As the library's."""
        super().print(*(escaped(shown) if isinstance(shown, str) else shown for shown in objects), **given)


class _Stderr(PlainConsole):
    def on_broken_pipe(self) -> None:
        """Nobody looks any more, as when the pipe's reader has ended; the run goes on."""
        self.quiet = True


def plain_console(**given: Any) -> PlainConsole:
    """A console without markup."""
    return PlainConsole(highlight=False, markup=False, emoji=False, **given)


def plain_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str],
    folded: Collection[str] = (),
) -> Table:
    """A table without lines.

    Args:
        title: above it.
        columns: their names.
        rows: a cell for each column.
        left: names of the columns of text; others are on the right.
        folded: names of the columns that take several lines where there is no room.
    """
    lines = "\n".join(map(escaped, title.split("\n")))
    table = Table(title=lines or None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        justify: JustifyMethod = "left" if name in left else "right"
        overflow: OverflowMethod = "fold" if name in folded else "ellipsis"
        table.add_column(escaped(name), justify=justify, no_wrap=name not in folded, overflow=overflow)
    for row in rows:
        table.add_row(*map(escaped, row))
    return table


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
        if event["event"] == "step":
            if self._status is not None and (line := self._live.line(event)) is not None:
                self._status.update(line)
            return
        if event["event"] == "stage_begun":
            self._live.begin(event["plan"])
        if line := event_line(event):
            self._console.print(line)


class LiveLine:
    """Makes the line of ``step`` events: progress, what the gate holds back, watts, degrees, time left.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._shown_s, self._plan = clock, float("-inf"), ""
        self._began: tuple[float, float] | None = None
        self._energy: tuple[float, float] | None = None

    def begin(self, plan: str) -> None:
        """A training stage begins."""
        self._plan, self._began = plan, None

    def line(self, step: Mapping[str, Any]) -> str | None:
        """What to show; None where the last line is too young."""
        now_s = self._clock()
        if self._began is not None and now_s - self._shown_s < PERIOD_S:
            return None
        left, self._shown_s = float(step["work_left"]()), now_s
        self._began = self._began or (now_s, left)
        done, epochs = step["plan_epoch"] >= step["epochs"], f" of {step['epochs']}" if step["epochs"] > 1 else ""
        parts = [f"{self._plan}: " + ("done" if done else f"epoch {step['plan_epoch'] + 1}{epochs}")]
        if not done:
            parts.append(f"{step['cursor']} of {step['images']} images seen")
        if step["candidates"]:
            parts.append(f"gate holds back {1 - step['passed'] / step['candidates']:.0%}")
        parts += self._watts(step, now_s)
        if not done and (seconds := self._seconds_left(now_s, left)) is not None:
            parts.append(f"about {format_duration(seconds)} left in this stage")
        return ", ".join(parts)

    def _seconds_left(self, now_s: float, left: float) -> float | None:
        assert self._began is not None
        elapsed_s, done = now_s - self._began[0], self._began[1] - left
        return left * elapsed_s / done if elapsed_s >= SURE_S and done > 0 else None

    def _watts(self, step: Mapping[str, Any], now_s: float) -> list[str]:
        spent, degrees = step["spent"](), step["temp_c"]()
        parts = []
        if spent is not None and spent.total_j is not None:
            if self._energy is not None and now_s > self._energy[0]:
                parts.append(format_power(max(0.0, spent.total_j - self._energy[1]) / (now_s - self._energy[0])))
            if self._energy is None or now_s - self._energy[0] >= 1.0:
                self._energy = now_s, spent.total_j
            parts.append(f"{format_energy(spent.total_j)} {spent.source} so far")
        return parts if degrees is None else [*parts, f"{degrees:.0f} °C"]


def event_line(event: dict[str, Any]) -> str:
    """One event on one line; empty where there is nothing to tell."""
    template = _EVENTS.get(event["event"], "")
    return template.format_map(event) if isinstance(template, str) else template(event)


def _evaluated_line(event: dict[str, Any]) -> str:
    accuracy = event["accuracy"]
    return f"before: {format_percent(accuracy['before'])} on the {accuracy['on']} images"


def _expert_line(event: dict[str, Any]) -> str:
    verdict = "begins with it" if event["taken"] else "ignored"
    change = f"{format_percent(event['instead_of'])} → {format_percent(event['accuracy'])}"
    return f"expert: {change} on the validation images, {verdict}"


def _tuned_line(event: dict[str, Any]) -> str:
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in event["settings"].items())
    return f"tuned by `edge-sel tune`: {settings}"


def verdict_line(event: dict[str, Any]) -> str:
    """What ships and why; where the validation images alone seem to say otherwise, the evidence comes first."""
    verdict = "the new model ships" if event["shipped"] else "the original model stays"
    before, after = event["before"], event["after"]
    change = f"{format_percent(before)} → {format_percent(after)}"
    if _contradicts(before, after, shipped=event["shipped"]):
        return f"{verdict}: {event['why']}; the validation images alone are too few to tell: {change}"
    return f"validation: {change}, {verdict} ({event['why']})"


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
        f"{loss}, validation {format_percent(epoch['validation_acc'])}"
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


_IMAGES = "{event}: {images} images to train on, {validation} held out for validation"
_EVENTS: dict[str, str | Callable[[dict[str, Any]], str]] = {
    "started": _IMAGES,
    "resumed": _IMAGES,
    "evaluated": _evaluated_line,
    "expert": _expert_line,
    "tuned": _tuned_line,
    "tuning_ignored": "tuning ignored, {why} (run `edge-sel tune` again)",
    "engine_changed": "continues with the engine {now}; it began with {before}",
    "device": "computes on the processor: {why}",
    "backbone_precision": "frozen backbone of {plan} in {precision}: {why}",
    "stage_begun": lambda event: "" if event["why"] == "as told" else f"schedule: {event['plan']} ({event['why']})",
    "stages_ended": lambda event: "" if event["why"] == "no more plans" else f"schedule: ends ({event['why']})",
    "reverted": "{plan} did not improve the model on the validation set: undone",
    "epoch": epoch_line,
    "governor": governor_line,
    "decided": verdict_line,
    "memory_short": lambda event: batch_line(event["batch_limit"]),
    "meter_lost": "the meter {meter} is lost, energy is unavailable from here: {why}",
    "stopped": "stopped ({reason})",
    "lost": lambda event: f"lost to interruptions so far: {_lost(event['energy_j'], event['seconds'])}",
    "unlocked": "this folder cannot be locked against another process: {why}",
    "checkpoints_damaged": "every checkpoint here is damaged: starting from the beginning",
    "journal_damaged": "the journal is damaged: some joules of earlier parts may be missing",
    "journal_stopped": "the journal cannot be written ({why}): an interruption would lose joules from the count",
    "outputs_damaged": lambda event: f"missing or damaged, to be written again: {', '.join(event['files'])}",
    "restored": lambda event: f"was missing or damaged, now restored: {', '.join(event['files'])}",
}
"""Event -> its line: a format of the event's values, or a function of it."""


def print_result(result: dict[str, Any], page: Path | None = None) -> None:
    """The summary table and where the files are; ``page``: the report, if there is one."""
    console = plain_console()
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
    console.print(f"files: {result['run']}")
    source = result.get("source")
    pictures = f" --data {_quoted(source)}" if source and Path(source).is_dir() else ""
    asked = f"a page about it: edge-sel report {_quoted(result['run'])}{pictures}"
    console.print(f"report: {page}" if page else asked)


def _quoted(path: str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(path)


def _epoch_table(epochs: list[dict[str, Any]]) -> Table:
    source = " and ".join(sorted({str(epoch["energy_source"]) for epoch in epochs}))
    title = f"per epoch: joules ({source}), executed and nominal FLOP"
    columns = ("", "plan", "gross", "net", "trained", "updated", "exec.", "nominal", "loss", "valid.")
    rows = [
        [
            str(epoch["epoch"]),
            epoch["plan"],
            *("–" if epoch[key] is None else format_energy(epoch[key]) for key in ("energy_j", "net_j")),
            f"{epoch['trained']}/{epoch['candidates']}",
            f"{1 - epoch['sparsity']:.1%}",
            *(format_teraflops(epoch[key]) for key in ("executed_flops_t", "nominal_flops_t")),
            "–" if epoch["train_loss"] is None else f"{epoch['train_loss']:.3f}",
            "–" if epoch["validation_acc"] is None else format_percent(epoch["validation_acc"]),
        ]
        for epoch in epochs
    ]
    table = plain_table(title, columns, rows, left={"plan"})
    table.collapse_padding = True  # 80 columns
    return table


def _accuracy_lines(result: dict[str, Any]) -> Iterator[str]:
    accuracy = result["accuracy"]
    if accuracy["after"] is not None:
        evidence = result["evidence"]
        after = f", {format_percent(accuracy['after'])} after"
        if not result["shipped"]:
            same = evidence is not None and evidence["gain"] == 0 and evidence["p_loss"] == 1
            after = ("" if same else f"{after} by the new model") + "; the original model stays"
        images = f"{result['images'][accuracy['on']]} {accuracy['on']} images"
        own = "" if accuracy.get("pack") is None else f"{format_percent(accuracy['pack'])} by the pack's own model, "
        line, why = f"accuracy on {images}: {own}{format_percent(accuracy['before'])} before{after}", ""
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
    shares = [f"{name} {part['total_j'] / energy['total_j']:.0%}" for name, part in parts if part["total_j"]]
    yield f"of which {', '.join(shares)}"
    if energy.get("lost_j"):
        yield f"lost to interruptions: {_lost(energy['lost_j'], energy['lost_s'])}, counted in the total"


def _lost(energy_j: float, seconds: float) -> str:
    return f"{format_energy(energy_j)} in {format_duration(seconds)}"


def _image_lines(result: dict[str, Any]) -> Iterator[str]:
    """What is wrong with some images, if anything is."""
    if (doubts := result["suspicious"])["share"] and doubts["share"] > DOUBTFUL:
        first = doubts["files"][0]
        left = "left out" if doubts["dropped"] else "--drop-suspicious leaves them out"
        yield (
            f"{doubts['share']:.0%} of the labels look wrong ({left}), the first: {first['path']}, "
            f"{first['label']}, looks like {first['looks_like']}"
        )
    again = result["duplicates"]
    if again["left_out"]:
        yield (
            f"left out {counted(len(again['left_out']), 'image')} that repeat others, "
            f"the first: {again['left_out'][0]} (--keep-duplicates trains on them too)"
        )
    if again["contradictory"]:
        first = again["contradictory"][0]
        yield f"like an image of another class: {len(again['contradictory'])}, the first: {first}"
    if skipped := result["skipped_images"]:
        first, why = skipped[0]["path"], skipped[0]["reason"]
        yield f"skipped {counted(len(skipped), 'file')}, the first: {first}, {why}"


DOUBTFUL = 0.02
"""Share of labels that look wrong worth a line; of good ones fewer do."""


def format_percent(value: float | None) -> str:
    """Of 0..1."""
    return "unknown" if value is None else f"{100 * value:.1f}%"


def format_teraflops(tera: float | None) -> str:
    """Of 10¹² operations, without the unit, which stands above."""
    return format_flops(None if tera is None else tera * 1e12).removesuffix("FLOP")
