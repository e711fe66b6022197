"""Run one command and write down what it took: ``python launch.py REPORT FOLDER COMMAND [ARGUMENT]...``.

A process of its own because a child inherits the peak memory of the process that started it, and this one is small.
CPU time and peak memory are the kernel's account of the command, those of the processes it waited for included.
What the command prints goes to ``stdout`` and ``stderr`` in the folder.
"""

import json
import os
import subprocess
import sys
import time

report, folder, *command = sys.argv[1:]
with open(f"{folder}/stdout", "wb") as stdout, open(f"{folder}/stderr", "wb+") as stderr:  # noqa: PTH123
    start_s = time.monotonic()
    child = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.monotonic() - start_s
    stderr.seek(0)
    lines = stderr.read().decode("utf-8", "replace").split("\n")
figures = {
    "exit": os.waitstatus_to_exitcode(status),
    "cpu_s": usage.ru_utime + usage.ru_stime,
    "wall_s": wall_s,
    "rss_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
    "last_words": next((line.strip() for line in reversed(lines) if line.strip()), ""),
}
with open(report, "w", encoding="utf-8") as file:  # noqa: PTH123
    json.dump(figures, file)
