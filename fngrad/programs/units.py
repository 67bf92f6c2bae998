"""Numbers with units, for people."""


def size_text(count: float) -> str:
    """Return a number of bytes in the largest unit in which it is at least one.

    Example:
        >>> from fngrad.programs.units import size_text
        >>> size_text(512), size_text(1536), size_text(3 << 30)
        ('512 B', '1.5 KiB', '3.0 GiB')
    """
    number, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


def seconds_text(seconds: float) -> str:
    """Write a time.

    Example:
        >>> from fngrad.programs.units import seconds_text
        >>> seconds_text(0.0123), seconds_text(4.56), seconds_text(3723)
        ('12.3 ms', '4.56 s', '1:02:03')
    """
    if seconds >= 100:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
    size, unit = next((u for u in units if seconds >= u[0]), units[-1])
    return f"{seconds / size:.3g} {unit}"
