"""Write ``requirements/edge-sel.cdx.json``, the bill of materials (CycloneDX 1.7) that the wheel carries (PEP 770).

    python tools/sbom.py

It names edge-sel, the data inside the wheel that is no code of ours, with its SHA-256, and what a device installs
beside it, as ranges, what the extra ``sign`` adds as optional: the wheel contains none of that. No date and no serial
number, so that the same tree gives the same bytes. Of a device ``cyclonedx-py environment`` tells the exact versions.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from licences import ROOT, project
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edge_sel import __version__

SBOM = ROOT / "requirements" / "edge-sel.cdx.json"
PACKAGE = ROOT / "edge_sel"
UCI = "https://doi.org/10.24432/C50P49"
SEL = "https://github.com/ishaaqdev/Staged-Embarrassment-Learning"
INSIDE = {
    "data/assets/digits.npz": ("data", "CC-BY-4.0", UCI),
    "pack/assets/digits.edgepack": ("machine-learning-model", "MIT", None),
    **{f"reference/published/{path.name}": ("data", "MIT", SEL) for path in PACKAGE.glob("reference/published/*.csv")},
}
"""What is in the wheel beside code and texts of ours: kind, licence, origin."""


def inside(name: str) -> dict[str, Any]:
    """A file in the wheel."""
    kind, terms, origin = INSIDE[name]
    component = {
        "type": kind,
        "bom-ref": name,
        "name": f"edge_sel/{name}",
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256((PACKAGE / name).read_bytes()).hexdigest()}],
        "licenses": [{"license": {"id": terms}}],
    }
    return component if origin is None else {**component, "externalReferences": [{"type": "website", "url": origin}]}


def beside(line: str, scope: str) -> dict[str, Any]:
    """A package that the wheel asks for."""
    asked = Requirement(line)
    name = canonicalize_name(asked.name)
    component: dict[str, Any] = {"type": "library", "bom-ref": name, "name": name, "isExternal": True}
    component |= {"versionRange": f"vers:pypi/{asked.specifier}", "scope": scope, "purl": f"pkg:pypi/{name}"}
    return component if asked.marker is None else {**component, "description": f"only where {asked.marker}"}


def bill() -> dict[str, Any]:
    """All of it."""
    metadata = project()["project"]
    asked = [beside(line, "required") for line in sorted(metadata["dependencies"])]
    asked += [beside(line, "optional") for line in sorted(metadata["optional-dependencies"]["sign"])]
    own = {"type": "library", "bom-ref": "edge-sel", "name": "edge-sel", "version": __version__}
    own |= {"licenses": [{"license": {"id": "MIT"}}], "purl": f"pkg:pypi/edge-sel@{__version__}"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {"component": own},
        "components": [*map(inside, sorted(INSIDE)), *asked],
        "dependencies": [{"ref": "edge-sel", "dependsOn": [component["bom-ref"] for component in asked]}],
    }


if __name__ == "__main__":
    SBOM.write_text(json.dumps(bill(), indent=1) + "\n", encoding="utf-8")
    print(f"{SBOM.relative_to(ROOT)}: {len(bill()['components'])} components")
