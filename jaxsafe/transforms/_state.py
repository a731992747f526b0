"""What control state is made of: many fields, kept in three arrays.

A field of its own is an array of its own, with a kernel that computes its one number.
There were nineteen, and on every platform they took longer, to compile and to start,
than the work. So the fields share arrays, and are read by name.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self, overload

import jax
import jax.numpy as jnp
from jax import lax

from jaxsafe import _errors


class _Layout:
    """The fields that share an array: its last axis, in the order of the class."""

    def __init__(self, array: str, dtype: Any) -> None:
        self.array = array
        self.dtype = dtype
        self.names: list[str] = []

    def pack(self, fields: Mapping[str, Any]) -> jax.Array:
        """The array. Selects stay one kernel; joined, each would be one of its own."""
        at = lax.iota(jnp.int32, len(self.names))
        packed = jnp.zeros((len(self.names),), self.dtype)
        for i, name in enumerate(self.names):
            packed = jnp.where(at == i, jnp.asarray(fields[name], self.dtype), packed)
        return packed

    def put(self, array: Any, fields: Mapping[str, Any]) -> jax.Array:
        """`array` with some fields changed."""
        array = jnp.asarray(array)
        for name, value in fields.items():
            value = jnp.asarray(value, self.dtype)
            array = array.at[..., self.names.index(name)].set(value)
        return array


class _Field:
    """One entry along the last axis of an array; in front may be what vmap adds."""

    def __init__(self, layout: _Layout, *, flag: bool = False) -> None:
        self.layout = layout
        self.flag = flag

    def __set_name__(self, owner: type, name: str) -> None:
        self.at = len(self.layout.names)
        self.layout.names.append(name)

    @overload
    def __get__(self, state: None, owner: type) -> Self: ...

    @overload
    def __get__(self, state: tuple[Any, ...], owner: type) -> jax.Array: ...

    def __get__(self, state: Any, owner: type) -> Any:
        if state is None:
            return self
        entry = getattr(state, self.layout.array)[..., self.at]
        return entry != 0 if self.flag else entry


_ROWS = _Layout("rows", jnp.float32)
_COUNTS = _Layout("counts", jnp.int32)
_NUMBERS = _Layout("numbers", jnp.float32)


class _HistoryArrays(NamedTuple):
    rows: jax.Array


class History(_HistoryArrays):
    """Ring buffer of the last n attempts; attempt k stands at position k % n.

    Attributes:
      rows: float32[n, 7], the only array; the others are its columns.
      loss: float32[n], NaN where no `value` was given; with an `axis_name`, the mean
        over its devices.
      grad_norm: float32[n], before clipping.
      rate_factor: float32[n], the factor that the attempt was made with.
      loss_scale: float32[n], the scale that the attempt was made with.
      ok: bool[n], committed.
      clipped: bool[n].
      update_ratio: float32[n], norm of the update over that of the parameters; NaN
        where the parameters are 0 or not known, and in the history of a guard, which
        does not spend two passes on it; `transforms.telemetry` does.

    Example:
      >>> from jaxsafe import transforms
      >>> transforms.init_control(telemetry=3).history.ok.shape
      (3,)
    """

    __slots__ = ()

    loss = _Field(_ROWS)
    grad_norm = _Field(_ROWS)
    rate_factor = _Field(_ROWS)
    loss_scale = _Field(_ROWS)
    ok = _Field(_ROWS, flag=True)
    clipped = _Field(_ROWS, flag=True)
    update_ratio = _Field(_ROWS)

    def columns(self) -> dict[str, jax.Array]:
        """All fields by their names.

        Example:
          >>> from jaxsafe import transforms
          >>> list(transforms.init_control(telemetry=3).history.columns())[:2]
          ['loss', 'grad_norm']
        """
        return {name: getattr(self, name) for name in _ROWS.names}


class _ControlArrays(NamedTuple):
    counts: jax.Array
    numbers: jax.Array
    history: Any


class ControlState(_ControlArrays):
    """What every guarding layer carries; a guard finds it by its type.

    Attributes:
      counts: int32[9], the array that whole numbers and flags are kept in.
      numbers: float32[3], the array that the other numbers are kept in.
      history: `History`, or () without telemetry.
      attempts: int32[], steps tried.
      rejected: int32[], steps not committed.
      rejected_in_a_row: int32[], since the last committed one.
      committed_in_a_row: int32[], since the last rejected one.
      clipped: int32[], committed steps whose gradient was shortened.
      bad_leaf: int32[], index of the first non-finite leaf of the last attempt, or -1.
      ok: bool[], whether the last attempt was committed.
      halted: bool[], given up: nothing is committed any more.
      stalled: bool[], the loss scale is as low as it may get and steps still fail.
      rate_factor: float32[], what the next update is multiplied by.
      loss_scale: float32[], 1 unless a loss scale is in use.
      grad_norm: float32[], global norm of the last attempt, before clipping; NaN where
        the guard cannot see gradients.

    Example:
      >>> import optax
      >>> from jaxsafe import transforms
      >>> state = transforms.guarded(optax.sgd(0.1)).init({})
      >>> bool(state.control.halted)
      False
    """

    __slots__ = ()

    attempts = _Field(_COUNTS)
    rejected = _Field(_COUNTS)
    rejected_in_a_row = _Field(_COUNTS)
    committed_in_a_row = _Field(_COUNTS)
    clipped = _Field(_COUNTS)
    bad_leaf = _Field(_COUNTS)
    ok = _Field(_COUNTS, flag=True)
    halted = _Field(_COUNTS, flag=True)
    stalled = _Field(_COUNTS, flag=True)
    rate_factor = _Field(_NUMBERS)
    loss_scale = _Field(_NUMBERS)
    grad_norm = _Field(_NUMBERS)

    def _replace(self, **fields: Any) -> Self:
        """As of any named tuple, for what shares an array too."""
        for layout in (_COUNTS, _NUMBERS):
            mine = {name: fields.pop(name) for name in layout.names if name in fields}
            if mine:
                fields[layout.array] = layout.put(getattr(self, layout.array), mine)
        return super()._replace(**fields)


def init_control(*, telemetry: int = 0) -> ControlState:
    """Return the control state of a run that has not begun.

    Args:
      telemetry: how many attempts to remember in `history`; 0 for none.

    Raises:
      ValueError: `telemetry` is negative.

    Example:
      >>> from jaxsafe import transforms
      >>> control = transforms.init_control()
      >>> int(control.attempts), float(control.rate_factor)
      (0, 1.0)
    """
    _errors.check_count("init_control", "telemetry", telemetry, least=0)
    counts = dict.fromkeys(_COUNTS.names, 0) | {"bad_leaf": -1, "ok": 1}
    numbers = {"rate_factor": 1.0, "loss_scale": 1.0, "grad_norm": 0.0}
    return pack_control(counts | numbers, init_history(telemetry) if telemetry else ())


def pack_control(fields: Mapping[str, Any], history: Any) -> ControlState:
    """Control state of all its fields."""
    return ControlState(_COUNTS.pack(fields), _NUMBERS.pack(fields), history)


def init_history(length: int) -> History:
    """A history of nothing."""
    nothing = dict.fromkeys(_ROWS.names, jnp.nan) | {"ok": 0.0, "clipped": 0.0}
    return History(jnp.tile(_ROWS.pack(nothing), (length, 1)))


def write_row(history: History, step: jax.Array, fields: Mapping[str, Any]) -> History:
    """`history` with one more attempt, the one with this number."""
    row = _ROWS.pack(fields)[None]
    at = step % history.rows.shape[0]
    return History(lax.dynamic_update_slice_in_dim(history.rows, row, at, axis=0))
