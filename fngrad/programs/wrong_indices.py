"""NaN in place of what a label or a token that is out of range would select.

A program cannot raise. Inside one, such an index makes a NaN, and the named scope
around it tells whoever looks for the cause why.
"""

import contextlib
from typing import Any

import jax

REASONS = {  # by scope
    "label_out_of_range": "a label is outside [0, n) for n classes",
    "token_out_of_range": "a token is outside [0, n) for n rows of an embedding",
}


def label_out_of_range() -> contextlib.AbstractContextManager[Any]:
    """Return the scope in which a label that is no class makes a loss NaN."""
    return jax.named_scope("label_out_of_range")


def token_out_of_range() -> contextlib.AbstractContextManager[Any]:
    """Return the scope in which a token that has no row makes an embedding NaN."""
    return jax.named_scope("token_out_of_range")


def reason_of(scopes: str) -> str | None:
    """Return what is wrong with the index of an operation in these scopes, if it is.

    Example:
        >>> from fngrad.programs.wrong_indices import reason_of
        >>> reason_of("jvp(vmap(layers/0))/token_out_of_range")
        'a token is outside [0, n) for n rows of an embedding'
    """
    return next((text for name, text in REASONS.items() if name in scopes), None)
