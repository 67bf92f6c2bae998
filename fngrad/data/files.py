"""Arrays from files: the IDX format of MNIST, and tables of numbers.

Both may be compressed with gzip, which is detected from the content. A malformed file
raises.
"""

import csv
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

FLOAT32_MAX = float(np.finfo(np.float32).max)

PathLike: TypeAlias = str | os.PathLike[str]

IDX_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


def idx_files(images: PathLike, labels: PathLike) -> dict[str, np.ndarray]:
    """Return the pair of files that MNIST and its relatives come in.

    Args:
        images: path of an IDX file of shape ``(n, ...)``, plain or gzip.
        labels: path of an IDX file of integers, shape (n,), plain or gzip.

    Returns:
        ``x`` in the file's dtype (MNIST: uint8, shape (n, 28, 28), from 0 to 255) and
        ``y``, int32.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a file is damaged (see `idx_file`), or the labels are not
            integers of shape (n,), one for each image.

    Example:
        >>> import fngrad.data as data
        >>> def load(part):  # "train" or "t10k"
        ...     return data.idx_files(
        ...         f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz")
    """
    x, y = idx_file(images), idx_file(labels)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"need integer labels of shape (n,), got {y.dtype} of shape {y.shape} "
            f"in {os.fspath(labels)}"
        )
    if len(x) != len(y):
        raise ValueError(
            f"need as many labels as images, got {len(y)} in {os.fspath(labels)} and "
            f"{len(x)} in {os.fspath(images)}"
        )
    return {"x": x, "y": y.astype(np.int32)}


def idx_file(path: PathLike) -> np.ndarray:
    """Return the array of an IDX file, in the machine's byte order.

    The format: two zero bytes, one for the dtype, one for the number of axes; the
    length of each axis as a big-endian uint32; the values, big-endian.

    Args:
        path: plain or gzip.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not an IDX file, or is shorter or longer than its header
            states.

    References:
        Y. LeCun, C. Cortes, C. Burges, "The MNIST database",
        http://yann.lecun.com/exdb/mnist/ (the format is described at its end).
    """
    content, name = _read(path), os.fspath(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_DTYPES:
        raise ValueError(
            "need an IDX file, which begins with 00 00, a dtype "
            f"({', '.join(f'{code:02x}' for code in IDX_DTYPES)}) and a number of "
            f"axes, got {content[:4].hex(' ') or 'no bytes'} in {name}"
        )
    dtype, axes = IDX_DTYPES[content[2]], content[3]
    begin = 4 + 4 * axes
    if axes == 0 or len(content) < begin:
        raise ValueError(
            f"need at least one axis and the length of each, got {axes} axes and "
            f"{len(content)} bytes in {name}"
        )
    shape = tuple(np.frombuffer(content[4:begin], ">u4").tolist())
    size = begin + math.prod(shape) * dtype.itemsize
    if len(content) != size:
        raise ValueError(
            f"need {size} bytes for {dtype.name} of shape {shape}, "
            f"got {len(content)} in {name}"
        )
    values = np.frombuffer(content[begin:], dtype)
    return values.astype(dtype.newbyteorder("=")).reshape(shape)


def csv_file(
    path: PathLike,
    target: str | int,
    *,
    classes: bool = False,
    header: bool = True,
    delimiter: str = ",",
) -> dict[str, np.ndarray]:
    """Return a table of numbers: one column to predict, the others to predict from.

    Args:
        path: UTF-8 text, plain or gzip; blank lines are left out.
        target: the column to predict, by its name in the header, or by its position
            (from 0; from the end if negative).
        classes: whether the target counts classes, as int32, or is float32.
        header: whether the first line names the columns.
        delimiter: what stands between two columns.

    Returns:
        ``x`` float32, shape (n, columns - 1), in the order of the file, and ``y``,
        shape (n,).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not such a table; the message names the line, and the
            column that lacks a finite float32 (for a class, a whole number).

    Example:
        >>> import pathlib, tempfile
        >>> import fngrad.data as data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "table.csv")
        ...     _ = path.write_text("age,height,ill\\n31,1.7,0\\n52,1.8,1\\n")
        ...     table = data.csv_file(path, target="ill", classes=True)
        >>> print(table["y"], table["x"].shape)
        [0 1] (2, 2)
    """
    name = os.fspath(path)
    lines = _csv_lines(path, delimiter)
    names = [cell.strip() for cell in next(lines, (0, []))[1]] if header else None
    rows = list(lines)
    if not rows:
        raise ValueError(f"need at least one line of numbers, got none in {name}")
    width = len(rows[0][1]) if names is None else len(names)
    column = _column(target, names, width, name)
    if width < 2:
        raise ValueError(
            f"need a column to predict from besides the target {target!r}, "
            f"got none in {name}"
        )
    columns = [str(i) for i in range(width)] if names is None else names
    table = np.array([_numbers(row, line, columns, name) for line, row in rows])
    y = table[:, column]
    if classes:
        _check_whole(y, [line for line, _ in rows], columns[column], name)
    return {
        "x": np.delete(table, column, axis=1).astype(np.float32),
        "y": y.astype(np.int32 if classes else np.float32),
    }


def _read(path: PathLike) -> bytes:
    with open(path, "rb") as file:
        content = file.read()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"need a whole gzip file, got {os.fspath(path)}: {error}"
        ) from error


def _csv_lines(path: PathLike, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    name = os.fspath(path)
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"need UTF-8 text, got {name}: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"need lines of columns, got {error} at line {reader.line_num} of {name}"
        ) from error


def _column(target: str | int, names: list[str] | None, width: int, file: str) -> int:
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f"need distinct column names, got {names} in {file}")
    if isinstance(target, str):
        if names is None or target not in names:
            found = "no header" if names is None else names
            raise ValueError(f"need a column {target!r}, got {found} in {file}")
        return names.index(target)
    if not -width <= target < width:
        raise ValueError(f"need a target among {width} columns, got {target} in {file}")
    return target % width


def _numbers(row: list[str], line: int, columns: list[str], file: str) -> list[float]:
    if len(row) != len(columns):
        raise ValueError(
            f"need {len(columns)} columns, got {len(row)} at line {line} of {file}"
        )
    values = [_number(cell) for cell in row]
    for value, cell, column in zip(values, row, columns, strict=True):
        if not abs(value) <= FLOAT32_MAX:
            raise ValueError(
                f"need a finite float32, got {cell!r} at line {line}, "
                f"column {column!r} of {file}"
            )
    return values


def _number(cell: str) -> float:
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _check_whole(y: np.ndarray, lines: list[int], column: str, file: str) -> None:
    is_class = (y == np.floor(y)) & (np.abs(y) < 2**31)
    if not is_class.all():
        first = int(np.argmin(is_class))
        raise ValueError(
            f"need whole numbers as classes, got {y[first]} at line {lines[first]}, "
            f"column {column!r} of {file}"
        )
