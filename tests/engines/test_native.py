"""What onnxruntime's native part says while it is imported: remarks on the machine are dropped, all else is passed on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sel.engines.native import REMARK

ROOT = Path(__file__).parents[2]
REMARKS = (
    "Error in cpuinfo: failed to parse the list of possible processors in /sys/devices/system/cpu/possible",
    "Error in cpuinfo: failed to parse both lists of possible and present processors",
    "Warning in cpuinfo: chipset detection failed: /proc/cpuinfo Hardware string did not match known signatures",
    "2026-01-01 00:00:00.0 [W:onnxruntime:Default, cpuid_info.cc:91 LogEarlyWarning] Unknown CPU vendor. cpuinfo_vendor value: 0",
    "\x1b[0;93m2026-01-01 00:00:00.0 [W:onnxruntime:Default, device_discovery.cc:211 DiscoverDevicesForPlatform] GPU device "
    'discovery failed: ReadFileContents Failed to open file: "/sys/class/drm/card0/device/vendor"\x1b[m',
)
"""As people have reported them: pytorch/cpuinfo issue 143, microsoft/onnxruntime issues 10038 and 23957."""
OTHERS = (
    "Illegal instruction",
    "terminate called after throwing an instance of 'onnxruntime::OnnxRuntimeException'",
    "2026-01-01 00:00:00.0 [E:onnxruntime:Default, env.cc:12 Init] no room",
    "a line that tells of an Error in cpuinfo: later on",
)


def imported(folder: Path, *, before: str = "pass") -> str:
    """The standard error of a process that imports a runtime which writes all of these lines, after other code."""
    package = folder / "onnxruntime"
    package.mkdir()
    remarks = "\n".join((*REMARKS, *OTHERS)) + "\n"
    (package / "__init__.py").write_text(
        f"import os\ntry: os.write(2, {remarks.encode()!r})\nexcept OSError: pass\nname = 'this one'\n"
    )
    code = f"import os, sys, tempfile; sys.path.insert(0, sys.argv[1]); {before}; "
    code += "from edge_sel.engines.native import ort; print(ort.name)"
    result = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "this one\n"), result.stderr
    return result.stderr


def test_remarks_are_dropped_and_all_else_is_passed_on(tmp_path):
    assert imported(tmp_path) == "\n".join(OTHERS) + "\n"


def test_a_closed_standard_error_is_no_reason_to_fail(tmp_path):
    imported(tmp_path, before="os.close(2)")


def test_without_a_folder_for_temporary_files_everything_is_passed_on(tmp_path):
    """As on a read-only root."""
    remarks = imported(tmp_path, before="tempfile.tempdir = '/no/such/folder'")
    assert remarks == "\n".join((*REMARKS, *OTHERS)) + "\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the runtime keeps its number in another folder")
def test_the_runtime_sends_no_figures_about_its_use(tmp_path):
    """Wheels since 1.31 do where nothing says no, and write a number of the machine first; older ones never do."""
    environment = {**os.environ, "HOME": str(tmp_path)}
    del environment["ORT_DISABLE_TELEMETRY"]
    code = "from edge_sel.engines.native import ort; ort.InferenceSession"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", REMARKS)
def test_each_of_them_is_a_remark(line):
    assert REMARK.match(line.encode())
