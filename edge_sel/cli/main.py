"""``edge-sel``: the command group, errors as one line, and standard streams that never end a run.

Commands are imported only when they are called, so ``--help`` stays quick.
"""

from __future__ import annotations

import difflib
import errno
import io
import os
import pkgutil
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

import click

from edge_sel.errors import EXIT_INTERRUPTED, EdgeSelError, SetupError, UsageError, on_one_line
from edge_sel.version import __version__

COMMANDS = {
    "finetune": ("finetune:command", "Fine-tune a pack on this device's own labelled images."),
    "runs": ("runs:command", "The runs in a folder: verdict, accuracy before and after, joules."),
    "report": (
        "runs:report_command",
        "An HTML page about runs: verdict, joules, hard classes (needs edge-sel[report]).",
    ),
    "tune": ("tune:command", "Find the threads and batch size that take the fewest joules, for finetune."),
    "evaluate": (
        "predict:evaluate_command",
        "Accuracy and embarrassment (per-class loss at temperature 1.5) of a pack on images.",
    ),
    "predict": ("predict:command", "Classify images with a run's model or a pack."),
    "pretrain": ("pretrain:command", "Train a dense warmup checkpoint (needs edge-sel[server])."),
    "export": ("export:command", "Turn a warmup checkpoint into a pack (needs edge-sel[server])."),
    "signature": ("expert:signature_command", "What this device's images look like, as numbers that show none."),
    "expert": (
        "expert:command",
        "Train a pack for the device that a signature is from (needs edge-sel[server]).",
    ),
    "reference": (
        "reference:command",
        "Run the published systems, joules beside their claims (needs edge-sel[server]).",
    ),
    "pack": ("pack:command", "Inspect, verify or sign a pack."),
    "profiles": ("doctor:profiles_command", "The device profiles, and the one that fits this machine."),
    "doctor": ("doctor:command", "What meters, sensors and engines work here, and how to fix them."),
    "watch": ("watch:command", "Classify what a camera brings, and keep what teaches most (edge-sel[watch])."),
    "label": ("label:command", "A page that asks a person what the kept images show (needs edge-sel[web])."),
    "serve": ("serve:command", "Serve a model, or the one in service of a watcher (needs edge-sel[web])."),
    "rollback": ("watch:rollback_command", "Put the watcher's model of before into service again."),
    "fleet": ("fleet:group", "Learn from many devices in one round, by files: update, merge, inspect."),
    "measure": ("measure:command", "Joules, watts, degrees and CPU time of any command."),
}
"""Name -> where it is defined, and its line of help."""
_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
_NO_ROOM = ("failed to map segment", "annot allocate memory")
_LESS_MEMORY = {
    **dict.fromkeys(("finetune", "tune"), "take a smaller --batch-size or --max-pixels, or end other programs"),
    "export": "name fewer plans with --plans, such as head, or end other programs",
}
_ALONE = "end other programs"


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = pkgutil.resolve_name(f"edge_sel.cli.{COMMANDS[cmd_name][0]}")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called; an unknown one is an error that names the nearest."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.0)[0]
            raise UsageError(f"no command {args[0]!r}: did you mean {near}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-sel")
def cli() -> None:
    """Fine-tune image classifiers on the device, with joules that have a source."""


def main() -> None:
    """Run the command line; every expected error is one line on stderr and its own exit status."""
    protect_streams()
    try:
        status = cli.main(standalone_mode=False)
    except EdgeSelError as error:
        tell(str(error))
        status = error.exit_code
    except click.ClickException as error:
        message = error.format_message()
        if isinstance(error, _HELP):  # of a group that was called without a command
            error.show()
        else:
            tell(message)
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        tell("interrupted")
        status = EXIT_INTERRUPTED
    except BaseException as error:
        if not _lacks_memory(error):
            raise
        fix = next((_LESS_MEMORY[word] for word in sys.argv[1:2] if word in _LESS_MEMORY), _ALONE)
        tell(str(SetupError("out of memory", fix=fix)))
        status = SetupError.exit_code
    if lost := lost_output():
        tell(f"stdout is incomplete ({lost})")
    sys.exit(status if isinstance(status, int) else 0)


def _lacks_memory(error: BaseException) -> bool:
    """A Python, shared library or safetensors that found no room; of the last it is a panic of Rust."""
    if isinstance(error, ImportError):
        return any(words in str(error) for words in _NO_ROOM)
    return isinstance(error, MemoryError) or type(error).__name__ == "PanicException"


def tell(message: str) -> None:
    """One line on stderr."""
    click.echo(f"edge-sel: {on_one_line(message)}", err=True)


# --- standard streams: a full, closed or abandoned one loses what is printed, nothing else


class _Enduring(io.FileIO):
    """A file descriptor; what cannot be written to it is dropped."""

    lost: str | None = None
    """Why something was dropped; None while nothing was, or where the reader did not want more."""

    def write(self, data: Any, /) -> int:
        """All of the data, written or dropped."""
        rest = memoryview(data).cast("B")
        total = len(rest)
        try:
            while len(rest):
                done = super().write(rest)
                if done is None:  # a pipe that does not block, and is full
                    select.select([], [self.fileno()], [])
                    continue
                rest = rest[done:]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is gone
                self.lost = error.strerror or str(error)
        return total


def protect_streams() -> None:
    """Let stdout and stderr endure whatever becomes of them; streams that a test has put there stay."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its place, and whatever is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(2, sys.stderr)


def _protected(number: int, stream: TextIO | None) -> TextIO:
    if stream is not None:
        with suppress(OSError):
            stream.flush()
    encoding = "utf-8" if stream is None else stream.encoding
    raw = _Enduring(number, "wb", closefd=False)
    # What is printed need not fit the encoding, such as the name of a file.
    by_line = number == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=by_line)


def lost_output() -> str | None:
    """Why a part of stdout is lost, in one line; None if nothing is. A reader that has left wants no more."""
    with suppress(ValueError):
        sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _Enduring) else None
