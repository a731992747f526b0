"""What entrywise ops share: how arguments come in and how derivatives are given.

The idea: a stable value is half the work. Differentiating a stable formula often
cancels (1 - tanh**2) or divides 0 by 0, so each function is a chain of formulas, value,
slope, curvature, each stable on its own. Half precision is computed in float32 and
rounded once, on the way out and, by the transpose of the cast, on the way back.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating

Formula = Callable[[jax.Array], jax.Array]

_INF, _NAN = float("inf"), float("nan")


def chain(*formulas: Formula) -> Formula:
    """The function whose derivatives are the formulas that follow the first.

    The last one is differentiated by JAX, so a singular last formula has to be safe to
    differentiate.
    """
    value, *rest = formulas
    if not rest:
        return value
    slope = chain(*rest)
    function = jax.custom_jvp(value)

    @function.defjvp
    def _rule(primals: Any, tangents: Any) -> Any:
        (x,), (dx,) = primals, tangents
        return function(x), slope(x) * dx

    return function


def entrywise(
    name: str, function: Callable[..., jax.Array], **arguments: ArrayLike
) -> jax.Array:
    """Check the arguments, compute in a wide dtype and round once.

    Python numbers take the dtype of the arrays; arrays broadcast. `function` must be
    the same object at each call, or each call compiles.
    """
    arrays = [_floating(name, key, value) for key, value in arguments.items()]
    return _rounded_once(function, *arrays)


# One program, not one for each primitive: what is called outside jit is quick too.
@functools.partial(jax.jit, static_argnums=0)
def _rounded_once(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    dtype = jnp.result_type(*arrays)
    wide = _floats.wide(dtype)
    shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    args = [jnp.broadcast_to(a.astype(wide), shape) for a in arrays]
    return function(*args).astype(dtype)


def _floating(name: str, key: str, value: ArrayLike) -> jax.Array:
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return check_floating(name, key, value)


def add_unary(
    name: str,
    function: Callable[..., Any],
    naive: Callable[..., Any],
    ends: tuple[tuple[float, float], ...],
    ulp: Mapping[str, _catalog.Ulp],
    oracle: Callable[..., tuple[Any, ...]],
    floors: tuple[float, ...] | None = None,
) -> None:
    """A row for a function of any one number.

    `ends` holds (value, slope) at -inf, 0 and inf; `floors` are those of `at_least`.
    """
    points = zip((-_INF, 0.0, _INF, _NAN), (*ends, (_NAN, _NAN)), strict=True)
    _catalog.add(
        _catalog.Row(
            name=f"ops.{name}",
            function=function,
            naive=naive,
            kind="entrywise",
            domain=((-_INF, _INF),),
            edges=tuple(
                Edge(args=(x,), value=value, gradient=(slope,))
                for x, (value, slope) in points
            ),
            ulp=ulp,
            oracle=oracle,
            size=None if floors is None else _catalog.at_least(oracle, *floors),
        )
    )
