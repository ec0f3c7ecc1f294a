"""What the end-to-end tests share besides their fixtures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from backend.child_process import ChildProcess

ROOT = Path(__file__).parents[2]
BASIC_AUTH = "studio:a-secret-for-tests"


@dataclass(frozen=True)
class Backend:
    url: str
    process: ChildProcess

    def metric(self, name: str, **labels: str) -> float:
        """The value of a counter now; 0 for one that has not counted yet."""
        text = httpx.get(f"{self.url}/metrics").raise_for_status().text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
