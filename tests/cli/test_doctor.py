"""``edge-sel doctor``: what works here, why not, and how to mend it."""

import json

from edge_sel.power.find import OPENERS
from tests.cli.shell import block, run


def test_contract(tmp_path):
    result = run("doctor", "--json", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    assert report["schema"] == 1 and isinstance(report["profile"], str)
    assert [meter["name"] for meter in report["meters"]] == list(OPENERS)
    for meter in report["meters"]:
        assert {"name", "usable", "why", "fix", "power_w", "rails"} <= set(meter) and meter["why"]
        assert meter["usable"] == (meter["power_w"] is not None)
    assert all({"zone", "temp_c"} == set(zone) for zone in report["thermal"])
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert engines["ort"]["usable"] and set(engines) == {"ort", "torch"}


def test_profiles(tmp_path):
    report = json.loads(run("profiles", "--json", cwd=tmp_path).stdout)
    names = [profile["name"] for profile in report["profiles"]]
    assert report["schema"] == 1 and report["detected"] in names and "default" in names
    shown = run("profiles", cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout.count("this machine") == 1 and all(n in shown.stdout for n in names)


def test_without_torch(tmp_path):
    result = run("doctor", cwd=tmp_path, PYTHONPATH=block(tmp_path, "torch"))
    assert result.returncode == 0 and "engine torch: not installed" in result.stdout
    assert "profile: " in result.stdout and "meter psutil" in result.stdout
