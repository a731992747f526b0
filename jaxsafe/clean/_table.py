"""Any table on the host as named one-dimensional columns: numbers or categories.

One reader serves fit, encode and audit, so all three agree on what a number is, what
is missing and what a category is called. What a frame is, `_frames` knows.

Numbers are looked at as float32, which is what `apply` will get: 1e300 is infinite
here as it would be there. Must never run on a traced value.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxsafe._errors import error
from jaxsafe.clean import _frames
from jaxsafe.clean._options import Sentinels

if TYPE_CHECKING:
    import numpy as np

HostArray: TypeAlias = "np.ndarray[Any, Any]"
Kind: TypeAlias = Literal["number", "category"]


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length, as they came.

    Attributes:
      names: one per column; "x0", "x1", ... where the data had none.
      columns: one-dimensional host arrays.
      named: whether the data itself gave the names.
      matrix: all columns as they came, if they came as one array of numbers.
      labelled: names of the columns whose dtype says that they are categories.
      numbered: those of them whose names are numbers.
    """

    names: tuple[str, ...]
    columns: tuple[HostArray, ...]
    named: bool
    matrix: Any = None
    labelled: frozenset[str] = frozenset()
    numbered: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """Number of rows, at least 1."""
        return len(self.columns[0])

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of each column; a labelled one without a single entry is a category too."""
        pairs = zip(self.names, self.columns, strict=True)
        return tuple("category" if n in self.labelled else kind(c) for n, c in pairs)


def read(function: str, data: Any) -> Table:
    """Take any supported table apart into columns, or say what is wrong with it."""
    _refuse_traced(function, data)
    matrix = None
    labelled: dict[str, bool] = {}
    if _frames.is_frame(data):
        keys, data = _frames.opened(function, data)
        names = tuple(str(key) for key in keys)
        if len(set(names)) != len(names):
            raise error(
                ValueError,
                function,
                "two columns have the same name",
                ", ".join(names),
                "Rename one of them.",
            )
        values = {str(key): data[key] for key in keys}
        labelled = {
            name: not _frames.is_text(column) and _all_numbers(_frames.entries(column))
            for name, column in values.items()
            if _frames.is_category(column) or _frames.is_text(column)
        }
        columns = tuple(_column(function, *pair) for pair in values.items())
        named = True
    else:
        columns = _columns_of_array(function, data)
        if columns and kind(columns[0]) == "number" and columns[0].dtype != object:
            matrix = data
        names = tuple(f"x{i}" for i in range(len(columns)))
        named = False
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise error(
            ValueError,
            function,
            "columns differ in length",
            ", ".join(f"{n}: {len(c)}" for n, c in zip(names, columns, strict=True)),
            "Give every column the same number of rows.",
        )
    if lengths in (set(), {0}):
        raise error(
            ValueError,
            function,
            "data is empty",
            f"{max(lengths, default=0)} rows, {len(columns)} columns",
            "Pass at least one row and one column.",
        )
    numbered = frozenset(name for name, numbers in labelled.items() if numbers)
    return Table(names, columns, named, matrix, frozenset(labelled), numbered)


def concatenate(function: str, tables: Sequence[Table]) -> Table:
    """Tables with the same columns, one below the other."""
    import numpy as np

    first = tables[0]
    for table in tables:
        if table.names != first.names:
            raise error(
                ValueError,
                function,
                "two chunks have different columns",
                f"{', '.join(first.names)} and {', '.join(table.names)}",
                "Give every chunk the same columns in the same order.",
            )
    if all(table.matrix is not None for table in tables):
        return read(function, np.concatenate([np.asarray(t.matrix) for t in tables]))
    columns = zip(*(table.columns for table in tables), strict=True)
    joined = tuple(_below(parts) for parts in columns)
    labels = {name for table in tables for name in table.labelled}
    numbered = {name for name in labels if all(map(_numbered_in(name), tables))}
    return Table(
        first.names,
        joined,
        first.named,
        labelled=frozenset(labels),
        numbered=frozenset(numbered),
    )


def _numbered_in(name: str) -> Callable[[Table], bool]:
    def holds(table: Table) -> bool:
        column = table.columns[table.names.index(name)]
        return name in table.numbered or all(map(is_missing, column))

    return holds


def _below(parts: Sequence[HostArray]) -> HostArray:
    import numpy as np

    if len({part.dtype for part in parts}) > 1:  # text and its holes, say
        parts = [part.astype(object) for part in parts]
    return np.concatenate(parts)


def kind(column: HostArray) -> Kind:
    """Whether a column holds numbers; text, booleans and mixtures are categories."""
    if column.dtype.kind == "O":
        return "number" if _all_numbers(column) else "category"
    if column.dtype.kind in "iu" or jnp.issubdtype(column.dtype, jnp.floating):
        return "number"
    return "category"


def numbers(function: str, name: str, column: HostArray) -> HostArray:
    """A column as float32; None and its kin become NaN, sentinels stay.

    Raises:
      TypeError: the column holds something that is not a number.
    """
    import numpy as np

    if column.dtype.kind in "OUST":
        found = [v for v in column if not is_missing(v) and not _is_number(v)]
        if found:
            raise error(
                TypeError,
                function,
                f"column {name!r} must hold numbers",
                repr(found[0]),
                "Convert it to a number, or to None if it means missing.",
            )
        column = np.array(
            [np.nan if is_missing(v) else float(v) for v in column], np.float64
        )
    # Too large becomes infinite, a signalling NaN a quiet one: neither is news here.
    with np.errstate(over="ignore", invalid="ignore"):
        return column.astype(np.float32)


def texts(column: HostArray) -> list[str | None]:
    """A column as text, the name under which a category is known; missing is None."""
    return [None if is_missing(v) else label(v) for v in column.tolist()]


def sentinel_mask(column: HostArray, missing: Sentinels) -> HostArray:
    """bool[rows]: entries equal to a sentinel, each rounded to the column's dtype."""
    import numpy as np

    if kind(column) == "category":
        codes = {value for value in missing if isinstance(value, str)}
        return np.array([text in codes for text in texts(column)], bool)
    found = np.zeros(len(column), bool)
    if not missing:
        return found
    values = numbers("clean", "", column)
    for value in sentinel_numbers(missing, column.dtype):
        found |= values == np.float32(value)
    return found


def sentinel_numbers(missing: Sentinels, dtype: Any) -> tuple[float, ...]:
    """The numeric sentinels as data of this dtype would hold them."""
    import numpy as np

    found = [value for value in missing if not isinstance(value, str)]
    if not jnp.issubdtype(dtype, jnp.floating):
        return tuple(found)
    with np.errstate(over="ignore"):
        return tuple(float(np.asarray(v, np.float64).astype(dtype)) for v in found)


def precision(dtype: Any) -> Any:
    """What numbers of a dtype are looked at as: float32, or what they are if less."""
    import numpy as np

    half = jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize < 4
    return dtype if half else np.float32


def is_missing(value: Any) -> bool:
    """Whether one entry is None, NaN, NA or NaT, whichever library it comes from."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return _is_number(value) and bool(value != value)


def in_order(labels: Iterable[str], *, numbered: bool) -> tuple[str, ...]:
    """Categories sorted: as numbers if that is what their names are, else as text."""
    return tuple(sorted(labels, key=Decimal if numbered else None))


def _columns_of_array(function: str, data: Any) -> tuple[HostArray, ...]:
    import numpy as np

    if not (hasattr(data, "dtype") and hasattr(data, "shape")):
        raise error(
            TypeError,
            function,
            "data must be an array, a data frame or a mapping of columns",
            type(data).__name__,
            "Wrap rows with numpy.asarray, or name the columns in a dict.",
        )
    array = np.asarray(data)
    if array.ndim != 2:
        raise error(
            ValueError,
            function,
            "an array must have rows and columns",
            f"shape {array.shape}",
            "Reshape it to [rows, columns]; one column is array[:, None].",
        )
    _check_dtype(function, "the array", array)
    return tuple(array.T)


def _column(function: str, name: str, values: Any) -> HostArray:
    import numpy as np

    _refuse_traced(function, values)
    if _frames.is_category(values):
        values = texts(_frames.entries(values))
    # Without object, numpy would turn ["a", nan] into the two texts "a" and "nan".
    as_objects = isinstance(values, Sequence)
    column = np.asarray(values, object) if as_objects else np.asarray(values)
    if column.ndim != 1:
        raise error(
            ValueError,
            function,
            f"column {name!r} must be one-dimensional",
            f"shape {column.shape}",
            "Give every column one value per row.",
        )
    # A date with a time zone is known to its own dtype only, not to numpy.
    _check_dtype(function, f"column {name!r}", column, getattr(values, "dtype", None))
    return column


def _check_dtype(
    function: str, what: str, array: HostArray, own_dtype: Any = None
) -> None:
    kind = array.dtype.kind
    known = kind in "biufOUST" or jnp.issubdtype(array.dtype, jnp.floating)
    is_date = getattr(own_dtype, "kind", "") in ("M", "m")
    is_complex = kind == "O" and any(isinstance(v, complex) for v in array.flat)
    if not known or is_date or is_complex:
        raise error(
            TypeError,
            function,
            f"{what} must hold real numbers, text or booleans",
            own_dtype if is_date else "complex" if is_complex else array.dtype,
            "Split a complex number into two columns, turn a date into a number.",
        )


def _refuse_traced(function: str, data: Any) -> None:
    if isinstance(data, jax.core.Tracer):
        raise error(
            TypeError,
            function,
            "data must be concrete, but it is traced",
            data.aval,
            "Call it outside jit, grad and vmap; only clean.apply runs inside.",
        )


def _all_numbers(entries: Any) -> bool:
    return all(is_missing(value) or _is_number(value) for value in entries)


def _is_number(value: Any) -> bool:
    import numpy as np

    number = isinstance(value, (int, float, Decimal, np.integer, np.floating))
    return number and not isinstance(value, bool)


def label(value: Any) -> str:
    """The name under which a category is known."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a hole elsewhere in the column turned 1 into 1.0
    return value.decode() if isinstance(value, bytes) else str(value)
