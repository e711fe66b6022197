"""What starting costs: ``--help`` imports nothing heavy, the default run nothing that a device lacks."""

import json
import os
import re
import sys

from tests.cli.shell import environment, run

HEAVY = {"numpy", "torch", "onnx", "onnxruntime", "PIL", "rich", "safetensors", "psutil", "pynvml", "cryptography"}

MODULES = """\
import json, sys
sys.argv = ["edge-sel", *{arguments!r}]
from edge_sel.cli.main import main
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""

AT_FIRST_STEP = """\
import json, sys
import edge_sel.engines.ort as ort
first, step = [], ort.OrtTrainer.step
def look(self, *arguments):
    first.append("onnx" in sys.modules)
    return step(self, *arguments)
ort.OrtTrainer.step = look
sys.argv = ["edge-sel", "finetune", "--json", "--plan", "bn", "--threads", "1"]
from edge_sel.cli.main import main
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
print(json.dumps([first[0], sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def imported(here, *arguments):
    result = run(cwd=here, command=[sys.executable, "-c", MODULES.format(arguments=arguments)])
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy(here):
    assert not imported(here, "--help") & HEAVY


def test_help_of_a_command_imports_no_engine(here):
    for command in ("finetune", "evaluate", "pack", "pretrain", "export"):
        assert not imported(here, command, "--help") & {"torch", "onnx", "onnxruntime", "PIL", "cryptography"}, command


def test_importing_the_package_imports_nothing_heavy(here):
    code = f"import sys, edge_sel; print([name for name in sys.modules if name.partition('.')[0] in {HEAVY!r}])"
    assert run(cwd=here, command=[sys.executable, "-c", code]).stdout == "[]\n"


def test_help_is_quick(here):
    """Processor time, so that a busy machine does not matter; the best of five."""
    taken = []
    for _ in range(5):
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "edge_sel", "--help"],
            environment(),
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )
        _, status, usage = os.wait4(process, 0)
        assert status == 0
        taken.append(usage.ru_utime + usage.ru_stime)
    assert min(taken) <= 0.3


def test_the_default_run_imports_no_training_library(here):
    result = run(cwd=here, command=[sys.executable, "-c", AT_FIRST_STEP])
    assert result.returncode == 0, result.stderr
    onnx_at_first_step, modules = json.loads(result.stdout.splitlines()[-1])
    assert not {"torch", "torchvision", "matplotlib", "pandas", "scipy", "sklearn", "cryptography"} & set(modules)
    assert {"onnxruntime", "numpy"} <= set(modules)
    assert onnx_at_first_step is False


def test_help_names_every_command_and_setting(edge_sel):
    from edge_sel.cli.main import COMMANDS
    from edge_sel.config.schema import schema_of
    from edge_sel.config.settings import Settings

    shown = edge_sel("--help").out
    assert all(name in shown for name in COMMANDS)
    shown = edge_sel("finetune", "--help").out
    for name in schema_of(Settings):
        assert f"--{re.sub('_[jwcs]$', '', name).replace('_', '-')} " in shown
