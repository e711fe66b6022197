"""What is installed comes from where we say: the lock, the licences, the bill of materials."""

import json
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import licences
import lock
import sbom

ROOT = licences.ROOT
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked(path):
    """(requirement, how many hashes) of each entry."""
    for entry in re.split(r"\n(?=\S)", path.read_text().strip()):
        if not entry.startswith("#"):
            yield Requirement(entry.partition("\\")[0].strip()), len(HASH.findall(entry))


def pinned(python):
    """Name -> version in the lock, for Linux and this version of Python."""
    held = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    entries = [found for found, _ in locked(lock.LOCK) if found.marker is None or found.marker.evaluate(held)]
    versions = {}
    for found in entries:
        (exact,) = found.specifier
        assert exact.operator == "==" and found.name not in versions, found
        versions[canonicalize_name(found.name)] = exact.version
    return versions


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_a_version_of_all_that_is_asked_for(python):
    """After a change of the dependencies: python tools/lock.py"""
    project, versions = licences.project(), pinned(python)
    extras = project["project"]["optional-dependencies"]
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"], *extras["test"]]
    for own in [line for line in asked if line.startswith("edge-sel[")]:
        asked.remove(own)
        asked += [line for extra in Requirement(own).extras for line in extras[extra]]
    for line in asked:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"python_version": python}):
            assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), f"{line}: {versions}"
    assert not [name for name in versions if lock.OF_CUDA.match(name)]


def test_each_file_of_the_lock_has_a_hash():
    entries = [*locked(lock.LOCK), *locked(lock.CPU_TORCH)]
    assert len(entries) > 40 and all(hashes for _, hashes in entries)


def test_both_builds_of_torch_are_of_one_version():
    ((torch, _),) = locked(lock.CPU_TORCH)
    assert str(torch.specifier) == f"=={pinned('3.11')['torch']}+cpu"


def test_the_tests_install_by_hash():
    script = (ROOT / ".ci" / "run").read_text()
    assert "--require-hashes" in script and "locked ci.txt" in script
    for path in (lock.LOCK, lock.CPU_TORCH):
        assert path.name in script


def test_cuda_libraries_are_told_from_others():
    blocks = ["cuda-toolkit==1", "nvidia-cublas==1", "nvidia-ml-py==1", "triton==1", "a==1 ; sys_platform == 'win32'"]
    assert lock.without_cuda("\n".join(blocks)) == ["nvidia-ml-py==1"]


@pytest.mark.parametrize("name", sorted(licences.needed()))
def test_a_device_installs_only_what_is_permissive_and_listed(name):
    """After a change of the dependencies: python tools/licences.py"""
    terms = licences.licence(licences.needed()[name])
    assert licences.is_permissive(terms), terms
    assert f"| {name} |" in licences.LIST.read_text() or name in licences.ELSEWHERE


@pytest.mark.parametrize(
    ("terms", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("BSD-3-Clause AND GPL-3.0-only", False),
        ("MIT AND (Apache-2.0 OR BSD-2-Clause)", True),
        ("MIT AND (GPL-2.0-only OR MIT)", False),
        ("LGPL-3.0-or-later", False),
        ("unknown", False),
    ],
)
def test_permissive_is_told_from_the_rest(terms, permissive):
    assert licences.is_permissive(terms) is permissive


def test_the_bill_of_materials_is_up_to_date():
    """After a change of the dependencies, the version or the data: python tools/sbom.py"""
    assert json.loads(sbom.SBOM.read_text()) == sbom.bill()
