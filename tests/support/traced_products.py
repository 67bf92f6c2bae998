"""The matrix products and convolutions of a traced function."""

import jax

PRODUCTS = ("dot_general", "conv_general_dilated")


def products_of(fn, *args):
    """Return the equations of a function's products, in loops and branches too."""
    return [
        equation
        for equation in _equations(jax.make_jaxpr(fn)(*args).jaxpr)
        if equation.primitive.name in PRODUCTS
    ]


def operand_dtypes(equations):
    """Return the dtypes of the operands of products, as a set of names."""
    return {str(v.aval.dtype) for equation in equations for v in equation.invars}


def residual_bytes(fn, params):
    """Return the bytes that reverse mode keeps of a function, from shapes alone."""
    kept = jax.eval_shape(lambda params: jax.vjp(fn, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _equations(getattr(inner, "jaxpr", inner))


def _is_jaxpr(x):
    return hasattr(getattr(x, "jaxpr", x), "eqns")
