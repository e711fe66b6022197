"""How many small faults the tests notice: a sample of mutants of some folders, by cosmic-ray.

    pip install cosmic-ray
    python tools/mutation_run.py edge_sel/graphs=tests/graphs edge_sel/engines=tests/engines --sample 60 --seed 0

Works on a clone, so the checkout stays as it is. Each mutant runs the tests named beside its folder until one fails.
Mutants of annotations are not drawn: nothing executes them.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """[cosmic-ray]
module-path = {modules}
timeout = {timeout_s}
excluded-modules = []
test-command = "{python} -m pytest -x -q -n 0 -p no:cacheprovider --no-header {tests}"
[cosmic-ray.distributor]
name = "local"
"""


def annotated_lines(path: Path) -> set[int]:
    """Lines of a module that only annotate or import."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            parts = [node.returns, *(argument.annotation for argument in every)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            parts = [node]
        for part in parts:
            if part is not None:
                lines |= set(range(part.lineno, (part.end_lineno or part.lineno) + 1))
    return lines


def draw(session: Path, clone: Path, count: int, seed: int) -> int:
    """Leave a sample of the session's mutants; how many there were."""
    with closing(sqlite3.connect(session)) as database:
        rows = database.execute(
            "SELECT module_path, start_pos_row, start_pos_col, operator_name, occurrence, job_id FROM mutation_specs"
        ).fetchall()  # job ids are random: they come last, so that a seed draws the same mutants again
        annotated = {name: annotated_lines(clone / name) for name in {row[0] for row in rows}}
        executed = sorted(row for row in rows if row[1] not in annotated[row[0]])
        kept = {row[-1] for row in random.Random(seed).sample(executed, min(count, len(executed)))}
        for *_, job in rows:
            if job not in kept:
                for table in ("mutation_specs", "work_items"):
                    database.execute(f"DELETE FROM {table} WHERE job_id = ?", (job,))
        database.commit()
    return len(executed)


def mutate(folder: str, tests: str, count: int, seed: int, python: str, timeout_s: float) -> dict[str, object]:
    """The sample of one folder."""
    cosmic_ray = shutil.which("cosmic-ray", path=Path(sys.executable).parent) or shutil.which("cosmic-ray")
    if cosmic_ray is None:
        raise SystemExit("cosmic-ray is not installed: pip install cosmic-ray")
    with tempfile.TemporaryDirectory() as scratch:
        clone, session, config = (Path(scratch) / name for name in ("clone", "session.sqlite", "config.toml"))
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        modules = json.dumps([folder])
        config.write_text(CONFIG.format(modules=modules, timeout_s=timeout_s, python=python, tests=tests))
        run = [cosmic_ray, "--verbosity", "ERROR"]
        subprocess.run([*run, "init", config, session], cwd=clone, check=True)
        possible = draw(session, clone, count, seed)
        subprocess.run([*run, "exec", config, session], cwd=clone, check=True)
        with closing(sqlite3.connect(session)) as database:
            found = database.execute(
                "SELECT m.module_path, m.start_pos_row, m.operator_name, r.test_outcome FROM mutation_specs m "
                "JOIN work_results r ON m.job_id = r.job_id ORDER BY 1, 2"
            ).fetchall()
    survived = [f"{name}:{line} {operator}" for name, line, operator, outcome in found if "SURVIVED" in str(outcome)]
    return {"folder": folder, "possible": possible, "tried": len(found), "survived": survived}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="FOLDER=TESTS")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", default=sys.executable, help="that runs the tests")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until a mutant counts as noticed")
    given = parser.parse_args()
    noticed = tried = 0
    for pair in given.folders:
        folder, _, tests = pair.partition("=")
        result = mutate(folder, tests, given.sample, given.seed, given.python, given.timeout)
        caught = result["tried"] - len(result["survived"])
        noticed, tried = noticed + caught, tried + result["tried"]
        print(f"{folder}: {caught} of {result['tried']} noticed (of {result['possible']} possible, seed {given.seed})")
        for line in result["survived"]:
            print(f"  not noticed: {line}")
        sys.stdout.flush()
    print(f"together: {noticed} of {tried}, {noticed / max(1, tried):.0%}")


if __name__ == "__main__":
    main()
