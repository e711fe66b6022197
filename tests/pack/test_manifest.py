"""The manifest comes back as it was written; what is none, or was tampered with, is one PackError."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edge_sel.errors import PackError
from edge_sel.pack.manifest import MANIFEST, WEIGHTS, FileInfo, GainRow, Manifest, split_plan_name
from edge_sel.pack.manifest_json import FORMAT, from_json, to_json
from edge_sel.pack.reader import open_pack
from edge_sel.pack.writer import write_pack
from tests.pack.conftest import rewrite_manifest
from tests.tiny import tiny_pack


def test_the_manifest_round_trips_through_json(contents, digits_pack):
    for manifest in (contents[0], digits_pack.manifest):
        text = to_json(manifest)
        assert from_json(text, "here") == manifest
        assert to_json(from_json(text, "here")) == text


def test_what_a_training_did_not_measure_is_unknown(contents):
    """Of a checkpoint without held-out images the accuracy is NaN, which JSON has not."""
    measured = {"training": {"validation_accuracy": float("nan"), "epochs": 3}}
    manifest = from_json(to_json(replace(contents[0], provenance=measured)), "here")
    assert manifest.provenance == {"training": {"validation_accuracy": None, "epochs": 3}}


ROW = GainRow("body", 500, 0.25, -0.01)


def test_a_table_of_gains_comes_back(tmp_path, contents):
    manifest, weights, graphs = contents
    rows = (GainRow("head", 250, -0.1, 0.0), ROW)
    write_pack(tmp_path / "pack", replace(manifest, gains=rows), weights, graphs)
    opened = open_pack(tmp_path / "pack")
    assert opened.manifest.gains == rows
    assert json.loads((tmp_path / "pack" / MANIFEST).read_text())["gains"][1] == asdict(ROW)
    write_pack(tmp_path / "without", manifest, weights, graphs)
    assert open_pack(tmp_path / "without").digest != opened.digest, "a device decides by it"


@pytest.mark.parametrize("wrong", [{"visits": 0}, {"excess": float("nan")}, {"gain": float("inf")}], ids=str)
def test_a_table_that_nothing_can_be_told_from_is_refused(folder, wrong):
    rewrite_manifest(folder, lambda body: body.update(gains=[asdict(ROW) | wrong]))
    with pytest.raises(PackError, match=r"gains\[0\]\.visits|has the number (NaN|Infinity)"):
        open_pack(folder)


BUDGETS = {
    "last": ("last", None), "last-c25": ("last", 0.25), "full-c5": ("full", 0.05), "last2-c50": ("last2", 0.5),
    "last-c": ("last-c", None), "last-c100": ("last-c100", None), "last-c25-c50": ("last-c25", 0.5), "": ("", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BUDGETS)
def test_the_budget_stands_in_the_name(name, digits_pack):
    assert split_plan_name(name) == BUDGETS[name]
    plan = replace(digits_pack.plan("last-c25"), name=name)
    assert (plan.base, plan.budget) == BUDGETS[name]


@pytest.mark.parametrize(
    ("version", "fix"),
    [(FORMAT + 1, "pip install -U edge-sel"), (FORMAT + 100, "pip install -U edge-sel")]
    + [(older, "export it again") for older in range(1, FORMAT)],
)
def test_another_format_is_refused_with_the_fix(folder, version, fix):
    rewrite_manifest(folder, lambda body: body.update(format=version))
    with pytest.raises(PackError, match=rf"format {version}, this edge-sel reads {FORMAT}") as error:
        open_pack(folder)
    assert error.value.fix == fix
    # ... whatever else another version may have changed.
    (folder / MANIFEST).write_text(json.dumps({"format": version, "contents": ["all", "different"]}))
    with pytest.raises(PackError, match=f"format {version}"):
        open_pack(folder)


@pytest.mark.parametrize("version", (0, -1, "1", 1.0, True, None, [], float("nan")))
def test_a_format_that_is_no_format(folder, version):
    rewrite_manifest(folder, lambda body: body.update(format=version))
    with pytest.raises(PackError, match="cannot be read"):
        open_pack(folder)


@pytest.mark.parametrize(
    "text",
    (
        "",
        "{",
        "[]",
        "7",
        "null",
        '"x"',
        "{}",
        "[" * 100_000,
        f'{{"format": {FORMAT}}}',
        f'{{"format": {FORMAT}, "digest": ""}}',
        "\0",
        "NaN",
    ),
    ids=lambda text: text[:12] or "empty",
)
def test_a_manifest_that_is_not_one(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(PackError):
        open_pack(folder)


def test_a_manifest_in_no_encoding(folder):
    (folder / MANIFEST).write_bytes(b"\xff\xfe" + (folder / MANIFEST).read_text().encode("utf-16"))
    with pytest.raises(PackError):
        open_pack(folder)


def entries(value, path=()):
    """Paths of every key below the manifest's root, except the free-form notes."""
    if isinstance(value, dict) and path[:1] not in (("parity",), ("provenance",)):
        for key, inner in value.items():
            yield (*path, key)
            yield from entries(inner, (*path, key))


def manifest_paths() -> list[tuple[str, ...]]:
    manifest, _, graphs = tiny_pack(("full-c50",))
    files = {name: FileInfo(1, "0") for name in (WEIGHTS, *graphs)}
    body = asdict(Manifest(**{**manifest.__dict__, "files": files, "gains": (ROW,)}))
    del body["ort_training"]  # test_artifacts.py
    del body["model"]["taps"]  # test_sums.py
    del body["plans"]["full-c50"]["heads"]  # tests/engines/test_heads.py
    return [*entries(body)]


OPTIONAL = {
    ("parity",), ("provenance",), ("opset",), ("ir_version",), ("model", "flip"), ("model", "rectified"), ("model", "head_scale"),
    ("backbones",), ("gains",),
    ("plans", "full-c50", "backbone"), ("plans", "full-c50", "step_bytes"),
}  # fmt: skip


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("budgeted") / "pack"
    manifest, weights, graphs = tiny_pack(("full-c50",))
    model = replace(manifest.model, rectified=True, head_scale=0.5)
    plans = {name: replace(plan, step_bytes=1000) for name, plan in manifest.plans.items()}
    write_pack(path, replace(manifest, model=model, gains=(ROW,), plans=plans), weights, graphs)
    return path


@pytest.mark.parametrize("path", manifest_paths(), ids=".".join)
def test_a_missing_key_or_a_wrong_type_anywhere(budgeted, tmp_path, path):
    shutil.copytree(budgeted, tmp_path / "pack")
    original = (tmp_path / "pack" / MANIFEST).read_text()

    def at(body):
        for key in path[:-1]:
            body = body[key]
        return body

    right = at(json.loads(original))[path[-1]]
    wrong = [None, 7, 1.5, True, "x", [], [7], {}, {"x": None}, [["x"]]]
    for value in wrong:
        if type(value) is type(right) or (type(right) is float and type(value) is int):
            continue  # another value of the right type is not what this is about
        (tmp_path / "pack" / MANIFEST).write_text(original)
        rewrite_manifest(tmp_path / "pack", lambda body, value=value: at(body).update({path[-1]: value}))
        with pytest.raises(PackError):
            open_pack(tmp_path / "pack")
    (tmp_path / "pack" / MANIFEST).write_text(original)
    if path in OPTIONAL or path[-2:-1] == ("channels",):
        return

    def remove(body):
        del at(body)[path[-1]]

    rewrite_manifest(tmp_path / "pack", remove)
    if path[:-1] == ("plans",):
        assert open_pack(tmp_path / "pack").manifest.plans == {}
        return
    with pytest.raises(PackError):
        open_pack(tmp_path / "pack")


@pytest.mark.parametrize("path", ((), ("model",), ("calibration",), ("plans", "full-c50"), ("files", WEIGHTS)), ids=str)
def test_an_unknown_key_is_refused(budgeted, tmp_path, path):
    shutil.copytree(budgeted, tmp_path / "pack")

    def add(body):
        inner = body
        for key in path:
            inner = inner[key]
        inner["surprise"] = 1

    rewrite_manifest(tmp_path / "pack", add)
    with pytest.raises(PackError, match="surprise"):
        open_pack(tmp_path / "pack")


def test_an_unknown_optimizer_is_refused(folder):
    rewrite_manifest(folder, lambda body: body.update(optimizer="lion"))
    with pytest.raises(PackError, match="lion"):
        open_pack(folder)


def test_a_manifest_changed_without_its_digest(folder):
    text = (folder / MANIFEST).read_text()
    assert '"gamma": 0.001' in text
    (folder / MANIFEST).write_text(text.replace('"gamma": 0.001', '"gamma": 0.002'))
    with pytest.raises(PackError, match="digest does not match"):
        open_pack(folder)
