"""The fuzzer runs, and tells what it should."""

import subprocess
import sys

from tests.cli.shell import ROOT, environment


def fuzz(*words, code=None):
    command = [sys.executable, *(["-c", code] if code else [str(ROOT / "tools" / "fuzz.py")]), *words]
    return subprocess.run(command, env=environment(), cwd="/", capture_output=True, text=True, timeout=200, check=False)


def test_a_minute_of_every_kind_finds_nothing():
    result = fuzz("--seconds", "60")
    assert result.returncode == 0 and "0 findings" in result.stdout, result.stdout + result.stderr
