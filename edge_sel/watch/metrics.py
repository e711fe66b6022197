"""What a watcher has done, as OpenMetrics text, and as one object for the page and for programs."""

from __future__ import annotations

from typing import Any

from edge_sel.edge.outputs.openmetrics import Family, to_text
from edge_sel.schema import SchemaError, parse_json
from edge_sel.version import __version__
from edge_sel.watch.home import Home

OUTCOMES = ("kept", "passed_over", "duplicate", "repeated", "unreadable", "not_kept")
"""What becomes of an image."""


def status_of(home: Home) -> dict[str, Any]:
    """Counters, drift, the model in service and the looks at the evidence."""
    counters, records = home.records.counters(), home.records
    try:
        drift = parse_json(records.noted("drift") or "null")
    except SchemaError:
        drift = None
    millijoules, images = counters.get("millijoules"), counters.get("images", 0)
    per_1000 = millijoules / images if millijoules and images else None  # mJ an image are J a thousand
    return {
        "model": home.service(), "models": home.models(), "counters": counters, "drift": drift,
        "joules_per_1000_images": per_1000, "energy_source": records.noted("energy_source") or "unavailable",
        "looks": records.looks(),
    }  # fmt: skip


def metrics_text(home: Home) -> str:
    """OpenMetrics text of ``status_of``."""
    status = status_of(home)
    counters, drift = status["counters"], status["drift"] if isinstance(status["drift"], dict) else {}
    joules = counters["millijoules"] / 1000 if "millijoules" in counters else None
    images = [({"outcome": name}, counters.get(name, 0)) for name in OUTCOMES]
    kept, labelled = len(home.records.kept()), len({label.image for label in home.records.labels()})
    return to_text([
        Family("edge_sel_watch_images", "counter", "", "Images that arrived, by what became of them.", images),
        Family("edge_sel_watch_labels", "counter", "", "Labels that people gave.", [({}, counters.get("labels", 0))]),
        Family("edge_sel_watch_images_kept", "gauge", "", "Images that are kept for people.", [({}, kept)]),
        Family("edge_sel_watch_images_labelled", "gauge", "", "Of these, those with a label.", [({}, labelled)]),
        Family("edge_sel_watch_energy_joules", "counter", "joules", "Gross energy while it watched.",
               [({"source": status["energy_source"]}, joules)]),
        Family("edge_sel_watch_drift", "gauge", "", "1 where the images no longer look like the server's.",
               [({}, float(drift["seen"]) if "seen" in drift else None)]),
        Family("edge_sel_watch_novel_ratio", "gauge", "ratio", "Share of new images in the latest test of drift.",
               [({}, drift.get("novel"))]),
        Family("edge_sel_watch_model", "gauge", "", "Number of the model in service.", [({}, status["model"])]),
        Family("edge_sel_watch_info", "gauge", "", "The version of edge-sel.", [({"version": __version__}, 1.0)]),
    ])  # fmt: skip
