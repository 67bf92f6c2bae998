"""Strictness for every test: promotion, ranks, warnings (see pyproject.toml).

What one test compiled, every later one takes from a folder that lives as long as the
run, or from `JAX_COMPILATION_CACHE_DIR` where that is set. Unless ``XLA_FLAGS`` is set,
XLA compiles without optimization, with its older emitters and in one unit, in a third
of the time. With ``-m xla_defaults`` it compiles as for users. The tests marked so
compare bits, which depend on how XLA compiles, or are what users run: the slow ones
among them, such as the experiments, run only with these defaults. Of the experiments
those marked ``any_flags`` do not: most of their time is compilation, and what they show
does not depend on how.
"""

import gc
import os
import shutil
import signal
import tempfile

import chex
import fast_cases
import float64_mode
import jax
import parts
import pytest
from jax.extend.mlir import ir
from known_skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
COMPILED = "FNGRAD_TESTS_COMPILED"  # passes the folder to xdist's workers
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
OLDER_EMITTERS = " --xla_cpu_use_fusion_emitters=false"
LEFT = pytest.StashKey[int]()
# The newest lines of JAX that have these flags; XLA aborts at others.
KNOWN, KNOWN_EMITTERS = (0, 12), (0, 10)


def _use_one_thread(context, _pool):
    context.enable_multithreading(False)


# JAX keeps an MLIR context for each program in its caches. One with threads searches a
# table of all of them for each kind of type and attribute that is new to it, so that
# lowering gets slower with each program: four times as slow by the end of the tests.
assert hasattr(ir.Context, "set_thread_pool")
ir.Context.set_thread_pool = _use_one_thread


def pytest_configure(config):
    line = jax.__version_info__[:2]
    if line <= KNOWN and not _compiles_by_default(config):
        flags = QUICK + (OLDER_EMITTERS if line <= KNOWN_EMITTERS else "")
        os.environ.setdefault("XLA_FLAGS", flags)  # before JAX starts its backend
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "worksteal"  # neighbors share programs
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
        if COMPILED not in os.environ:  # else it is that of another process
            folder = tempfile.mkdtemp(prefix="fngrad-compiled-")
            os.environ[COMPILED] = folder
            config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])


def _compiles_by_default(config):
    return config.option.markexpr.startswith("xla_defaults")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(config, items):
    config.stash[LEFT] = fast_cases.mark_slow(items)
    for item in items:
        is_slow = item.get_closest_marker("slow") is not None
        is_experiment = item.path.parent.name == "experiments"
        if is_slow and is_experiment and not item.get_closest_marker("any_flags"):
            item.add_marker("xla_defaults")
        needs_defaults = item.get_closest_marker("xla_defaults") is not None
        if is_slow and needs_defaults and not _compiles_by_default(config):
            item.add_marker(pytest.mark.skip("runs with -m xla_defaults"))
    parts.leave_out_others(config, items)
    # The longest come first: at the end they would be left to one worker.
    items.sort(key=lambda item: item.path.name != "test_on_eight_devices.py")


def pytest_report_collectionfinish(config):
    left = config.stash.get(LEFT, 0)  # absent where the collection failed
    return f"{left} cases are left to -m slow, see tests/fast_cases.toml"


def pytest_collection_finish():
    gc.freeze()  # what was imported stays, so collections of garbage skip it
    gc.set_threshold(20_000, 50, 100)  # traced programs are many objects


@pytest.fixture(autouse=True)
def _forget_traces():
    chex.clear_trace_counter()


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Let Ctrl-C interrupt, also where the suite is a background job of a script.

    A shell starts such a job with SIGINT ignored, and what it starts inherits that.
    """
    usual = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.fixture
def x64():
    """Run the test in double precision."""
    with float64_mode.x64():
        yield


@pytest.fixture
def usual_signals():
    """Handle signals as a program in the foreground does, wherever the tests run.

    A background job of a script has SIGINT ignored, and so do its children.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {n: signal.signal(n, handler) for n, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
