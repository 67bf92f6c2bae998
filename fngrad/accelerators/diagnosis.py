"""Whether this machine trains as it should: what `fngrad.doctor` looks at, and says."""

import contextlib
import os
import textwrap
import time
from typing import Any, NamedTuple

import jax

import fngrad.accelerators.fallbacks as fallbacks
import fngrad.accelerators.hardware as hardware
import fngrad.accelerators.settings as settings
import fngrad.accelerators.versions as versions
import fngrad.programs.text_tables as text_tables
from fngrad.accelerators.findings import (
    OK,
    PROBLEM,
    WARNING,
    Finding,
    worst_first,
)
from fngrad.accelerators.self_test import Outcome, judge_tests, self_test
from fngrad.accelerators.speed import Speed, judge_speed, measure_speed
from fngrad.files.compilation_cache import CompilationCache, current_cache
from fngrad.files.json_values import to_json
from fngrad.programs.platforms import check_backend
from fngrad.programs.printed import preformatted, shown

_WIDTH = 80  # of the text of a finding


class Diagnosis(NamedTuple):
    """What `fngrad.doctor` found; ``print`` shows a table, the problems first."""

    findings: list[Finding]  # the worst first
    devices: hardware.Devices | None  # None if JAX does not start
    host_memory: hardware.HostMemory | None  # None where Linux does not tell it
    versions: dict[str, str]  # by package
    variables: dict[str, str]  # of the environment, which JAX, XLA and libtpu read
    matmul_precision: str | None  # jax_default_matmul_precision
    cache: CompilationCache
    self_test: list[Outcome]  # empty if JAX does not start
    speed: Speed | None  # None if it could not be measured

    @property
    def is_well(self) -> bool:
        """Whether there is no problem; warnings are none."""
        return all(each.status != PROBLEM for each in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything in JSON's types, with ``is_well``."""
        return {"is_well": self.is_well, **to_json(self)}

    def __repr__(self) -> str:
        return shown(self, _text)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


def doctor(*, require: str | None = None) -> Diagnosis:
    """Look at JAX and this machine: does it compute right, fast, and where you think?

    It looks for an accelerator that is there but not used, versions that do not fit,
    variables that were set too late, full memory, and devices that compute wrong
    numbers: products, sums, random bits, a scan and a training step are compared with
    known values. It measures how fast the device multiplies and copies, against the
    peak of its chip. This takes about ten seconds. A problem is wrong for sure, a
    warning is left to your judgment; both name the way out.

    Args:
        require: the backend to require, as for `fngrad.fit`: ``"cpu"``, ``"gpu"`` or
            ``"tpu"``.

    Returns:
        A `Diagnosis`, a table where it is printed; ``is_well`` says if there is no
        problem, ``to_json()`` returns everything.

    Raises:
        RuntimeError: if JAX runs on another backend than the required one, or on none,
            with the reason where it is known.

    Example:
        >>> import fngrad as fg
        >>> fg.doctor()  # doctest: +SKIP
        Diagnosis: all is well
        ok  backend        tpu
        ok  devices        1 x TPU v5 lite (v5e), 15.7 GiB each
        ok  versions       jax 0.7.2, jaxlib 0.7.2, libtpu 0.0.23, numpy 2.1.3, fngrad
                           0.1.0, Python 3.13.0
        ...
    """
    wrong = _required(require)
    if wrong:
        causes = [_line(each) for each in _backend() if each.status != OK]
        raise RuntimeError("\n".join([wrong[0].text, *causes]))
    return diagnose()


def diagnose(require: str | None = None) -> Diagnosis:
    """Return what `fngrad.doctor` returns; another backend is a finding.

    Args:
        require: as for `fngrad.doctor`.
    """
    devices = hardware.find_devices() if fallbacks.start_failure() is None else None
    platform = "" if devices is None else devices.platform
    host_memory, cache = hardware.host_memory(), current_cache()
    installed = versions.installed_versions()
    variables = settings.relevant_variables(os.environ)
    precision = settings.matmul_precision()
    outcomes, speed, computed = _computed(platform, precision)
    loaded, asked = versions.loaded_versions(), versions.asked_versions()
    findings = [
        *_required(require),
        *_backend(),
        *(() if devices is None else hardware.judge_devices(devices)),
        *versions.judge_versions(installed, loaded, asked, platform),
        hardware.judge_memory(host_memory),
        *settings.judge_settings(variables, jax.config, _cpu_devices()),
        *settings.judge_flags(jax.config, platform),
        settings.judge_cache(cache),
        *computed,
    ]
    return Diagnosis(
        findings=worst_first(findings),
        devices=devices,
        host_memory=host_memory,
        versions=installed,
        variables=variables,
        matmul_precision=precision,
        cache=cache,
        self_test=outcomes,
        speed=speed,
    )


def _required(require: str | None) -> list[Finding]:
    try:
        check_backend(require)
    except RuntimeError as error:
        way_out = "see the other findings; on Colab: Runtime, Change runtime type"
        return [Finding(PROBLEM, "required", str(error), way_out)]
    return []


def _backend() -> list[Finding]:
    """Return what is to be said about the platform; nothing else can if none starts."""
    failure = fallbacks.start_failure()
    if failure is not None:
        text = f"JAX does not start: {failure}"
        way_out = "unset JAX_PLATFORMS, or install what it names"
        return [Finding(PROBLEM, "backend", text, way_out)]
    config: Any = jax.config  # type checkers do not know its settings
    found = fallbacks.signs(os.environ)
    platforms = {each.platform for each in found}
    return fallbacks.judge_backend(
        jax.default_backend(),
        config.jax_platforms,
        found,
        {name: fallbacks.reason_against(name) for name in platforms},
        jax.__version__,
    )


def _computed(
    platform: str, precision: str | None
) -> tuple[list[Outcome], Speed | None, list[Finding]]:
    """Test the devices and measure one, if a platform started."""
    if not platform:
        return [], None, []
    began = time.perf_counter()
    outcomes = self_test(platform, precision)
    findings = [
        settings.judge_precision(platform, precision),
        *judge_tests(outcomes, time.perf_counter() - began),
    ]
    try:
        speed = measure_speed(jax.local_devices()[0])
    except RuntimeError as error:  # mostly: no memory is left
        first = str(error).partition("\n")[0]
        text = f"it could not be measured: {first}"
        way_out = "free the memory of the device, or restart this process"
        return outcomes, None, [*findings, Finding(WARNING, "speed", text, way_out)]
    return outcomes, speed, [*findings, judge_speed(speed)]


def _cpu_devices() -> int:
    with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS may leave out the CPU
        return len(jax.local_devices(backend="cpu"))
    return 0


def _text(found: Diagnosis) -> str:
    counts = {
        status: sum(each.status == status for each in found.findings)
        for status in (PROBLEM, WARNING)
    }
    told = [f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items() if n]
    rows = []
    for each in found.findings:
        status = each.status.upper() if each.status == PROBLEM else each.status
        first, *others = textwrap.wrap(each.text, _WIDTH, break_long_words=False)
        rows.append([status, each.subject, first])
        others += [f"-> {each.way_out}"] if each.way_out else []
        rows += [["", "", line] for line in others]
    return f"Diagnosis: {', '.join(told) or 'all is well'}\n{text_tables.table(rows)}"


def _line(found: Finding) -> str:
    return f"{found.text}; {found.way_out}" if found.way_out else found.text
