"""Write ``requirements/ci.txt``: what the tests need, each file by its hash, at the versions installed here.

    uv --version || pip install uv
    python tools/lock.py [--find-links DIR]

Run it with the Python of an environment in which all tests passed: its versions are taken wherever a Python version
supports them. The lock holds for Linux and every supported Python. CUDA libraries are left out: torch from the index
names each of them exactly, and the CPU build needs none. ``--find-links`` writes ``requirements/ci-torch-cpu.txt`` too,
for torch's CPU wheels there, which the index does not have. (One file for both will not do: of two files whose hashes
are allowed, pip takes the index's.)
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from licences import ROOT, project

LOCK = ROOT / "requirements" / "ci.txt"
CPU_TORCH = ROOT / "requirements" / "ci-torch-cpu.txt"
OF_CUDA = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton)")
HEADER = """\
# Made by tools/lock.py; docs/supply.md says what for. Installed with --require-hashes --no-deps --only-binary :all:
# Without what only torch's CUDA build needs.
"""


def constraints() -> str:
    """The versions installed here, for this Python and later ones."""
    since = "{}.{}".format(*sys.version_info[:2])
    here = {found.name: found.version.partition("+")[0] for found in metadata.distributions()}
    here.pop("edge-sel", None)
    return "".join(f"{name}=={version} ; python_version >= '{since}'\n" for name, version in sorted(here.items()))


def resolve() -> str:
    """The whole lock of ``uv``: dependencies, the ``test`` extra and the build backend."""
    with tempfile.TemporaryDirectory() as scratch:
        build, fixed = Path(scratch) / "build.in", Path(scratch) / "here.txt"
        build.write_text("\n".join(project()["build-system"]["requires"]), encoding="utf-8")
        fixed.write_text(constraints(), encoding="utf-8")
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header"]
        command += ["--no-annotate", "--python-version", "3.10", "--extra", "test", "--constraints", str(fixed)]
        command += [str(ROOT / "pyproject.toml"), str(build)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def without_cuda(lock: str) -> list[str]:
    """The requirements, each with its hashes, that a machine without a graphics card needs too."""
    blocks = re.split(r"\n(?=\S)", lock.strip())
    return [block for block in blocks if not OF_CUDA.match(block) and "sys_platform == 'win32'" not in block]


def cpu_torch(blocks: list[str], folder: Path) -> str:
    """A lock of torch's CPU build alone, by the hashes of the wheels in this folder."""
    (version,) = (found[1] for block in blocks if (found := re.match(r"torch==([\d.]+)", block)))
    wheels = sorted(folder.glob(f"torch-{version}+cpu-*.whl"))
    if not wheels:
        raise SystemExit(f"{folder} has no torch-{version}+cpu-*.whl")
    digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]
    return " \\\n    ".join([f"torch=={version}+cpu", *(f"--hash=sha256:{digest}" for digest in digests)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--find-links", type=Path, help="folder with wheels of torch's CPU build")
    folder = parser.parse_args().find_links
    blocks = without_cuda(resolve())
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(HEADER + "\n".join(blocks) + "\n", encoding="utf-8")
    if folder is not None:
        CPU_TORCH.write_text(HEADER.splitlines()[0] + "\n" + cpu_torch(blocks, folder) + "\n", encoding="utf-8")
    print(f"{LOCK.relative_to(ROOT)}: {len(blocks)} requirements")


if __name__ == "__main__":
    main()
