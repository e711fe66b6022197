"""What a device installs beside edge-sel, and under which licences: ``docs/licences.md``.

    python tools/licences.py

Names and licences are those of the installed packages' own metadata, of everything that edge-sel needs, however
indirectly, with the extra ``sign``. ``tests/test_supply.py`` refuses a dependency whose licence is not permissive, or
that is not in the list.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "docs" / "licences.md"
PERMISSIVE = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU",
    "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
}  # fmt: skip
OLD_NAMES = {
    "apache": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache software license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0", "apache license v2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause", "bsd": "BSD-3-Clause", "bsd license": "BSD-3-Clause",
    "mit license": "MIT", "historical permission notice and disclaimer (hpnd)": "HPND",
    "python software foundation license": "PSF-2.0",
}  # fmt: skip
"""What packages without an SPDX expression say, in small letters. BSD alone means its strictest permissive form."""

ELSEWHERE = ("coloredlogs", "humanfriendly", "mpmath", "sympy", "tomli")
"""What only other Python versions need."""


def project() -> dict[str, Any]:
    """``pyproject.toml``."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(lines: Iterable[str]) -> dict[str, Requirement]:
    """By name, those that hold for this machine."""
    asked = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})}


def needed() -> dict[str, metadata.Distribution]:
    """Every package that a device needs on this machine, by name, sorted: with the extra for signatures, no other."""
    found: dict[str, metadata.Distribution] = {}
    settings = project()["project"]
    waiting = list(requirements([*settings["dependencies"], *settings["optional-dependencies"]["sign"]]))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = metadata.distribution(name)
            waiting += requirements(found[name].requires or ())
    return dict(sorted(found.items()))


def licence(found: metadata.Distribution) -> str:
    """The SPDX expression of a package; what it says in its own words if nothing else is known."""
    headers = found.metadata
    if expression := headers.get("License-Expression"):
        return str(expression)
    classified = [c.rpartition(" :: ")[2] for c in headers.get_all("Classifier", []) if c.startswith("License ::")]
    for words in [headers.get("License") or "", *classified]:
        name = OLD_NAMES.get(words.strip().lower(), words.strip())
        if name in PERMISSIVE:
            return name
    return "; ".join(classified) or (headers.get("License") or "unknown").strip().splitlines()[0]


def is_permissive(expression: str) -> bool:
    """Whether every licence that holds is permissive; of alternatives one is enough, if there are no brackets."""
    names = re.split(r"[()\s]+", expression.strip())
    if "(" in expression or "OR" not in names:
        return all(name in PERMISSIVE for name in names if name and name not in ("AND", "OR"))
    return any(is_permissive(choice) for choice in re.split(r"\s+OR\s+", expression))


def page() -> str:
    """The whole of ``docs/licences.md``, as of the packages that are installed here."""
    rows = [f"| {name} | {licence(found)} |" for name, found in needed().items()]
    return "\n".join([
        "# Licences of what a device installs",
        "",
        "Written by `python tools/licences.py` from the packages' own metadata; all are permissive. Python 3.10 takes",
        f"{', '.join(ELSEWHERE)} as well (MIT and BSD-3-Clause).",
        "cffi, cryptography and pycparser come with the extra `sign` only.",
        "edge-sel itself is under the MIT licence, its digits under CC BY 4.0.",
        "",
        "| package | licence |",
        "|---|---|",
        *rows,
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    LIST.write_text(page(), encoding="utf-8")
    for name, found in needed().items():
        if not is_permissive(licence(found)):
            raise SystemExit(f"{name}: {licence(found)} is not known to be permissive")
    print(f"{LIST.relative_to(ROOT)}: {len(needed())} packages")
