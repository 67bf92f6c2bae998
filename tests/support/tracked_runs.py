"""What experiment trackers have on disk, read back: scalars, media, the config."""

import importlib
import json
import pathlib
import struct
import time
from typing import Any, NamedTuple

import numpy as np


class Found(NamedTuple):
    """The content of a run."""

    scalars: dict[str, list[tuple[int, float]]]  # (step, value) by name
    images: dict[str, np.ndarray]  # the last of each name
    histograms: dict[str, dict[str, list[float]]]  # with counts and edges
    config: Any
    status: Any  # how the run ended; None if the tracker does not record it


def pixels(path: Any) -> np.ndarray:
    import PIL.Image

    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def wandb_run(folder: pathlib.Path) -> Found:
    """Read an offline run of W&B, which has one file per process or continuation.

    W&B writes a file in a process of its own, which ends it a moment after
    ``run.finish()`` has returned.
    """
    for _ in range(1000):
        found, files = _wandb_run(folder)
        if sum(status != "preempting" for status in found.status) == files:
            return found
        time.sleep(0.02)
    raise AssertionError(f"a file of {folder} does not say how its run ended")


def _wandb_run(folder: pathlib.Path) -> tuple[Found, int]:
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({path.name for path in paths}) == 1  # the id
    found = Found({}, {}, {}, {}, [])
    records = ((path, data) for path in paths for data in _records(path.read_bytes()))
    for path, data in records:
        record = messages.Record.FromString(data)
        for update in (*record.run.config.update, *record.config.update):
            key = update.key or "/".join(update.nested_key)
            if not key.startswith("_"):
                found.config[key] = json.loads(update.value_json)
        if record.WhichOneof("record_type") == "exit":
            found.status.append(record.exit.exit_code)
        if record.WhichOneof("record_type") == "preempting":
            found.status.append("preempting")
        items: dict[str, Any] = {}
        for item in record.history.item:
            *outer, key = list(item.nested_key) or [item.key]
            place = items
            for name in outer:
                place = place.setdefault(name, {})
            place[key] = json.loads(item.value_json)
        _sort(found, items.pop("step", None), items, path.parent / "files", "path")
    return found, len(paths)


def trackio_run(folder: pathlib.Path, project: str) -> Found:
    """Read the only run of a local project of trackio."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs(project)
    config = {k: v for k, v in (run.config or {}).items() if not k.startswith("_")}
    found = Found({}, {}, {}, config, None)
    for record in SQLiteStorage.get_logs(project, run.name):
        step = record.pop("step")
        record.pop("timestamp")
        _sort(found, step, record, folder / "media", "file_path")
    return found


def mlflow_run(folder: pathlib.Path, experiment: str) -> Found:
    """Read the only run of an experiment from a store of files."""
    import mlflow

    client = mlflow.MlflowClient(folder.as_uri())
    number = client.get_experiment_by_name(experiment).experiment_id
    (run,) = client.search_runs([number])
    name = run.info.run_id
    scalars = {
        key: [(m.step, m.value) for m in client.get_metric_history(name, key)]
        for key in run.data.metrics
    }
    artifacts = pathlib.Path(client.download_artifacts(name, ""))
    images = {
        path.name.partition("+")[0].replace("#", "/"): pixels(path)
        for path in artifacts.glob("images/*.png")
    }
    histograms = {
        path.parent.relative_to(artifacts / "histograms").as_posix(): json.loads(
            path.read_text()
        )
        for path in sorted(artifacts.glob("histograms/**/*.json"))
    }
    path = artifacts / "config.json"
    config = json.loads(path.read_text()) if path.exists() else None
    return Found(
        scalars, images, histograms, (config, run.data.params), [run.info.status]
    )


def tensorboard_events(folder: pathlib.Path) -> Any:
    """Return TensorBoard's own reader of a folder, which has read all of it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def tensorboard_run(folder: pathlib.Path) -> Found:
    """Read all event files with TensorBoard's own reader."""
    events = tensorboard_events(folder)
    tags = events.Tags()
    scalars = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]
    }
    images = {}
    for tag in tags["images"]:
        path = folder / "read_back.png"
        path.write_bytes(events.Images(tag)[-1].encoded_image_string)
        images[tag] = pixels(path)
    histograms = {}
    for tag in tags["histograms"]:
        value = events.Histograms(tag)[-1].histogram_value
        edges = [value.min, *value.bucket_limit]
        histograms[tag] = vars(value) | {"counts": value.bucket, "edges": edges}
    config = None
    for tag in tags["tensors"]:
        config = json.loads(events.Tensors(tag)[-1].tensor_proto.string_val[0])
    return Found(scalars, images, histograms, config, None)


def _sort(found: Found, step: Any, items: dict[str, Any], folder: Any, path: str):
    for key, value in items.items():
        if key in ("_step", "_timestamp", "_runtime"):
            continue
        if not isinstance(value, dict):
            found.scalars.setdefault(key, []).append((step, float(value)))
        elif path in value:
            found.images[key] = pixels(folder / value[path])
        else:
            found.histograms[key] = {"counts": value["values"], "edges": value["bins"]}


def _records(content: bytes):
    """Yield the records of a file in LevelDB's log format, after W&B's header.

    Blocks of 32 KiB hold pieces: a checksum, a length, a kind (1 whole, 2 first,
    3 middle, 4 last) and the data. A block's last bytes are empty if no piece fits.
    """
    at, block, header, record = 7, 32768, 7, b""
    while at + header <= len(content):
        left = block - at % block
        _, length, kind = struct.unpack("<IHB", content[at : at + header])
        if left < header or kind == 0:
            at += left
            continue
        record += content[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):
            yield record
            record = b""
