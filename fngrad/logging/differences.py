"""What differs between two JSON objects, by dotted key."""

from typing import Any


def check_unchanged(what: str, known: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise unless two JSON objects are equal.

    Args:
        what: what they describe, for the error, such as ``"config in 'runs/a'"``.
        known: the recorded one.
        wanted: the one given now.

    Raises:
        ValueError: if they differ; every differing key is named, with both values.

    Example:
        >>> from fngrad.logging.differences import check_unchanged
        >>> check_unchanged("config", {"a": {"b": 1}}, {"a": {"b": 2}})
        Traceback (most recent call last):
        ...
        ValueError: need the config unchanged, another folder, or fit(..., \
resume="overwrite"), got differences: a.b was 1, is 2
    """
    left, right = flatten(known), flatten(wanted)
    differing = [
        f"{key} was {_show(left, key)}, is {_show(right, key)}"
        for key in sorted(left.keys() | right.keys())
        if key not in left or key not in right or left[key] != right[key]
    ]
    if differing:
        remedy = ""
        if any(line.startswith("config.") for line in differing):
            remedy = "; what may change, such as num_steps, does not belong in config"
        raise ValueError(
            f"need the {what} unchanged, another folder, or fit(..., "
            f'resume="overwrite"), got differences: {"; ".join(differing)}{remedy}'
        )


def _show(leaves: dict[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "absent"


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON objects by dotted key.

    Args:
        value: a JSON object; an empty one inside it is a leaf.
        name: of the object itself, the beginning of every key.

    Example:
        >>> from fngrad.logging.differences import flatten
        >>> flatten({"rate": 0.1, "model": {"width": 8}})
        {'rate': 0.1, 'model.width': 8}
    """
    if not isinstance(value, dict) or (name and not value):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= flatten(item, f"{name}.{key}" if name else key)
    return leaves
