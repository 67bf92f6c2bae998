"""The networks and Adam of the hand-written script of `cold_start`, in JAX alone.

JAX is imported when a function is called, so that a script can time its import.
"""

from typing import Any

SIZES = {"mlp": (64, 128, 128, 10), "sweep": (64, 32, 10)}
VOCAB, LENGTH, WIDTH, HEADS, DEPTH = 65, 32, 64, 4, 4  # of the transformer


def hand_adam(loss_fn: Any) -> tuple[Any, Any]:
    """Return Adam's first state and its step, written out."""
    import jax
    import jax.numpy as jnp

    def start(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return params, zeros, jax.tree.map(jnp.copy, zeros), jnp.float32(0)

    def step(state: Any, x: Any, y: Any, rate: Any) -> Any:
        params, mu, nu, t = state
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        t = t + 1
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mu, grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, nu, grads)

        def moved(p: Any, m: Any, v: Any) -> Any:
            root = jnp.sqrt(v / (1 - 0.999**t))
            return p - rate * (m / (1 - 0.9**t)) / (root + 1e-8)

        return (jax.tree.map(moved, params, mu, nu), mu, nu, t), loss

    return start, step


def hand_mlp(model: str) -> tuple[Any, Any]:
    """Return the first parameters by key, and the network."""
    import jax

    def forward(params: Any, x: Any) -> Any:
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    return lambda key: hand_dense(key, SIZES[model]), forward


def hand_dense(key: Any, sizes: tuple[int, ...]) -> list[Any]:
    """Return weights and biases of dense layers."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(key, len(sizes) - 1)
    return [
        ((2 / a) ** 0.5 * jax.random.normal(k, (a, b)), jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def hand_cnn(model: str) -> tuple[Any, Any]:
    """Return the first parameters by key, and the network."""
    import jax
    import jax.numpy as jnp

    def init(key: Any) -> Any:
        k1, k2, k3 = jax.random.split(key, 3)
        first = (2 / 9) ** 0.5 * jax.random.normal(k1, (3, 3, 1, 16))
        second = (2 / 144) ** 0.5 * jax.random.normal(k2, (3, 3, 16, 32))
        kernels = [(first, jnp.zeros(16)), (second, jnp.zeros(32))]
        return kernels, hand_dense(k3, (128, 64, 10))

    def forward(params: Any, x: Any) -> Any:
        for w, b in params[0]:
            x = jax.lax.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + b)
            window = (1, 2, 2, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        (w1, b1), (w2, b2) = params[1]
        return jax.nn.relu(x.reshape(len(x), -1) @ w1 + b1) @ w2 + b2

    return init, forward


def hand_transformer(model: str) -> tuple[Any, Any]:
    """Return the first parameters by key, and the network."""
    import jax
    import jax.numpy as jnp

    shapes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH)}
    shapes |= {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    ends = {"tokens": (VOCAB, WIDTH), "positions": (LENGTH, WIDTH)}
    ends |= {"head": (WIDTH, VOCAB)}

    def init(key: Any) -> Any:
        def draw(key: Any, shapes: dict[str, Any]) -> Any:
            keys = jax.random.split(key, len(shapes))
            pairs = zip(keys, shapes.items(), strict=True)
            return {n: 0.02 * jax.random.normal(k, s) for k, (n, s) in pairs}

        first, *rest = jax.random.split(key, DEPTH + 1)
        return draw(first, ends), [draw(k, shapes) for k in rest]

    def norm(h: Any) -> Any:
        h = h - h.mean(-1, keepdims=True)
        return h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-5)

    def attend(block: Any, h: Any) -> Any:
        qkv = (norm(h) @ block["qkv"]).reshape(*h.shape[:2], 3, HEADS, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (WIDTH / HEADS) ** 0.5
        mask = jnp.tril(jnp.ones((h.shape[1], h.shape[1]), bool))
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(h.shape) @ block["out"]

    def forward(params: Any, x: Any) -> Any:
        outer, blocks = params
        h = outer["tokens"][x] + outer["positions"]
        for block in blocks:
            h = h + attend(block, h)
            h = h + jax.nn.gelu(norm(h) @ block["up"]) @ block["down"]
        return norm(h) @ outer["head"]

    return init, forward
