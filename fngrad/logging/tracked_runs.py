"""Runs of Weights & Biases and of trackio, which has the same interface.

Both keep what was logged: neither can remove the records of later steps, so after a
rollback they hold the abandoned steps too, and after a kill the steps since the last
checkpoint twice.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fngrad.files.json_values import to_json
from fngrad.logging.histograms import histogram_of
from fngrad.logging.media import MediaLogger, as_image, nonfinite_counts
from fngrad.logging.writers import floats_of
from fngrad.programs.optional_imports import import_extra


def wandb(project: str, **options: Any) -> MediaLogger:
    """Log to a run of Weights & Biases.

    The run begins at this call and is finished with the run of `fngrad.fit`, as failed
    if an exception ended that. Its charts are over ``step``. A second run of `fit` with
    the same logger continues it. With ``mode="offline"``, or ``WANDB_MODE=offline``, it
    is written below ``dir`` for ``wandb sync``.

    Args:
        project: where the run belongs.
        options: of ``wandb.init``, such as ``name``, ``config``, ``tags``, ``mode`` and
            ``dir``. A process that resumes a killed one continues its run with
            ``id=...`` and ``resume="allow"``.

    Raises:
        ImportError: if wandb is missing (``pip install "fngrad[wandb]"``), or pillow
            for images.
        TypeError: at a call, if a value is not a number; its name is given.
        ValueError: at a call, if an image is not one, see `fngrad.logging.media`.
        Exception: whatever wandb raises.

    References:
        https://docs.wandb.ai/ref/python
    """
    library = import_extra("wandb", "wandb")

    def begin(**again: Any) -> Any:
        run = library.init(
            project=project, **{"reinit": "create_new", **options, **again}
        )
        run.define_metric("*", step_metric="step")
        return run

    service = _Service(
        library,
        begin,
        lambda run: {"id": run.id, "resume": "allow"},
        lambda run, step, values: run.log({"step": step, **values}),
        lambda run, config: run.config.update(config, allow_val_change=True),
        lambda run, has_failed: run.finish(exit_code=int(has_failed)),
    )
    return _logger(service, f"wandb({project!r})")


def trackio(project: str, **options: Any) -> MediaLogger:
    """Log to a run of trackio, which has the interface of `wandb`.

    The run begins at this call and is finished with the run of `fngrad.fit`. A second
    run of `fit` with the same logger continues it. Without ``space_id`` or
    ``server_url`` it is in a local database, in the folder ``TRACKIO_DIR``, and
    ``trackio show`` opens it. trackio has one open run per process: another logger
    finishes the one before.

    Args:
        project: where the run belongs.
        options: of ``trackio.init``, such as ``name``, ``config``, ``group`` and
            ``space_id``. A process that resumes a killed one continues its run with
            ``name=...`` and ``resume="allow"``.

    Raises:
        ImportError: if trackio is missing (``pip install "fngrad[trackio]"``).
        TypeError: at a call, if a value is not a number; its name is given.
        ValueError: at a call, if an image is not one, see `fngrad.logging.media`, or
            if a config comes after the first record.
        Exception: whatever trackio raises.

    References:
        https://huggingface.co/docs/trackio
    """
    library = import_extra("trackio", "trackio")
    service = _Service(
        library,
        lambda **again: library.init(project=project, **{**options, **again}),
        lambda run: {"name": run.name, "resume": "must", "config": _own(run.config)},
        lambda run, step, values: run.log(values, step=step),
        lambda run, config: run.config.update(config),
        lambda run, has_failed: run.finish(),
    )
    return _logger(service, f"trackio({project!r})")


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, without trackio's entries, for the run that continues."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


class _Service(NamedTuple):
    """What differs between the libraries."""

    library: Any  # with the types Image and Histogram
    begin: Callable[..., Any]  # returns a run
    again: Callable[[Any], dict[str, Any]]  # the options that continue a run
    log: Callable[[Any, int, dict[str, Any]], None]
    configure: Callable[[Any, dict[str, Any]], None]
    finish: Callable[[Any, bool], None]


def _logger(service: _Service, name: str) -> MediaLogger:
    """Return the logger of a run, which begins now."""
    runs = [service.begin()]
    is_open = [True]

    def opened() -> Any:
        if not is_open[0]:
            runs[0] = service.begin(**service.again(runs[0]))
            is_open[0] = True
        return runs[0]

    def log(step: int, values: dict[str, Any]) -> None:
        service.log(opened(), int(step), values)

    def images(step: int, images: Mapping[str, Any]) -> None:
        pixels = {name: as_image(name, image) for name, image in images.items()}
        make = service.library.Image
        # Both take gray pixels without the axis of channels.
        log(
            step,
            {k: make(x[..., 0] if x.shape[-1] == 1 else x) for k, x in pixels.items()},
        )

    def histograms(step: int, histograms: Mapping[str, Any]) -> None:
        found = {name: histogram_of(name, x) for name, x in histograms.items()}
        make = service.library.Histogram
        made = {k: make(np_histogram=(x.counts, x.edges)) for k, x in found.items()}
        log(step, made | nonfinite_counts(found))

    def end(has_failed: bool) -> None:
        if is_open[0]:
            is_open[0] = False
            service.finish(runs[0], has_failed)

    return MediaLogger(
        lambda step, values: log(step, floats_of(step, values)),
        lambda: end(False),
        name=name,
        images=images,
        histograms=histograms,
        configure=lambda config: service.configure(opened(), to_json(config, "config")),
        fail=lambda: end(True),
    )
