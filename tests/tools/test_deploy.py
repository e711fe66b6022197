"""The systemd unit: it does not run as root, and writes nowhere but into its own folders."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import edge_sel

UNIT = Path(edge_sel.__file__).parent.parent / "deploy" / "edge-sel-finetune.service"


def settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_it_is_nobody_important_in_an_empty_folder():
    unit = settings()
    assert unit["User"] not in ("", "root") and unit["CapabilityBoundingSet"] == ""
    assert unit["WorkingDirectory"] == f"/run/{unit['RuntimeDirectory']}", "made empty at every start"


def test_what_it_writes_to_is_made_for_it():
    unit = settings()
    assert unit["ProtectSystem"] == "strict" and "ReadWritePaths" not in unit
    text = UNIT.read_text()
    assert f"OUT=/var/lib/{unit['StateDirectory']}/" in text
    assert "XDG_CACHE_HOME=/var/cache\n" in text and unit["CacheDirectory"] == "edge-sel"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_finds_it_well_protected():
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(UNIT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "offline" in result.stderr:
        pytest.skip("an older systemd")
    assert result.returncode == 0, result.stdout[-2000:]
