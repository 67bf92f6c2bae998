"""Small networks and their steps, with abstract states and batches."""

from typing import Any

import jax
import jax.numpy as jnp

import experiments.char_transformer as char_transformer
import fngrad as fg

SMALL_TRANSFORMER = char_transformer.SIZES["small"]


def classifier(
    model: fg.Layer,
    shape: tuple[int, ...],
    *,
    batch_size: int = 128,
    wrap: Any = lambda optimizer: optimizer,
    **options: Any,
) -> tuple[Any, Any, Any]:
    """Return a step of Adam on the cross-entropy, a state and a batch."""
    predict = fg.layers.batched(model)

    def loss_fn(params, batch):
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            predict(params, batch["x"]), batch["y"], reduction="mean"
        )

    optimizer = wrap(fg.adam(1e-3))
    batch = {
        "x": jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32),
        "y": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    step = fg.make_step(loss_fn, optimizer, **options)
    return step, abstract_state(model, optimizer), batch


def abstract_state(model: fg.Layer, optimizer: Any) -> Any:
    return jax.eval_shape(
        lambda: fg.init_state(model.init(jax.random.key(0)), optimizer, key=0)
    )


def mlp(**options: Any) -> tuple[Any, Any, Any]:
    """Return the step of an MLP on digits."""
    return classifier(fg.models.mlp((64, 128, 128, 10)), (64,), **options)


def cnn(**options: Any) -> tuple[Any, Any, Any]:
    """Return the step of a CNN on images of digits."""
    return classifier(fg.models.cnn((8, 8, 1), 10), (8, 8, 1), **options)


def transformer(**options: Any) -> tuple[Any, Any, Any]:
    """Return the step of the small model of the experiment `char_transformer`."""
    size = SMALL_TRANSFORMER
    model = char_transformer.make_model(size, 96, remat=True)
    optimizer = char_transformer.make_optimizer(size, 100)
    loss_fn = char_transformer.loss_of(model)
    step = fg.make_step(loss_fn, optimizer, metrics="loss", **options)
    tokens = jax.ShapeDtypeStruct((size.batch_size, size.length), jnp.int32)
    state = abstract_state(model, optimizer)
    return step, state, {"x": tokens, "y": tokens}
