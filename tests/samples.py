"""Arguments for the rows of the catalog: every magnitude, edges, tame ones."""

import itertools
import zlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tests import oracles


def rng_of(row):
    return np.random.default_rng(zlib.crc32(row.name.encode()))


def cast(args, dtype):
    """Arrays of a dtype; integers stay what they are."""
    return tuple(
        a if np.asarray(a).dtype.kind in "iub" else np.asarray(a).astype(dtype)
        for a in args
    )


def arguments(row, dtype, *, more=1, lengths=(3, 60)):
    """List of argument tuples on which the bounds must hold; `more` times as many."""
    rng, dtype = rng_of(row), oracles.DTYPES[dtype]
    if row.sample is not None:
        draws = (row.sample(rng) for _ in range(more))
        batches = [cast(a, dtype) for a in itertools.chain.from_iterable(draws)]
        return batches if row.kind == "whole" else _merged(batches)
    if row.kind == "entrywise":
        count = 1000 if len(row.domain) == 1 else 500
        return [_entrywise(row, dtype, rng, count * more)]
    rows = [x for _ in range(more) for x in _rows_of_numbers(row, dtype, rng, lengths)]
    if row.kind == "labelled":
        return _merged([(x, _labels(rng, x)) for x in rows])
    return _merged([(x,) for x in rows])


def _merged(batches):
    """Batches of equal shape as one: a program for each shape, not for each batch."""
    groups = {}
    for args in batches:
        key = tuple((a.ndim, a.shape[1:]) for a in args)
        groups.setdefault(key, []).append(args)
    return [
        tuple(map(np.concatenate, zip(*group, strict=True)))
        for group in groups.values()
    ]


def _entrywise(row, dtype, rng, count):
    """Arguments of every magnitude in the domain; a quarter of pairs nearly equal."""
    columns = [_inside(low, high, dtype, rng, count) for low, high in row.domain]
    if len(columns) > 1:
        near = oracles.wide(columns[0]) * (
            1 + rng.normal(size=count) * 2.0 ** -rng.uniform(1, 24, count)
        )
        with np.errstate(over="ignore"):
            near = near.astype(dtype)
        chosen = inside(*row.domain[1], near) & (rng.random(count) < 0.25)
        columns[1] = np.where(chosen, near, columns[1])
    return tuple(columns)


def _inside(low, high, dtype, rng, count):
    """Numbers by bit pattern, moderate ones, and neighbours of 1 and the ends."""
    low_end, high_end = max(-128.0, low or 0.0), min(128.0, top(high, dtype))
    many = 16 * count
    steps = rng.integers(-400, 401, many) * float(jnp.finfo(dtype).eps)
    x = np.choose(
        rng.integers(0, 10, many),
        [oracles.wide(oracles.random_bits(rng, many, dtype))] * 4
        + [rng.standard_normal(many) * 8] * 2
        + [rng.uniform(low_end, high_end, many)] * 3
        + [rng.choice([-1.0, 1.0, low_end, high_end], many) * (1 + steps)],
    )
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    x = x[inside(low, high, x)]
    return x[:count]


def inside(low, high, x):
    """Which numbers lie in the open domain, are normal and not 0."""
    wide = oracles.wide(oracles.flush(x))
    info = jnp.finfo(x.dtype)
    above = wide >= float(info.tiny) if low is None else wide > low
    return above & (wide < top(high, x.dtype)) & (wide != 0) & np.isfinite(wide)


def top(high, dtype):
    """The high end of a domain; None stands for the logarithm of the largest number."""
    return np.log(float(jnp.finfo(dtype).max)) if high is None else high


def within(row, x):
    """Arguments from arbitrary floats: what lies outside the domain becomes 1/2."""
    return tuple(
        np.where(inside(low, high, column), column, column.dtype.type(0.5))
        for (low, high), column in zip(row.domain, x, strict=True)
    )


def _rows_of_numbers(row, dtype, rng, lengths):
    """Arrays [rows, n]: several lengths, scales and confident rows."""
    scales = np.repeat([1e-3, 1.0, 10.0, 50.0], 4)[:, None]
    for n in lengths:
        x = rng.standard_normal((16, n)) * scales
        x[::2] = np.sort(x[::2])[:, ::-1]  # first entry largest
        x[::4, 0] += scales[::4, 0]
        yield x.astype(dtype)


def _labels(rng, x):
    labels = rng.integers(0, x.shape[1], x.shape[0]).astype(np.int32)
    labels[::2] = 0
    return labels


def shorten(row, args):
    """Few arguments, of one shape for every row of a kind."""
    count = 64 if row.kind == "entrywise" else 8
    return args if row.kind == "whole" else tuple(a[:count] for a in args)


def terms(row, args):
    """How many summands of a result may have been flushed to 0."""
    return (
        0
        if row.kind == "entrywise"
        else max(np.shape(a)[-1] for a in args if np.ndim(a))
    )


def plain(row, dtype, count=5):
    """A few tame arguments, away from every edge."""
    rng, kind = rng_of(row), oracles.DTYPES[dtype]
    if row.sample is not None:
        args = cast(next(row.sample(rng)), kind)
        if row.kind != "whole":
            args = tuple(a[-count:] for a in args)
    elif row.kind == "entrywise":
        args = cast((_tame(rng, *ends, count) for ends in row.domain), kind)
    else:
        args = cast((rng.standard_normal((3, count)),), kind)
        if row.kind == "labelled":
            args = (*args, np.arange(3, dtype=np.int32) % count)
    return tuple(map(jnp.asarray, args))


def _tame(rng, low, high, count):
    low, high = max(low or 0.0, -3.0), min(3.0 if high is None else high, 3.0)
    if low < 0.5 < 1 < high:
        low = 0.5
    margin = 0.1 * (high - low)
    return rng.uniform(low + margin, high - margin, count)


class Edges(NamedTuple):
    """Edges as batches of equal shape, and where each edge went: (batch, place)."""

    batches: list
    places: list


def edges(row, dtype, chosen=None):
    """The documented points; what float16 cannot hold becomes infinite."""
    groups, places = {}, []
    for edge in row.edges if chosen is None else chosen:
        args = [np.asarray(a) for a in edge.args]
        with np.errstate(over="ignore"):
            args = cast(
                (a.astype(np.int32) if a.dtype.kind == "i" else a for a in args),
                oracles.DTYPES[dtype],
            )
        shapes = tuple(a.shape for a in args)
        # Edges of a whole-array function stay apart.
        key = (shapes, len(places)) if row.kind == "whole" else shapes
        group = groups.setdefault(key, [])
        places.append((key, len(group)))
        group.append(args)
    order = {key: i for i, key in enumerate(groups)}
    batches = [
        group[0]
        if row.kind == "whole"
        else tuple(map(np.stack, zip(*group, strict=True)))
        for group in groups.values()
    ]
    return Edges(batches, [(order[key], place) for key, place in places])


def exists_in(edge, dtype):
    """Whether the dtype holds the arguments; to float16 1e19 is infinity."""
    numbers = np.hstack([np.ravel(a) for a in edge.args])
    finite = numbers[np.isfinite(numbers)]
    return (np.abs(finite) <= float(jnp.finfo(oracles.DTYPES[dtype]).max)).all()


def is_tame(edge):
    """Whether arguments and value are finite."""
    numbers = np.hstack([np.ravel(a) for a in (*edge.args, edge.value)])
    return np.isfinite(numbers).all()


def nudges(args):
    """Arguments moved by +-width in one entry at a time, stacked; and the widths."""
    sizes = [a.size for a in args]
    flat = np.concatenate([np.ravel(a) for a in args]).astype(np.float32)
    width = np.exp2(np.round(np.log2(np.abs(flat) + 0.25))) * 2.0**-8
    moves = np.diag(width).astype(np.float32)
    moved = np.concatenate([flat + moves, flat - moves])
    parts = np.split(moved, np.cumsum(sizes)[:-1], axis=1)
    shaped = [p.reshape(-1, *a.shape) for p, a in zip(parts, args, strict=True)]
    return tuple(map(jnp.asarray, shaped)), width


def central_difference(slopes, width):
    """Matrix of second derivatives from slopes at `nudges`."""
    flat = np.concatenate([np.reshape(s, (2 * width.size, -1)) for s in slopes], axis=1)
    up, down = np.split(flat.astype(np.float64), 2)
    return (up - down).T / (2 * width)


def as_matrix(hessian, args):
    """Nested blocks of second derivatives as one matrix."""
    return np.block(
        [
            [np.reshape(b, (a.size, -1)) for b in blocks]
            for a, blocks in zip(args, hessian, strict=True)
        ]
    )
