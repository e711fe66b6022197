"""The wheel: what is in it, and that it works away from the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import edge_sel
from tests.cli.shell import block

ROOT = Path(edge_sel.__file__).parent.parent
PUBLISHED = ("CREDITS.md", "claims.json", *(f"hist_{name}.csv" for name in ("baseline", "lottery", "sel95", "warmup")))
DATA = {
    "py.typed",
    "data/assets/CREDITS.md",
    "data/assets/digits.npz",
    "pack/assets/digits.edgepack",
    "report/page.html",
    "report/style.css",
    *(f"web/label.{end}" for end in ("css", "html", "js")),
    *(f"reference/published/{name}" for name in PUBLISHED),
}


def call(*command, cwd=None, **env):
    """Run without what this process's environment says about Python and edge-sel; the output if all is well."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EDGE_SEL_", "PYTHONPATH", "PYTHONHOME"))}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept | env, capture_output=True, text=True, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def leftovers():
    """What a build may leave in the repository."""
    return {path for pattern in ("build", "dist", "*.egg-info") for path in ROOT.glob(pattern)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by what is installed: an environment of its own takes longer, and would have hatchling alone too."""
    assert re.search(r'^requires = \["hatchling[^",]*"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    folder, before = tmp_path_factory.mktemp("wheel"), leftovers()
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    assert leftovers() == before
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel)
    return target


def test_name_and_size(wheel):
    assert wheel.name.startswith("edge_sel-") and wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size <= 2 * 2**20


def test_contents(wheel):
    """The code, the digits, the profiles, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = [name for name in names if ".dist-info/" in name]
        package = {name.removeprefix("edge_sel/") for name in names - set(info)}
        contents = {name: archive.read(f"edge_sel/{name}") for name in package}
    profiles = {f"_profiles/{path.name}": path.read_bytes() for path in (ROOT / "profiles").glob("*.toml")}
    code = {str(path.relative_to(ROOT / "edge_sel")) for path in (ROOT / "edge_sel").rglob("*.py")}
    assert package == code | DATA | profiles.keys()
    assert len(profiles) >= 4
    for name, content in contents.items():
        assert content == profiles.get(name) or content == (ROOT / "edge_sel" / name).read_bytes()
    assert any(name.endswith("licenses/LICENSE") for name in info)
    assert any(name.endswith(".dist-info/sboms/edge-sel.cdx.json") for name in info)


def test_two_builds_have_the_same_bytes(tmp_path):
    """Of wheel and source archive, from two folders whose files have other dates."""
    built = []
    for number in range(2):
        source, out = tmp_path / f"source-{number}", tmp_path / f"built-{number}"
        for name in ("edge_sel", "profiles", "requirements"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("README.md", "LICENSE", "pyproject.toml"):
            shutil.copy(ROOT / name, source)
        for path in source.rglob("*"):
            os.utime(path, (1e9 + 1e8 * number,) * 2)
        call(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=source, SOURCE_DATE_EPOCH="1700000000")
        built.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert sorted(Path(name).suffix for name in built[0]) == [".gz", ".whl"]
    assert built[0] == built[1]


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    fields = message_from_string(metadata)
    assert fields["Version"] == edge_sel.__version__ and fields["License-Expression"] == "MIT"
    assert fields["Requires-Python"] == ">=3.10" and fields.get_payload().strip()
    assert "edge-sel = edge_sel.__main__:main" in scripts
    needed = [line for line in fields.get_all("Requires-Dist") if "extra ==" not in line]
    assert {"numpy", "onnxruntime", "click", "pillow"} <= {line.partition(">")[0].strip() for line in needed}
    assert not any(name in line for line in needed for name in ("torch", "pandas", "matplotlib", "scikit"))


def test_it_works_from_anywhere(installed, tmp_path):
    """The whole default run, on a device where only edge-sel's own dependencies are."""
    names = ("torch", "torchvision", "onnxscript", "sklearn", "scipy", "pandas", "matplotlib", "hypothesis", "pytest")
    blocked = block(tmp_path / "blocked", *names)
    here = {"cwd": tmp_path, "PYTHONPATH": os.pathsep.join([blocked, str(installed)])}
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        call(sys.executable, "-c", "import torch", **here)
    assert Path(call(sys.executable, "-c", "import edge_sel; print(edge_sel.__file__)", **here)).is_relative_to(
        installed
    )
    script = installed / "bin" / "edge-sel"
    assert call(script, "--version", **here).strip().endswith(edge_sel.__version__)
    result = json.loads(call(script, "finetune", "--json", "--out", "run", **here))
    assert result["stopped"] == "done" and result["shipped"] is True
    assert str(installed) in result["pack"]
    assert (tmp_path / "run" / "model.onnx").is_file()


def test_profiles_are_found_when_installed(installed, tmp_path):
    code = "from edge_sel.config.profiles import *; print(*[load_profile(name).name for name in list_profiles()])"
    names = call(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert names == sorted(path.stem for path in (ROOT / "profiles").glob("*.toml"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_device_installs_little(wheel, tmp_path):
    """A fresh environment with all that a device needs: no training library, at most 300 MB."""
    call(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")

    def size():
        return sum(path.stat().st_size for path in site.rglob("*") if path.is_file())

    empty = size()
    call(python, "-m", "pip", "install", "-q", "--no-compile", wheel)
    names = {path.name.lower() for path in site.iterdir()}
    assert not names & {"torch", "torchvision", "pandas", "matplotlib", "scipy", "sklearn"}
    grown = size() - empty
    print(f"a device installs {grown / 1e6:.0f} MB")
    assert grown <= 300e6
    result = json.loads(call(tmp_path / "venv" / "bin" / "edge-sel", "finetune", "--json", cwd=tmp_path))
    assert result["shipped"] is True
