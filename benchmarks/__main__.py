"""`make bench`: every benchmark, one after the other."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.report import DATA

BENCHMARKS = {
    "throughput": False,
    "decoding": False,
    "accuracy": True,
    "reranking": True,
    "naming": True,
    "unknown_labels": True,
    "xmore_choices": True,
}
"""Name -> whether it needs the labelled photos of ../shared/data. Each runs in a process of its own."""


def main() -> None:
    failed = []
    for name, needs_data in BENCHMARKS.items():
        if needs_data and not DATA.is_dir():
            print(f"{name}: skipped, the labelled photos are not at {DATA}", flush=True)
        elif subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
