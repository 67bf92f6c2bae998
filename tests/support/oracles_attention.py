"""Attention in float64 by loops over heads and positions, from the papers."""

import numpy as np


def turned(x, position, base=10000.0, fraction=1.0, pairing="half_split"):
    """Multiply a vector by the complex numbers of RoPE, pair by pair."""
    size = int(fraction * len(x)) // 2 * 2
    y = np.array(x, np.float64)
    for i in range(size // 2):
        interleaved = pairing == "interleaved"
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + size // 2)
        z = complex(x[a], x[b]) * np.exp(1j * position * base ** (-2 * i / size))
        y[a], y[b] = z.real, z.imag
    return y


def slopes(num_heads):
    """Return ALiBi's slopes as the authors' code defines them."""
    if num_heads & (num_heads - 1) == 0:
        ratio = 2 ** (-8 / num_heads)
        return [ratio ** (i + 1) for i in range(num_heads)]
    power = 2 ** int(np.floor(np.log2(num_heads)))
    return slopes(power) + slopes(2 * power)[0::2][: num_heads - power]


def swish(x):
    return x / (1 + np.exp(-x))


def rms_norm(scale, x, eps=1e-6):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * scale


def attend(params, x, num_heads, num_kv_heads, sees, rotate=None, slope=None):
    """Return y and the weights of self-attention.

    Args:
        params: of query, key, value and output, in float64.
        x: shape (length, features).
        num_heads: of queries.
        num_kv_heads: of keys and values.
        sees: (t, s) -> whether position t attends to s.
        rotate: (vector, position) -> vector, or None.
        slope: of each head, or None.
    """

    def project(name, value, heads):
        y = value @ params[name]["weight"] + params[name].get("bias", 0.0)
        return y.reshape(len(value), heads, -1) if heads else y

    q = project("query", x, num_heads)
    k = project("key", x, num_kv_heads)
    v = project("value", x, num_kv_heads)
    if rotate is not None:
        q, k = (
            np.array([[rotate(head, t) for head in row] for t, row in enumerate(a)])
            for a in (q, k)
        )
    weights = np.zeros((num_heads, len(x), len(x)))
    out = np.zeros_like(q)
    for head in range(num_heads):
        shared = head // (num_heads // num_kv_heads)
        for t in range(len(x)):
            seen = [s for s in range(len(x)) if sees(t, s)]
            logits = [q[t, head] @ k[s, shared] / np.sqrt(q.shape[-1]) for s in seen]
            if slope is not None:
                biases = [slope[head] * abs(t - s) for s in seen]
                logits = np.subtract(logits, biases)
            weights[head, t, seen] = np.exp(logits) / np.sum(np.exp(logits))
            out[t, head] = weights[head, t] @ v[:, shared]
    return project("output", out.reshape(len(x), -1), None), weights


def decoder(params, tokens, num_heads, num_kv_heads, sees):
    """Return the logits of LLaMA's formula, of blocks with rotary, RMS norm and gates.

    Args:
        params: of the model, in float64.
        tokens: shape (length,).
        num_heads: of queries.
        num_kv_heads: of keys and values.
        sees: as for `attend`.
    """
    h = params["tokens"]["weight"][tokens]
    for block in params["blocks"]["layers"]:
        p = block["attention"]
        x = rms_norm(p["norm"]["scale"], h)
        heads = num_heads, num_kv_heads
        h = h + attend(p["attend"], x, *heads, sees, rotate=turned)[0]
        p = block["mlp"]
        x, p = rms_norm(p["norm"]["scale"], h), p["swiglu"]
        units = swish(x @ p["gate"]["weight"]) * (x @ p["expand"]["weight"])
        h = h + units @ p["shrink"]["weight"]
    h = rms_norm(params["norm"]["scale"], h)
    head = (
        params["head"]["weight"] if "head" in params else params["tokens"]["weight"].T
    )
    return h @ head
