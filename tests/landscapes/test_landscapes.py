"""The critical points of the catalog, descents, slices, planes and plots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_text import literal

import fngrad as fg
import fngrad.landscapes as landscapes
from fngrad.landscapes import CATALOG

KINDS = "minima", "saddles"


@jax.jit
def derivatives():
    """Return the slopes and Hessians at the points of the catalog, by name and kind."""

    def at(place, kind):
        points = jnp.array(getattr(place, kind)).reshape(-1, len(place.lower))
        return jax.vmap(lambda x: (jax.grad(place.f)(x), jax.hessian(place.f)(x)))(
            points
        )

    return {
        (name, kind): at(place, kind)
        for name, place in CATALOG.items()
        for kind in KINDS
        if getattr(place, kind)
    }


def test_minima_and_saddles_of_the_catalog_are_critical_points(x64):
    for (name, kind), (slopes, hessians) in derivatives().items():
        place, which = CATALOG[name], f"{kind} of {name}"
        np.testing.assert_allclose(slopes, 0.0, atol=3e-5, err_msg=which)
        curvatures = np.linalg.eigvalsh(hessians)
        if kind == "minima":
            assert np.all(curvatures > 0), which
        elif name == "monkey_saddle":
            np.testing.assert_array_equal(curvatures, 0.0)
        else:
            assert np.all(curvatures[:, 0] < 0), which
            assert np.all(curvatures[:, -1] > 0), which
        points = np.array(getattr(place, kind))
        assert np.all(np.array(place.lower) < points), which
        assert np.all(points < np.array(place.upper)), which


@pytest.mark.parametrize(
    "name", ["rosenbrock", "beale", "himmelblau", "rastrigin", "quadratic"]
)
def test_the_global_minimum_is_zero(x64, name):
    for point in CATALOG[name].minima:
        np.testing.assert_allclose(CATALOG[name].f(jnp.asarray(point)), 0, atol=1e-12)


def test_the_first_of_two_minima_is_the_deeper_one(x64):
    deep, shallow = (float(landscapes.two_minima(jnp.asarray(p))) for p in WELLS)
    assert deep < shallow < float(landscapes.two_minima(jnp.array([-0.2696])))


WELLS = CATALOG["two_minima"].minima


def test_the_monkey_saddle_has_three_valleys():
    angles = np.linspace(0.0, 2 * np.pi, 361, dtype=np.float32)[:-1]
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    signs = np.sign(np.asarray(jax.jit(jax.vmap(landscapes.monkey_saddle))(ring)))
    assert np.sum(np.diff(signs[signs != 0]) < 0) == 3


def test_a_descent_equals_an_explicit_loop():
    path = landscapes.descend(landscapes.beale, (1.0, 1.5), fg.sgd(0.01), 5)
    slope = jax.jit(jax.grad(landscapes.beale))
    x = np.array([1.0, 1.5], np.float32)
    for point in path:
        np.testing.assert_allclose(point, x, rtol=1e-5)
        x = x - np.float32(0.01) * slope(x)


def test_noise_has_the_given_standard_deviation():
    path = landscapes.descend(
        lambda x: 0.0 * jnp.sum(x), jnp.zeros(5000), fg.sgd(1.0), 1, noise=0.3, key=1
    )
    np.testing.assert_allclose(jnp.std(path[1]), 0.3, rtol=0.05)


PARAMS = {
    "kernel": np.linspace(-1.0, 2.0, 24, dtype=np.float32).reshape(2, 3, 4),
    "weight": np.array([[1.0, 0.0, 1.4], [1.6, 0.0, 2.0]], np.float32),
    "bias": np.ones(3, np.float32),
}


def test_a_filter_direction_has_the_norm_of_each_filter():
    direction = jax.jit(landscapes.filter_direction)
    d = jax.tree.map(np.asarray, direction(PARAMS, 0))
    for name, axes in {"kernel": (0, 1), "weight": (0,)}.items():
        np.testing.assert_allclose(
            np.sum(d[name] ** 2, axes), np.sum(PARAMS[name] ** 2, axes), rtol=1e-5
        )
    np.testing.assert_array_equal(d["bias"], 0.0)
    np.testing.assert_array_equal(d["weight"][:, 1], 0.0)
    other = direction(PARAMS, 1)
    assert not np.allclose(d["kernel"], other["kernel"])


@jax.jit
def value(params, shift):
    return sum(jnp.sum((x - shift) ** 2) for x in jax.tree.leaves(params))


def test_a_slice_is_the_function_along_it():
    plane = jax.tree.map(np.asarray, jax.jit(landscapes.random_plane)(PARAMS, 0))
    a, b = np.float32([-1.0, 0.0, 2.0]), np.float32([0.0, 0.5])
    values = landscapes.plane_values(value, plane, a, b, 0.1)
    assert values.shape == (2, 3)
    for i, t in enumerate(b):
        for j, s in enumerate(a):
            moved = jax.tree.map(lambda w, u, v, s=s, t=t: w + s * u + t * v, *plane)
            np.testing.assert_allclose(values[i, j], value(moved, 0.1), rtol=1e-5)
    line = landscapes.line_values(value, PARAMS, plane.u, a, 0.1)
    np.testing.assert_allclose(line, values[0], rtol=1e-5)


def test_the_principal_plane_contains_a_planar_path():
    t = np.linspace(0.0, 3.0, 20, dtype=np.float32)

    def along(w):
        i = np.arange(w.size, dtype=np.float32).reshape(w.shape)
        return np.stack([w + s * np.cos(i) + s**2 * np.sin(i) for s in t])

    visited = jax.tree.map(along, PARAMS)
    seen = jax.jit(landscapes.principal_plane)(visited)
    seen = jax.tree.map(np.asarray, seen)
    np.testing.assert_allclose(np.sum(seen.explained), 1.0, rtol=1e-5)
    assert seen.explained[0] > seen.explained[1]
    np.testing.assert_allclose(seen.coordinates[-1], 0.0, atol=1e-5)
    for i in (0, 7):
        back = jax.tree.map(
            lambda w, a, b, i=i: (
                w + seen.coordinates[i, 0] * a + seen.coordinates[i, 1] * b
            ),
            *seen.plane,
        )
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x, y[i], atol=1e-3),
            back,
            visited,
        )


def test_the_plane_of_a_straight_path_has_orthogonal_directions():
    t = np.linspace(0.0, 1.0, 12, dtype=np.float32) ** 2
    along = np.tile(np.float32([1.0, 2.0, -1.0, 0.5]), 10)
    path = np.float32(0.3) + t[:, None] * along[None]
    seen = jax.tree.map(np.asarray, jax.jit(landscapes.principal_plane)(path))
    u, v = seen.plane.u, seen.plane.v
    np.testing.assert_allclose([u @ u, v @ v, u @ v], [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(seen.coordinates[:, 1], 0.0, atol=1e-5)
    lengths = (1 - t) * np.linalg.norm(along)
    np.testing.assert_allclose(np.abs(seen.coordinates[:, 0]), lengths, atol=1e-5)


def test_constant_and_undefined_regions_can_be_drawn(tmp_path):
    for f in (lambda x: 0.0 * jnp.sum(x), lambda x: jnp.log(x[0]) + x[1]):
        figure = landscapes.plot(f, lower=(-1, 0), upper=(1, 1))
        figure.savefig(tmp_path / "picture.png")


def test_a_path_starts_with_a_square_and_ends_with_a_circle():
    for f, lower in ((landscapes.two_minima, (-1,)), (landscapes.beale, (-1, -1))):
        point = np.zeros(len(lower))
        path = {"path": np.stack([point, point + 0.1])}
        axis = landscapes.plot(f, path, lower=lower, upper=-point + 1).axes[0]
        ends = {
            line.get_marker(): line.get_xdata()[0]
            for line in axis.get_lines()
            if line.get_marker() in ("s", "o")
        }
        assert ends == {"s": 0.0, "o": 0.1}


@pytest.mark.parametrize("name", CATALOG)
def test_every_landscape_can_be_drawn_with_a_path(tmp_path, name):
    place = CATALOG[name]
    path = landscapes.descend(place.f, place.start, fg.sgd(1e-3), 20)
    figure = landscapes.plot(
        place.f,
        {"sgd": path},
        lower=place.lower,
        upper=place.upper,
        minima=place.minima,
        saddles=place.saddles,
        title=name,
    )
    figure.savefig(tmp_path / "picture.png")
    labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert "sgd" in labels
    assert ("minimum" in labels) == bool(place.minima)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: landscapes.descend(jnp.sum, (1.0,), fg.sgd(0.1), -1),
            "need an int num_steps >= 0",
        ),
        (
            lambda: landscapes.descend(jnp.sum, 1.0, fg.sgd(0.1), 1),
            r"need a start of shape \(dimension,\), got \(\)",
        ),
        (
            lambda: landscapes.principal_plane(jnp.ones((2, 3))),
            "need at least three points",
        ),
        (
            lambda: landscapes.plot(jnp.sum, lower=(0.0,), upper=(0.0,)),
            "need lower < upper",
        ),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dimension", [1, 2])
def test_labels_of_paths_are_drawn_as_they_are_written(dimension):
    path = np.linspace(0.0, 1.0, 3)[:, None].repeat(dimension, axis=1)
    figure = landscapes.plot(
        lambda x: jnp.sum(x**2),
        {"_hidden": path, "rate_$x_$": path},
        lower=[-1.0] * dimension,
        upper=[1.0] * dimension,
        minima=[[0.0] * dimension],
    )
    figure.canvas.draw()
    texts = figure.axes[0].get_legend().get_texts()
    assert list(map(literal, texts)) == ["_hidden", "rate_$x_$", "minimum"]
