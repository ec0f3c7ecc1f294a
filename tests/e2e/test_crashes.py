from __future__ import annotations

from pathlib import Path

from benchmarks.crashes import storm
from plugin.studio import Studio


def test_nothing_confirmed_is_lost_when_backend_and_redis_are_killed(studio: Studio, tmp_path: Path) -> None:
    """Few times here; `python -m benchmarks.crashes` does it 200 times."""
    outcome = storm(studio, tmp_path, kills=6, seed=1)
    assert outcome.annotations > 0 and outcome.events > outcome.annotations
    assert outcome.differing_after_sync == 0
    assert outcome.replicas_differ == 0
