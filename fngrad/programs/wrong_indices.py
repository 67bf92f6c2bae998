"""NaN in place of what a label or a token that is out of range would select.

A program cannot raise. Inside one, such an index makes a NaN, and the named scope
around it tells whoever looks for the cause why.
"""

LABEL, TOKEN = "label_out_of_range", "token_out_of_range"  # named scopes
REASONS = {
    LABEL: "a label is outside [0, n) for n classes",
    TOKEN: "a token is outside [0, n) for n rows of an embedding",
}


def reason_of(scopes: str) -> str | None:
    """Return what is wrong with the index of an operation in these scopes, if it is.

    Example:
        >>> from fngrad.programs.wrong_indices import reason_of
        >>> reason_of("jvp(vmap(layers/0))/token_out_of_range")
        'a token is outside [0, n) for n rows of an embedding'
    """
    return next((text for name, text in REASONS.items() if name in scopes), None)
