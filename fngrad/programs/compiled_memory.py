"""The memory of a compiled program, as the compiler planned it."""

from typing import Any, NamedTuple


class Memory(NamedTuple):
    """Bytes that one call of a compiled program takes on each device."""

    arguments: int
    outputs: int  # those in donated memory too
    temporaries: int  # what is alive at once in between
    aliased: int  # of the outputs: in the memory of donated arguments

    @property
    def total(self) -> int:
        """All of it: arguments, outputs and temporaries, what is aliased once."""
        return self.arguments + self.outputs + self.temporaries - self.aliased

    def rows(self) -> list[list[str]]:
        """Return the cells of a table: what, bytes, a remark."""
        remarks = {"aliased": "of the outputs, in donated memory"}
        parts = zip(self._fields, self, strict=True)
        return [
            ["memory", f"{self.total:,}", "bytes on each device"],
            *(["  " + name, f"{x:,}", remarks.get(name, "")] for name, x in parts),
        ]


def memory_of(compiled: Any) -> Memory | None:
    """Return the memory of a compiled program, from ``jit(f).lower(x).compile()``.

    It is None if the backend does not report it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.programs.compiled_memory import memory_of
        >>> compiled = jax.jit(jnp.sin, donate_argnums=0).lower(jnp.ones(4)).compile()
        >>> memory_of(compiled)
        Memory(arguments=16, outputs=16, temporaries=0, aliased=16)
    """
    found = compiled.memory_analysis()
    if found is None:
        return None
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        aliased=found.alias_size_in_bytes,
    )
