"""The error for forward-mode differentiation outside of `reference_ops`.

JAX's own error, "can't apply forward-mode autodiff (jvp) to a custom_vjp function", names no remedy. It cannot be caught, because under
`jax.jit` it occurs after the network was traced. So the inputs of a network pass through an identity whose tangents pass through a
primitive. Reverse mode only transposes this primitive, which is again the identity. Forward mode computes it, which is the error.
Compiled programs of values and of gradients do not contain it.
"""

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from swinunetr_jax.errors import InputError
from swinunetr_jax.runtime.dispatch import uses_reference_ops

T = TypeVar("T")

MESSAGE = (
    "forward-mode differentiation of the network (jax.jvp, jax.linearize, jax.jacfwd, jax.hessian) needs operations without gradients "
    "written by hand: call it inside `with swinunetr_jax.reference_ops():`."
)


def require_reverse_mode(tree: T) -> T:
    """Returns the arrays of a tree unchanged. Outside of `reference_ops`, forward-mode differentiation of the result is an InputError."""
    if uses_reference_ops():
        return tree
    leaves, structure = jax.tree.flatten(tree)
    is_differentiable = [jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact) for leaf in leaves]
    passed = iter(_identity(*[leaf for leaf, passes in zip(leaves, is_differentiable) if passes]))
    return jax.tree.unflatten(structure, [next(passed) if passes else leaf for leaf, passes in zip(leaves, is_differentiable)])


def _identity(*arrays: Array) -> tuple[Array, ...]:
    return tuple(_arrays.bind(*arrays))


def _raise(*_arguments: Any, **_parameters: Any) -> NoReturn:
    raise InputError(MESSAGE)


# ---- the identity on arrays

_arrays = Primitive("require_reverse_mode")
_arrays.multiple_results = True
_arrays.def_impl(lambda *arrays: arrays)
_arrays.def_abstract_eval(lambda *types: types)
batching.primitive_batchers[_arrays] = lambda arrays, axes: (_arrays.bind(*arrays), axes)
mlir.register_lowering(_arrays, lambda _context, *arrays: arrays)


def _jvp(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Sequence[Array], Sequence[Any]]:
    """Binds the primitive to all tangents together: some may be known to be 0 before the others are computed, in reverse mode too."""
    is_zero = [isinstance(tangent, ad.Zero) for tangent in tangents]
    passed = iter(_tangents.bind(*[tangent for tangent, zero in zip(tangents, is_zero) if not zero]))
    return _arrays.bind(*primals), [tangent if zero else next(passed) for tangent, zero in zip(tangents, is_zero)]


ad.primitive_jvps[_arrays] = _jvp

# ---- the identity on tangents, which can only be transposed

_tangents = Primitive("tangents_in_reverse_mode")
_tangents.multiple_results = True
_tangents.def_impl(_raise)
_tangents.def_abstract_eval(lambda *types: types)
ad.primitive_jvps[_tangents] = _raise
ad.primitive_transposes[_tangents] = lambda cotangents, *_: cotangents
batching.primitive_batchers[_tangents] = _raise
mlir.register_lowering(_tangents, _raise)
