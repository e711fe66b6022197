"""The fuzzer runs, and tells what it should."""

import subprocess
import sys

import pytest

from tests.cli.shell import ROOT, environment


def fuzz(*words, code=None):
    command = [sys.executable, *(["-c", code] if code else [str(ROOT / "tools" / "fuzz.py")]), *map(str, words)]
    return subprocess.run(command, env=environment(), cwd="/", capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seconds", [3, 120])
def test_every_kind_finds_nothing(seconds):
    result = fuzz("--seconds", seconds)
    assert result.returncode == 0 and "0 findings" in result.stdout, result.stdout + result.stderr


def test_the_corpus_finds_nothing():
    """Inputs of every kind that once had an outcome of their own."""
    result = fuzz("--corpus")
    assert result.returncode == 0 and " 0 findings" in result.stdout, result.stdout + result.stderr
