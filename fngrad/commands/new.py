"""`fngrad new`: a runnable experiment to start from."""

import string
from pathlib import Path

_TEMPLATE = string.Template('''"""$title: a network learns handwritten digits."""

import dataclasses

import jax
import tyro

import fngrad as fg


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 3e-3
    width: int = 64
    epochs: int = 20
    seed: int = 0
    sweep: bool = False  # instead: four learning rates, five seeds each


def main(config: Config) -> None:
    digits = fg.data.digits()
    data = fg.data.from_arrays(digits.train, batch_size=64)
    model = fg.models.mlp((64, config.width, 10))
    predict = fg.layers.batched(model)

    def loss_fn(params, batch):
        logits, y = predict(params, batch["x"]), batch["y"]
        losses = fg.losses.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean()

    def metric_fn(params, batch):
        logits, y = predict(params, batch["x"]), batch["y"]
        loss = fg.metrics.log_loss(logits, y)
        return {"loss": loss, "accuracy": fg.metrics.accuracy(logits, y)}

    def begin(learning_rate, key):
        k_params, k_run, k_data = jax.random.split(key, 3)
        optimizer = fg.adam(learning_rate)
        state = fg.init_state(model.init(k_params), optimizer, k_run)
        return fg.make_step(loss_fn, optimizer), state, data.reseed(k_data)

    def train_fn(point, key, validation):
        step, state, batches = begin(point["learning_rate"], key)
        options = {"metric_fn": metric_fn, "eval_data": validation}
        step, steps = fg.steps.freeze_diverged(step), data.steps(config.epochs)
        return fg.run(step, state, batches, steps, **options)

    if config.sweep:
        points = fg.sweeps.grid(learning_rate=[1e-3, 3e-3, 1e-2, 3e-2])
        result = fg.sweep(train_fn, points, keys=5, args=(digits.validation,))
        print(fg.sweeps.table(result, also=["val/accuracy"]))
        return
    result = fg.fit(
        *begin(config.learning_rate, jax.random.key(config.seed)),
        num_epochs=config.epochs,
        metric_fn=metric_fn,
        eval_data=digits.validation,
        run_dir=fg.logging.new_run("runs/$name"),
        config=config,
        save_minutes=1,
    )
    print(result)
    print("test:", fg.evaluate(metric_fn, result.state, digits.test))


if __name__ == "__main__":
    main(tyro.cli(Config))
''')


def new(name: str, /) -> int:
    """Write a runnable experiment, NAME.py, into the current folder.

    Args:
        name: of the experiment, which may begin with a folder.
    """
    path = Path(name).with_suffix(".py")
    if not path.stem.isidentifier():
        raise ValueError(f"need a name that Python can import, got {path.stem!r}")
    if path.exists():
        raise ValueError(f"need a name that is not taken, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(experiment(path.stem), encoding="utf-8")
    print(f"wrote {path}: python {path} --help")
    return 0


def experiment(name: str) -> str:
    """Return the text of an experiment.

    Args:
        name: its own, a Python identifier.
    """
    title = name.replace("_", " ").capitalize()
    return _TEMPLATE.substitute(title=title, name=name)
