"""NaN in place of what an index out of range would select, or of what overflowed.

A program cannot raise. Where its numbers mean nothing it makes a NaN, and the named
scope around it tells whoever looks for the cause why.
"""

LABEL, TOKEN = "label_out_of_range", "token_out_of_range"  # named scopes
ATTENTION = "attention_overflow"
REASONS = {
    LABEL: "a label is outside [0, n) for n classes",
    TOKEN: "a token is outside [0, n) for n rows of an embedding",
    ATTENTION: "an input of attention is not finite, or one of its queries, keys, "
    "values or logits overflows",
}


def reason_of(scopes: str) -> str | None:
    """Return why an operation in these scopes makes a NaN on purpose, if it does.

    Example:
        >>> from fngrad.programs.reasons_of_nans import reason_of
        >>> reason_of("jvp(vmap(layers/0))/token_out_of_range")
        'a token is outside [0, n) for n rows of an embedding'
    """
    return next((text for name, text in REASONS.items() if name in scopes), None)
