"""Wall time is divided into parts that sum to it; the clock is the test's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.logging.time_spent import PARTS, TimeSpent


class Clock:
    """A clock that stands still unless it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def spent(clock):
    return TimeSpent(clock=clock)


def parts(spent: TimeSpent) -> dict[str, float]:
    """Return the parts that are not zero."""
    return {part: s for part, s in spent.seconds().items() if s}


def test_a_nested_part_pauses_the_outer_one(clock, spent):
    clock.wait(1)
    with spent.on("stepping"):
        clock.wait(2)
        with spent.on("data"):
            clock.wait(4)
        clock.wait(8)
    clock.wait(16)
    assert parts(spent) == {"other": 17, "stepping": 10, "data": 4}
    assert tuple(spent.seconds()) == PARTS


def test_an_exception_ends_its_part_only(clock, spent):
    def fail():
        clock.wait(1)
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"), spent.on("saving"):
        fail()
    clock.wait(2)
    assert parts(spent) == {"saving": 1, "other": 2}


def test_waiting_for_batches_is_counted_and_using_them_is_not(clock, spent):
    def slow():
        for batch in range(3):
            clock.wait(10)
            yield batch

    seen = []
    with spent.on("stepping"):
        for batch in spent.waiting_for(slow()):
            clock.wait(1)
            seen.append(batch)
    assert seen == [0, 1, 2]
    assert parts(spent) == {"data": 30, "stepping": 3}


def test_events_are_taken_from_the_part_around_them_and_nested_ones_count_once(
    clock, spent
):
    with spent.on("stepping"):
        clock.wait(1)
        # A trace of 7 s, of which 2 s trace a function inside and 4 s compile.
        clock.wait(0.5)
        clock.wait(2)
        spent.count_event("tracing", 2)
        clock.wait(4)
        spent.count_event("compiling", 4)
        clock.wait(0.5)
        spent.count_event("tracing", 7)
        clock.wait(3)
        spent.count_event("compiling", 3)
        clock.wait(5)
    assert parts(spent) == {"tracing": 3, "compiling": 7, "stepping": 6}
    assert spent.compiling == 10


def test_an_event_takes_no_more_than_there_is(clock, spent):
    clock.wait(1)
    spent.count_event("compiling", 1.001)  # JAX's clock is another one
    assert parts(spent) == {"compiling": 1}


def test_random_marks_sum_to_the_wall_time(clock, spent):
    rng = np.random.default_rng(0)
    begin = clock.now
    for _ in range(200):
        with spent.on(str(rng.choice(PARTS))):
            clock.wait(rng.exponential())
            if rng.uniform() < 0.5:
                spent.count_event(str(rng.choice(PARTS[:2])), rng.exponential())
        clock.wait(rng.exponential())
    found = spent.seconds()
    np.testing.assert_allclose(sum(found.values()), clock.now - begin, rtol=1e-12)
    assert min(found.values()) >= 0


def test_what_jax_traces_and_compiles_is_counted_while_it_listens():
    spent = TimeSpent()
    with spent.listening():
        jax.jit(lambda x: jnp.sin(x) * 2.0)(1.0)
    found = spent.seconds()
    assert found["tracing"] > 0
    assert found["compiling"] > 0
    assert spent.compiling == found["tracing"] + found["compiling"]


def test_an_inner_listener_takes_over_and_gives_back():
    outer, inner = TimeSpent(), TimeSpent()
    with outer.listening():
        with inner.listening():
            jax.jit(lambda x: x + 11)(1.0)
        assert outer.compiling == 0 < inner.compiling
        before = inner.compiling
        jax.jit(lambda x: x + 12)(1.0)
    assert outer.compiling > 0
    assert inner.compiling == before
