"""Packs that somebody meant to be harmful, given to the command: one line, status 4, little time and memory."""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load, save

from edge_sel.engines import trial
from edge_sel.errors import PackError
from edge_sel.pack.manifest import MANIFEST, WEIGHTS
from edge_sel.pack.reader import builtin_pack, open_pack
from tests.pack.hostile import BUILTIN, builtin_files, sealed, with_file, with_graph, write_folder, write_zip
from tests.pack.measured import command, refused

# Made in a folder, by name

LARGE = 220 << 20  # a process that held it would take more than it may


def zeros_as_weights(path: Path) -> Path:
    """What 220 MB of zeros compress to; header and hash are right."""
    return write_zip(path, with_file(WEIGHTS, save({"a": np.zeros(LARGE, np.uint8)})))


def manifest_of_spaces(path: Path) -> Path:
    files, body = builtin_files()
    files = sealed(files, body)
    return write_zip(path, {**files, MANIFEST: b" " * LARGE + files[MANIFEST]})


def bzip2(path: Path) -> Path:
    files, body = builtin_files()
    return write_zip(path, sealed(files, body), zipfile.ZIP_BZIP2)


def member_longer_than_said(path: Path) -> Path:
    """The table of contents says 4 bytes, the content unpacks to more."""
    write_zip(path, {MANIFEST: b" " * LARGE})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 4)
    path.write_bytes(content)
    return path


def endless_contents(path: Path) -> Path:
    """A table of contents of a million entries."""
    entry = b"PK\x01\x02" + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    table = entry * 1_000_000
    path.write_bytes(table + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 0xFFFE, 0xFFFE, len(table), 0, 0))
    return path


def twice(path: Path) -> Path:
    files, body = builtin_files()
    write_zip(path, sealed(files, body))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(WEIGHTS, b"other")
    return path


def link_in_zip(path: Path) -> Path:
    files, body = builtin_files()
    files = sealed(files, body)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if name == WEIGHTS else stat.S_IFREG) << 16
            archive.writestr(info, content)
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link_to_zero(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def folder_with(make):
    def folder(path: Path) -> Path:
        files, body = builtin_files()
        write_folder(path, sealed(files, body))
        (path / WEIGHTS).rename(path.parent / "weights")
        make(path)
        return path

    return folder


def sparse_member(path: Path) -> Path:
    """A file of a terabyte that takes no room."""
    write_folder(path, sealed(*builtin_files()))
    with (path / "eval.onnx").open("r+b") as file:
        file.truncate(1 << 40)
    return path


def sparse_manifest(path: Path) -> Path:
    write_folder(path, sealed(*builtin_files()))
    with (path / MANIFEST).open("r+b") as file:
        file.truncate(1 << 40)
    return path


PACKS = {
    "220 MB of zeros as weights": zeros_as_weights,
    "300 MB of spaces as a manifest": manifest_of_spaces,
    "a member longer than is said": member_longer_than_said,
    "another compression": bzip2,
    "an endless table of contents": endless_contents,
    "a member twice": twice,
    "a link in a zip": link_in_zip,
    "a pipe": pipe,
    "a link to /dev/zero": link_to_zero,
    "a socket": listening,
    "a pipe in a folder": folder_with(lambda path: os.mkfifo(path / WEIGHTS)),
    "a link in a folder": folder_with(lambda path: (path / WEIGHTS).symlink_to(path.parent / "weights")),
    "a link to /dev/zero in a folder": folder_with(lambda path: (path / WEIGHTS).symlink_to("/dev/zero")),
    "a folder in a folder": folder_with(lambda path: (path / WEIGHTS).mkdir()),
    "a terabyte in a folder": sparse_member,
    "a terabyte as a manifest": sparse_manifest,
}


@pytest.mark.sampled(3)
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX")
@pytest.mark.parametrize("case", PACKS)
def test_what_is_no_regular_file_or_too_large(case, tmp_path):
    path = PACKS[case](tmp_path / "bad.edgepack")
    refused(command("pack", "verify", path, cwd=tmp_path), "bad.edgepack")


def test_a_link_to_a_pack_is_the_users_own(tmp_path):
    (tmp_path / "current.edgepack").symlink_to(BUILTIN)
    assert open_pack(tmp_path / "current.edgepack").digest == builtin_pack().digest


def test_the_check_is_cheap():
    least_s = []
    for _ in range(5):
        before_s = time.process_time()
        builtin_pack()
        least_s.append(time.process_time() - before_s)
    assert min(least_s) < 0.25  # 0.05 s on a cloud machine, of which 0.01 are hashes


# What is read by finetune, from where


def secret_weights(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "stem.conv.weight")
    tensor.external_data[0].value = "some/dir/file"
    tensor.external_data[1].value = "0"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX")
@pytest.mark.parametrize(
    "arguments", [("finetune", "PACK", "--data", ".", "--out", "run"), ("pack", "verify", "PACK")], ids=str
)
def test_no_foreign_file_gets_into_the_weights(arguments, tmp_path):
    (tmp_path / "some" / "dir").mkdir(parents=True)
    (tmp_path / "some" / "dir" / "file").write_bytes(b"secret" * 1000)
    path = write_zip(tmp_path / "bad.edgepack", with_graph("eval.onnx", secret_weights))
    ended = command(*[path if word == "PACK" else word for word in arguments], cwd=tmp_path)
    refused(ended, "points outside of the pack's weights")
    assert not (tmp_path / "run").exists()


# What only shows when it runs


def outer_sum(model: onnx.ModelProto) -> None:
    """Two small tensors make one of 16 GB."""
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 64, 1), np.float32), "low"))
    graph = model.graph
    graph.node.append(helper.make_node("Concat", ["low"] * 1000, ["column"], axis=2))
    graph.node.append(helper.make_node("Transpose", ["column"], ["row"], perm=[0, 1, 3, 2]))
    graph.node.append(helper.make_node("Add", ["column", "row"], ["large"]))
    last = next(node for node in graph.node if "logits" in node.output)
    last.output[0] = "small"
    graph.node.append(helper.make_node("ReduceSum", ["large"], ["nothing"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["small", "nothing"], ["logits"]))


def too_few_logits(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "all"
    for name, value in (("from", [0]), ("to", [3]), ("axis", [1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    model.graph.node.append(helper.make_node("Slice", ["all", "from", "to", "axis"], ["logits"]))


def does_not_fit(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "stages.2.0.conv2.weight"


@pytest.mark.sampled(3)
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX")
@pytest.mark.parametrize("change", [outer_sum, too_few_logits, does_not_fit])
def test_what_only_shows_when_it_runs_is_tried_by_verify(change, tmp_path):
    path = write_zip(tmp_path / "bad.edgepack", with_graph("eval.onnx", change))
    open_pack(path)  # its form is that of a pack
    refused(command("pack", "verify", path, cwd=tmp_path), "cannot be run")


def test_a_trial_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(trial, "limits", lambda pack: (256 << 20, 0.0))
    before_s = time.monotonic()
    with pytest.raises(PackError, match=r"signal|too long"):
        trial.try_pack(builtin_pack())
    assert time.monotonic() - before_s < 60


def test_a_quantized_variant_of_weights_that_are_no_kernels(tmp_path):
    files, body = builtin_files()
    body["backbones"]["head"]["int8"]["convolutions"][0]["weight"] = "stem.norm.weight"
    with pytest.raises(PackError, match="no kernel"):
        open_pack(write_zip(tmp_path / "bad.edgepack", sealed(files, body)))


def test_weights_may_be_halves_and_whole_numbers(tmp_path):
    """Of buffers that nothing trains; a model may have some."""
    weights = load(builtin_files()[0][WEIGHTS])
    path = write_zip(tmp_path / "a.edgepack", with_file(WEIGHTS, save({**weights, "zz.table": np.arange(3)})))
    with pytest.raises(PackError, match="does not match"):  # offsets moved: graphs and weights belong together
        open_pack(path)
