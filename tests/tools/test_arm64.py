"""An emulated ARM board ends a run with the weights of this machine: minutes, root, a Debian, so only where asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "tools" / "arm64_check.sh"
ROOT = os.environ.get("ARM64_ROOT")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(ROOT is None, reason="set ARM64_ROOT to a folder for a Debian of arm64")
def test_the_same_run_on_arm() -> None:
    result = subprocess.run([CHECK, str(ROOT), sys.executable], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "weights differ by at most" in result.stdout
