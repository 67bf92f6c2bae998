"""Splits, bundled data sets, windows, and files that are damaged on purpose."""

import gzip
import hashlib
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.data as data


def test_a_split_is_an_exact_partition_that_keeps_rows_together():
    arrays = {"x": np.arange(40).reshape(20, 2), "y": (np.arange(20),)}
    parts = data.split(arrays, [0.7, 0.2, 0.1], seed=1)
    assert [len(part["x"]) for part in parts] == [14, 4, 2]
    together = np.concatenate([part["y"][0] for part in parts])
    assert sorted(together) == list(range(20))
    assert all((part["x"][:, 0] == 2 * part["y"][0]).all() for part in parts)
    assert all((np.diff(part["y"][0]) > 0).all() for part in parts)


def test_a_split_depends_on_the_seed_alone():
    first, again, other = (
        data.split(jnp.arange(30), [0.5, 0.5], seed)[0] for seed in (0, 0, 1)
    )
    assert isinstance(first, np.ndarray)
    assert first.tolist() == again.tolist() != other.tolist()


def test_fractions_may_leave_examples_out():
    parts = data.split(np.arange(10), [0.3, 0.3], seed=0)
    assert [len(part) for part in parts] == [3, 3]
    assert len(set(np.concatenate(parts))) == 6


@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_split_keeps_the_proportions(seed):
    labels = np.repeat([0, 1, 2], [100, 40, 9])
    fractions = [0.6, 0.3, 0.1]
    parts = data.split(labels, fractions, seed, stratify=labels)
    assert sum(len(part) for part in parts) == 149
    for part, fraction in zip(parts, fractions, strict=True):
        expected = fraction * np.array([100, 40, 9])
        assert abs(np.bincount(part, minlength=3) - expected).max() < 2


def test_every_example_can_be_in_every_part():
    seen = [data.split(np.arange(6), [0.5, 0.5], seed)[0] for seed in range(200)]
    counts = np.bincount(np.concatenate(seen), minlength=6)
    assert abs(counts - 100).max() < 30  # 4 deviations of a fair coin


@pytest.mark.parametrize("fractions", [[], [0.5, 0.6], [0.5, 0.0], [1.5], [-0.1, 0.2]])
def test_fractions_out_of_range_raise(fractions):
    message = "need fractions above 0 with a sum of at most 1, got "
    with pytest.raises(ValueError, match=message):
        data.split(np.arange(10), fractions, seed=0)


def test_an_empty_part_raises():
    message = r"need at least one example in each part, got sizes \[5, 0\]"
    with pytest.raises(ValueError, match=message):
        data.split(np.arange(5), [0.95, 0.05], seed=0)


def test_arrays_and_labels_of_other_lengths_raise():
    with pytest.raises(ValueError, match="need first axes of one length, got "):
        data.split({"x": np.zeros(3), "y": np.zeros(4)}, [0.5], seed=0)
    with pytest.raises(ValueError, match=r"need stratify of shape \(3,\), got \(4,\)"):
        data.split(np.zeros(3), [0.5], seed=0, stratify=np.zeros(4))


def test_standardizing_uses_the_training_part_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (40, 3)).astype(np.float32)
    x[:, 2] = 7.0
    parts = data.Splits(*({"x": x[i::3], "y": x[i::3, 0]} for i in range(3)))
    scaled = data.standardize(parts, "x")
    np.testing.assert_allclose(scaled.train["x"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.train["x"].std(0), [1, 1, 0], atol=1e-6)
    expected = (x[2::3, 0] - x[::3, 0].mean()) / x[::3, 0].std()
    np.testing.assert_allclose(scaled.test["x"][:, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(scaled.test["y"], parts.test["y"])


def content_hash(splits):
    digest = hashlib.blake2b(digest_size=8)
    for part in splits:
        for name in ("x", "y"):
            digest.update(np.ascontiguousarray(part[name]).tobytes())
    return digest.hexdigest()


RAW = {
    "digits": ((1258, 269, 270), (64,), np.int32, "60273170bf7d9918"),
    "breast_cancer": ((398, 86, 85), (30,), np.int32, "8853edc700a3f2dd"),
    "diabetes": ((309, 67, 66), (10,), np.float32, "6b66967d32af1cd7"),
}


@pytest.mark.parametrize("name", RAW)
def test_the_bundled_splits_are_fixed(name):
    sizes, features, y_dtype, expected = RAW[name]
    raw = getattr(data, name)(standardized=False)
    assert tuple(len(part["x"]) for part in raw) == sizes
    for part in raw:
        assert part["x"].shape == (len(part["y"]), *features)
        assert (part["x"].dtype, part["y"].dtype) == (np.float32, y_dtype)
    assert content_hash(raw) == expected


@pytest.mark.parametrize("name", RAW)
def test_the_bundled_parts_are_disjoint_and_complete(name):
    datasets = pytest.importorskip("sklearn.datasets")
    options = {"scaled": False} if name == "diabetes" else {}
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True, **options)
    whole = sorted(map(tuple, np.column_stack([x, y]).astype(np.float32)))
    raw = getattr(data, name)(standardized=False)
    parts = [np.column_stack([p["x"], p["y"].astype(np.float32)]) for p in raw]
    assert sorted(map(tuple, np.concatenate(parts))) == whole


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_the_bundled_classes_are_balanced_alike(name):
    parts = getattr(data, name)()
    labels = np.concatenate([part["y"] for part in parts])
    share = np.bincount(labels) / len(labels)
    for part in parts:
        counts = np.bincount(part["y"], minlength=len(share))
        assert abs(counts - share * len(part["y"])).max() <= 1.5


@pytest.mark.parametrize("name", RAW)
def test_the_bundled_sets_are_standardized_by_the_training_part(name):
    parts = getattr(data, name)()
    axis = None if name == "digits" else 0
    x = parts.train["x"].astype(np.float64)
    np.testing.assert_allclose(x.mean(axis=axis), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=axis), 1, atol=1e-6)
    assert abs(parts.test["x"].mean(axis=axis)).max() > 1e-5


def test_diabetes_targets_are_standardized_too():
    y = data.diabetes().train["y"].astype(np.float64)
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-6)


def test_digits_come_as_images_too():
    flat, images = data.digits(), data.digits(images=True)
    assert images.test["x"].shape == (270, 8, 8, 1)
    np.testing.assert_array_equal(images.test["x"].reshape(-1, 64), flat.test["x"])


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "fngrad\[data\]"'):
        data.digits()


def test_windows_are_cut_from_the_sequence():
    tokens = np.arange(100)
    windows = data.windows(tokens, length=5, batch_size=4, stride=3, seed=1)
    assert windows.size == (100 - 6) // 3 + 1
    batch = jax.jit(lambda windows, step: windows.batch(step))(windows, 2)
    starts = 3 * np.asarray(windows.indices(2))
    np.testing.assert_array_equal(batch["x"], starts[:, None] + np.arange(5))
    np.testing.assert_array_equal(batch["y"], batch["x"] + 1)


def test_windows_cover_the_sequence_and_keep_it_once():
    windows = data.windows(np.arange(31), length=3, batch_size="all")
    assert windows.size == 10
    np.testing.assert_array_equal(windows.batch(0)["x"].ravel(), np.arange(30))
    assert [leaf.size for leaf in jax.tree.leaves(windows.arrays)] == [31]


def test_fingerprints_of_windows_depend_on_length_and_stride():
    tokens = np.arange(31)
    prints = {
        data.windows(tokens, length, 2, stride=stride).fingerprint()
        for length, stride in ((3, 3), (4, 3), (3, 4), (3, 1), (2, 1))
    }
    assert len(prints) == 5


def test_windows_out_of_range_raise():
    with pytest.raises(ValueError, match=r"need 1 <= length < len\(tokens\), got leng"):
        data.windows(np.arange(5), length=5, batch_size=1)
    with pytest.raises(ValueError, match="need stride >= 1, got stride=0"):
        data.windows(np.arange(5), length=2, batch_size=1, stride=0)


def idx_bytes(array, code):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.fixture
def mnist(tmp_path):
    """Two good files, 3 images of 2 x 2 and their labels."""
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    labels = np.array([7, 0, 9], np.uint8)
    return (
        write(tmp_path, "images", idx_bytes(images, 0x08)),
        write(tmp_path, "labels", idx_bytes(labels, 0x08)),
    )


def test_idx_files_are_read_plain_and_compressed(mnist, tmp_path):
    packed = [
        write(tmp_path, path.name + ".gz", gzip.compress(path.read_bytes(), mtime=0))
        for path in mnist
    ]
    for images, labels in (mnist, packed, map(str, mnist)):
        part = data.idx_files(images, labels)
        np.testing.assert_array_equal(part["x"].ravel(), np.arange(12))
        assert (part["x"].shape, part["x"].dtype) == ((3, 2, 2), np.uint8)
        assert (part["y"].tolist(), part["y"].dtype) == ([7, 0, 9], np.int32)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(8, "u1"), (9, "i1"), (0xB, "i2"), (0xC, "i4"), (0xD, "f4"), (0xE, "f8")],
)
def test_idx_files_of_every_dtype_are_read(tmp_path, code, dtype):
    array = np.array([[1, 100], [3, 4], [127, 0]], dtype)
    got = data.idx_file(write(tmp_path, "file", idx_bytes(array, code)))
    assert got.dtype == np.dtype(dtype)
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda good: b"", "need an IDX file, .* got no bytes in .*file"),
        (lambda good: good[:3], "need an IDX file, .* got 00 00 08 in "),
        (lambda good: b"\x89PNG" + good, "need an IDX file, .* got 89 50 4e 47 in "),
        (lambda good: b"\0\0\x0a" + good[3:], "need an IDX file, .* got 00 00 0a 01"),
        (lambda good: good[:3] + b"\0" + good[4:], "got 0 axes and 11 bytes in "),
        (lambda good: good[:6], "need at least one axis .*, got 1 axes and 6 bytes"),
        (lambda good: good[:-1], r"need 11 bytes for uint8 of shape \(3,\), got 10 in"),
        (lambda good: good + b"\0", r"need 11 bytes for uint8 of shape \(3,\), got 12"),
        (
            lambda good: gzip.compress(good, mtime=0)[:-9],
            "need a whole gzip file, got .*file: ",
        ),
        (
            lambda good: gzip.compress(good, mtime=0)[:12] + b"??",
            "need a whole gzip file, got ",
        ),
        (
            lambda good: good[:4] + b"\xff\xff\xff\xff" + good[8:],
            r"need 4294967303 bytes for uint8 of shape \(4294967295,\), got 11 in",
        ),
    ],
)
def test_a_damaged_idx_file_raises(mnist, tmp_path, damage, message):
    images, labels = mnist
    damaged = write(tmp_path, "file", damage(labels.read_bytes()))
    with pytest.raises(ValueError, match=message):
        data.idx_files(images, damaged)


def test_idx_files_that_do_not_belong_together_raise(mnist, tmp_path):
    images, labels = mnist
    two = write(tmp_path, "two", idx_bytes(np.array([1, 2], np.uint8), 8))
    with pytest.raises(ValueError, match="need as many labels as images, got 2 in "):
        data.idx_files(images, two)
    with pytest.raises(
        ValueError, match=r"need integer labels .*, got uint8 of shape "
    ):
        data.idx_files(labels, images)


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.idx_file(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.csv_file(tmp_path / "nowhere", target=0)


TABLE = "age,height,ill\n31,1.75,0\n\n52, -1e3 ,1\n"


@pytest.mark.parametrize("target", ["ill", 2, -1])
@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        b"\xef\xbb\xbf" + TABLE.encode(),
        gzip.compress(TABLE.encode(), mtime=0),
    ],
)
def test_a_table_is_read(tmp_path, target, content):
    table = data.csv_file(write(tmp_path, "t.csv", content), target, classes=True)
    np.testing.assert_array_equal(table["x"], [[31, 1.75], [52, -1000]])
    assert table["y"].tolist() == [0, 1]
    assert (table["x"].dtype, table["y"].dtype) == (np.float32, np.int32)


def test_a_table_without_header_and_a_float_target(tmp_path):
    path = write(tmp_path, "t.csv", b"1;2;0.5\n3;4;1\n")
    table = data.csv_file(path, 0, header=False, delimiter=";")
    np.testing.assert_array_equal(table["x"], [[2, 0.5], [4, 1]])
    assert (table["y"].tolist(), table["y"].dtype) == ([1.0, 3.0], np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "need at least one line of numbers, got none in .*t.csv"),
        ("a,b\n", "need at least one line of numbers, got none in "),
        ("a,b\n1,2\n\n1,2,3\n", "need 2 columns, got 3 at line 4 of .*t.csv"),
        ("a,b\n1\n", "need 2 columns, got 1 at line 2 of "),
        ("a,b\n1,2\n1,x\n", "need a finite float32, got 'x' at line 3, column 'b' of "),
        ("a,b\n,2\n", "need a finite float32, got '' at line 2, column 'a' of "),
        ("a,b\nnan,2\n", "need a finite float32, got 'nan' at line 2, column 'a' of "),
        ("a,b\n1,inf\n", "need a finite float32, got 'inf' at line 2, column 'b' of "),
        (
            "a,b\n1e39,1\n",
            "need a finite float32, got '1e39' at line 2, column 'a' of ",
        ),
        ("a,b\n1_0,1\n", "need a finite float32, got '1_0' at line 2, column 'a' of "),
        (
            "a,b\n1,2.5\n",
            "need whole numbers as classes, got 2.5 at line 2, column 'b'",
        ),
        ("a,b\n1,1e10\n", "need whole numbers as classes, got 10000000000.0 at line"),
        ("b,b\n1,2\n", r"need distinct column names, got \['b', 'b'\]"),
        ("a,c\n1,2\n", r"need a column 'b', got \['a', 'c'\] in "),
        ('a,b\n1,"2\n', "need lines of columns, got .* at line 2 of "),
        ("a,b\n1,\xff\n", "need UTF-8 text, got .*t.csv: "),
    ],
)
def test_a_malformed_table_raises(tmp_path, content, message):
    path = write(tmp_path, "t.csv", content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        data.csv_file(path, "b", classes=True)


def test_a_missing_target_raises(tmp_path):
    path = write(tmp_path, "t.csv", b"1,2\n")
    with pytest.raises(ValueError, match="need a target among 2 columns, got 2 in "):
        data.csv_file(path, 2, header=False)
    with pytest.raises(ValueError, match="need a column 'b', got no header in "):
        data.csv_file(path, "b", header=False)
