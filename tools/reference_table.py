"""The results of ``edge-sel reference`` as a CSV file and as a table for the documentation.

edge-sel reference --scale small --data ~/cifar10 --device cpu --out runs/small
python tools/reference_table.py runs/small --csv docs/figures/small.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sel.files import write_table
from edge_sel.reference.results import list_results, overview
from edge_sel.reference.systems import SYSTEMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    results = list_results(options.results)
    if not results:
        parser.error(f"no finished results in {options.results}")
    rows = sorted(overview(results), key=lambda row: list(SYSTEMS).index(row["system"]))
    for row in rows:
        row["throttled"] = "; ".join(row["throttled"])
    if options.csv is not None:
        write_table(options.csv, rows)
    print("| system | epochs | image visits | accuracy | nominal TFLOP | executed TFLOP | net J | sparsity | active |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        net = "unavailable" if row["net_j"] is None else f"{row['net_j']:.0f}"
        accuracy = f"{100 * row['test_full']:.1f} %" + (
            f" ± {100 * row['test_full_std']:.1f}" if row["seeds"] > 1 else ""
        )
        print(
            f"| `{row['system']}` | {row['epochs']:.3g} | {row['image_visits']:.0f} | {accuracy} | "
            f"{row['nominal_flops_t']:.4f} | {row['executed_flops_t']:.2f} | {net} | "
            f"{100 * row['last_sparsity']:.0f} % | {100 * row['active_rate']:.0f} % |"
        )


if __name__ == "__main__":
    main()
