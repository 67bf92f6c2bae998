"""Run folders written by hand, as `fngrad.fit` writes them."""

import json
from pathlib import Path
from typing import Any

SECONDS = {"tracing": 0.5, "compiling": 1.0, "stepping": 2.5}
LOSSES = (1.0, 0.25, 0.5)


def write_run(
    path: Path,
    config: dict[str, Any] | None = None,
    losses: tuple[Any, ...] = LOSSES,
    **facts: Any,
) -> Path:
    """Write a run that logged and evaluated every ten steps; return its folder."""
    manifest = {
        "started": "2026-01-01T10:00:00+00:00",
        "ended": "2026-01-01T11:01:05+00:00",
        "resumed": [],
        "stopped": "completed",
        "command": "python train.py --note 'a b'",
        "versions": {"jax": "0.9"},
        "seconds": SECONDS,
        **facts,
    }
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "config.json").write_text(json.dumps(config or {}))
    records = [
        {"step": 10 * i, "loss": loss, "val/loss": loss, "val/score": i}
        for i, loss in enumerate(losses, 1)
    ]
    write_records(path, records)
    return path


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl."""
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (path / "metrics.jsonl").write_text(lines)
