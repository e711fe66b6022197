"""``edge-sel``: the command group. Commands are imported only when they are called, so ``--help`` stays quick."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click

from edge_sel.cli.streams import lost_output, protect_streams
from edge_sel.errors import EXIT_INTERRUPTED, EdgeSelError, SetupError, UsageError, on_one_line
from edge_sel.version import __version__

COMMANDS = {
    "finetune": ("edge_sel.cli.finetune", "Fine-tune a pack on this device's own labelled images."),
    "runs": ("edge_sel.cli.runs", "The runs in a folder: verdict, accuracy before and after, joules."),
    "report": (
        "edge_sel.cli.report",
        "An HTML page about runs: verdict, joules, hard classes (needs edge-sel[report]).",
    ),
    "tune": ("edge_sel.cli.tune", "Find the threads and batch size that take the fewest joules, for finetune."),
    "evaluate": (
        "edge_sel.cli.evaluate",
        "Accuracy and embarrassment (per-class loss at temperature 1.5) of a pack on images.",
    ),
    "predict": ("edge_sel.cli.predict", "Classify images with a run's model or a pack."),
    "pretrain": ("edge_sel.cli.pretrain", "Train a dense warmup checkpoint (needs edge-sel[server])."),
    "export": ("edge_sel.cli.export", "Turn a warmup checkpoint into a pack (needs edge-sel[server])."),
    "signature": ("edge_sel.cli.signature", "What this device's images look like, as numbers that show none."),
    "expert": (
        "edge_sel.cli.expert",
        "Train a pack for the device that a signature is from (needs edge-sel[server]).",
    ),
    "reference": (
        "edge_sel.cli.reference",
        "Run the published systems, joules beside their claims (needs edge-sel[server]).",
    ),
    "pack": ("edge_sel.cli.pack", "Inspect, verify or sign a pack."),
    "profiles": ("edge_sel.cli.profiles", "The device profiles, and the one that fits this machine."),
    "doctor": ("edge_sel.cli.doctor", "What meters, sensors and engines work here, and how to fix them."),
    "measure": ("edge_sel.cli.measure", "Joules, watts, degrees and CPU time of any command."),
}


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
        """Import the command's module; its ``command`` attribute is the click command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
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
