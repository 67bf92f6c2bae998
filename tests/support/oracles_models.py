"""Forward passes in float64 NumPy, written from the papers."""

import itertools

import numpy as np
from scipy.special import erf, log_softmax


def dense(params, x):
    return x @ params["weight"] + params.get("bias", 0.0)


def layer_norm(params, x):
    centered = x - x.mean(-1, keepdims=True)
    root = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return centered / root * params["scale"] + params["bias"]


def attend(params, x, num_heads, causal):
    q, k, v = (
        dense(params[name], x).reshape(len(x), num_heads, -1)
        for name in ("query", "key", "value")
    )
    logits = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    if causal:
        logits = np.where(np.tri(len(x), dtype=bool), logits, -np.inf)
    weights = np.exp(log_softmax(logits, axis=-1))
    heads = np.einsum("hts,shd->thd", weights, v)
    return dense(params["output"], heads.reshape(x.shape))


def gelu(x):
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def encoder(params, h, num_heads, causal):
    """Return what the pre-norm blocks and the norm after them make of h."""
    for block in params["blocks"]["layers"]:
        p = block["attention"]
        h = h + attend(p["attend"], layer_norm(p["norm"], h), num_heads, causal)
        p = block["mlp"]
        hidden = gelu(dense(p["expand"], layer_norm(p["norm"], h)))
        h = h + dense(p["shrink"], hidden)
    return layer_norm(params["norm"], h)


def conv(x, weight, stride=1):
    """Slide an odd square window over an image with as many zeros on each side."""
    size = len(weight)
    padded = np.pad(x, [(size // 2,) * 2] * 2 + [(0, 0)])
    counts = [(n - 1) // stride + 1 for n in x.shape[:2]]
    y = np.zeros((*counts, weight.shape[-1]))
    for i, j in itertools.product(*map(range, counts)):
        top, left = i * stride, j * stride
        content = padded[top : top + size, left : left + size]
        y[i, j] = np.tensordot(content, weight, 3)
    return y
