"""The lines that every benchmark prints: hardware, versions, a table, and the same as JSON in benchmarks/results/."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
"""Photos with labels that developers have; where they are missing, a benchmark that needs them says so and ends."""


def hardware() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "faiss-cpu"))
    processor = names[0] if names else platform.processor()
    return f"{os.cpu_count()} cores, {processor}; Python {platform.python_version()}, {packages}"


def write(name: str, header: list[str], rows: list[list[Any]], **more: Any) -> None:
    """Print a Markdown table and keep it as JSON."""
    print(f"\n## {name}\n{hardware()}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row) + " |")
    for key, value in more.items():
        print(f"{key}: {value}")
    RESULTS.mkdir(exist_ok=True)
    content = {"name": name, "hardware": hardware(), "header": header, "rows": rows, **more}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def require_data() -> None:
    if not DATA.is_dir():
        raise SystemExit(f"this benchmark needs the labelled photos of ../shared/data, which are not at {DATA}")
