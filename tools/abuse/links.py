"""A link at every name that a run writes: nothing may be written through it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

COMMAND = ("finetune", "--plan", "closed_form,head", "--epochs", "1", "--checkpoint-every", "1ms", "--threads", "1",
           "--feature-cache-mb", "0", "--resume", "--json")  # fmt: skip
KINDS = ("symbolic", "dangling", "hard")
MINE = b"mine\n"


def written_names(folder: Path) -> list[str]:
    """Every name that an uninterrupted run leaves in its folder, with the temporary name of each beside it."""
    run = folder / "whole"
    _finetune(run)
    names = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    beside = [str(Path(name).with_name(f".{Path(name).name}.tmp")) for name in names]
    return [".lock", "features.cache", *names, *beside]


def plant_everywhere(folder: Path) -> list[str]:
    """Findings: names through which somebody's file was changed, made or removed."""
    findings = []
    names = written_names(folder)
    for name in names:
        for kind in KINDS:
            here = folder / "planted"
            shutil.rmtree(here, ignore_errors=True)
            place, victim = here / "run" / name, here / "victim"
            place.parent.mkdir(parents=True)
            if kind != "dangling":
                victim.write_bytes(MINE)
            if kind == "hard":
                place.hardlink_to(victim)
            else:
                place.symlink_to(victim)
            printed = _finetune(here / "run")
            if "Traceback" in printed:
                findings.append(f"{name}, {kind}: {printed[-300:]}")
            if (victim.read_bytes() if victim.exists() else None) != (None if kind == "dangling" else MINE):
                findings.append(f"{name}, {kind}: the file that it leads to was written")
    print(f"links at {len(names)} names, {len(KINDS)} kinds: {len(findings)} findings")
    return findings


def _finetune(out: Path) -> str:
    command = [sys.executable, "-m", "edge_sel", *COMMAND, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stderr
