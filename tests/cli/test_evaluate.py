"""``edge-sel evaluate``, ``pack`` and ``--version``."""

import json
import shutil

from tests.cli.shell import BAD_INPUT, PACK, USAGE, refused

SHORT = ["--plan", "closed_form", "--threads", 1]


def test_evaluate_tells_the_accuracy_of_the_pack_and_of_a_runs_weights(edge_sel, here, digits_folder):
    assert edge_sel("finetune", PACK, "--data", digits_folder, "--out", "run", "--json", *SHORT).code == 0
    figures = {}
    for name, extra in (("before", []), ("after", ["--weights", "run/weights.safetensors"])):
        result = edge_sel("evaluate", PACK, "--data", digits_folder, "--json", *extra)
        assert result.code == 0 and result.err == ""
        figures[name] = json.loads(result.out)
    assert figures["before"]["accuracy"] < figures["after"]["accuracy"]
    assert figures["after"]["images"] == 120 and set(figures["after"]["classes"]) == set("0123456789")
    shown = edge_sel("evaluate", PACK, "--data", digits_folder)
    assert f"accuracy {100 * figures['before']['accuracy']:.2f} % on 120 images" in shown.out


def test_what_predict_takes_is_evaluated_too(edge_sel, here, digits_folder):
    assert edge_sel("finetune", PACK, "--data", digits_folder, "--out", "run", "--json", *SHORT).code == 0
    by_weights = edge_sel("evaluate", PACK, "--data", digits_folder, "--weights", "run/weights.safetensors")
    for name in ("run", "run/model.onnx"):
        result = edge_sel("evaluate", name, "--data", digits_folder)
        assert result.code == 0 and result.out.splitlines()[0] == by_weights.out.splitlines()[0]
        refused(edge_sel("evaluate", name, "--data", digits_folder, "--engine", "torch"), USAGE, "needs a pack", name)
    (here / "run" / "model.onnx").unlink()
    refused(edge_sel("evaluate", "run", "--data", digits_folder), BAD_INPUT, "the run has no model.onnx", "--resume")


def test_an_extended_model_is_evaluated_with_its_own_classes(edge_sel, here, digits_folder):
    shutil.copytree(digits_folder, "images")
    shutil.copytree("images/3", "images/three")
    extended = ("--data", "images", "--new-classes", "extend", "--out", "run", "--json", *SHORT)
    assert edge_sel("finetune", PACK, *extended).code == 0
    result = edge_sel("evaluate", PACK, "--data", "images", "--json", "--weights", "run/weights.safetensors")
    assert result.code == 0 and "three" in json.loads(result.out)["classes"]
    assert edge_sel("evaluate", PACK, "--data", "images").code == 4  # the pack itself does not know the class


def test_a_pack_is_inspected_and_verified(edge_sel):
    result = json.loads(edge_sel("pack", "inspect", PACK, "--json").out)
    assert result["schema"] == 1 and len(result["model"]["classes"]) == 10
    shown = edge_sel("pack", "inspect", PACK).out
    assert result["plans"] and all(plan in shown for plan in result["plans"])
    verified = edge_sel("pack", "verify", PACK)
    assert verified.code == 0 and "every hash and graph is good" in verified.out


def test_the_version_is_that_of_the_package(edge_sel):
    from edge_sel import __version__

    assert edge_sel("--version").out.strip() == f"edge-sel, version {__version__}"
