"""Find the equation that first turned finite numbers into a NaN or an infinity.

The function is traced, and its equations are run again under one jit with one extra
number per equation; blame walks back from the bad outputs; a second run fetches the
operands of the culprit. The function itself is never changed and never called twice.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxsafe import _program
from jaxsafe._errors import error
from jaxsafe._program import NOWHERE, Frame, Node, Shards, Site, Traced
from jaxsafe.diagnose._blame import Blame, Event, Run, blame
from jaxsafe.diagnose._evidence import bad_label, gather, slope_of
from jaxsafe.diagnose._explain import INPUT, explain, remedies
from jaxsafe.diagnose._finding import Finding, Stats
from jaxsafe.diagnose._phase import phase as phase_of
from jaxsafe.diagnose._probe import Probed, probe


def first_nonfinite(
    fn: Callable[..., Any], *args: Any, allow: tuple[str, ...] = (), **kwargs: Any
) -> Finding | None:
    """Name the first equation of `fn(*args, **kwargs)` that goes non-finite.

    An equation counts if its result is NaN or infinite, its operands were not, and an
    output of `fn` depends on it. Infinities that the arguments or the program itself
    contain (masks) are taken as intended, and so is what `where` throws away. What is
    diagnosed is the compiled program: XLA turns `inf * mask` into a select, so it is 0
    there although op by op it is NaN; `cross_check` runs both. A mutable `jax.Ref` is
    blamed where it is read.

    Args:
      fn: the function, as it is called in training; for a fault in the backward pass
        pass `jax.value_and_grad(loss)` or the whole step. It is traced, not run.
      *args: its arguments: concrete arrays in any pytree.
      allow: what may be non-finite: beginnings of the names of arguments ("batch['x']")
        and outputs ("result[1]"), or names of primitives ("log").
      **kwargs: its keyword arguments.

    Returns:
      A `Finding`, or None if all outputs are finite or intended.

    Raises:
      TypeError: an argument is a tracer, `fn` cannot be traced, or `allow` is no tuple
        of strings.
      ValueError: an argument was donated and is gone.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([1.0, 100.0])
      >>> finding = first_nonfinite(lambda x: jnp.sum(jnp.exp(x)), x)
      >>> finding.primitive, finding.cause, finding.operands[0].maximum
      ('exp', 'overflow', 100.0)
      >>> first_nonfinite(jnp.sum, jnp.ones(3)) is None
      True
    """
    check_allow("first_nonfinite", allow)
    traced = _program.trace("first_nonfinite", fn, args, kwargs)
    return find(fn, traced, run_of(traced, allow), allow)


def run_of(traced: Traced, allow: tuple[str, ...], *, compiled: bool = True) -> Run:
    """Run a function that is traced by either engine, and look at every value."""
    together = _on_one_cpu(traced.values)
    watch = _program.Magnitudes(_program.depth(traced.program), together=together)
    keys, rows = _program.observe(
        traced.program, traced.values, watch, compiled=compiled
    )
    return Run(traced, keys, rows, allow)


def _on_one_cpu(values: list[Any]) -> bool:
    arrays = [x for x in values if isinstance(x, jax.Array)]
    devices: set[Any] = {d for x in arrays for d in x.sharding.device_set}
    if not devices:
        return jax.default_backend() == "cpu"
    return len(devices) == 1 and devices.pop().platform == "cpu"


def find(
    fn: Callable[..., Any],
    traced: Traced,
    run: Run,
    allow: tuple[str, ...],
    *,
    compiled: bool = True,
) -> Finding | None:
    """The diagnosis of a run, by the engine that made it."""
    found = blame(run, allow, traced.outputs)
    if found is None:
        return None
    return _report(fn, traced, run, found, compiled=compiled)


def check_allow(function: str, allow: Any) -> None:
    """Raise TypeError unless `allow` is a tuple of strings."""
    if isinstance(allow, tuple) and all(isinstance(a, str) for a in allow):
        return
    raise error(
        TypeError,
        function,
        "allow must be a tuple of strings",
        repr(allow),
        'Write for example allow=("batch[\'mask\']", "log").',
    )


def _report(
    fn: Callable[..., Any], traced: Traced, run: Run, found: Blame, *, compiled: bool
) -> Finding:
    root = found.root
    turning = _turning_event(found)
    steps = {e.node.step: e.turns for e in (turning, root) if e.node.step}
    bare = [] if root.node.step else [root.node]
    probed = probe(traced, steps, bare, compiled=compiled)
    phase = phase_of(run, root)
    evidence = gather(run, found, turning, phase, probed)
    verdict = explain(evidence) if evidence else INPUT
    function = (slope_of(evidence) if evidence else "") or _name(root)
    note = bad_label(evidence) if evidence else ""
    if function != _name(root):
        note = f"slope of {function}"
    site = _site(found)
    frame = site.frame if site.frame != NOWHERE else _program.of_function(fn)
    operands, result = _numbers(root, probed)
    return Finding(
        primitive=_name(root),
        file=frame.file,
        line=frame.line,
        source=frame.text,
        function=frame.function,
        module=site.module,
        phase=phase,
        iteration=_iteration(root),
        branch=root.node.branch,
        device=_device(root),
        operands=operands,
        result=result,
        chain=_chain(found, turning, frame, note),
        cause=verdict.cause,
        remedies=remedies(verdict.cause, function),
        confidence=verdict.confidence,
    )


def _turning_event(found: Blame) -> Event:
    """The first NaN on the way, or the root if it is one or none follows."""
    return next((e for e in found.path if e.kind == "nan"), found.root)


def _site(found: Blame) -> Site:
    """Where the root stands; an input stands where it is first used."""
    steps = [e.node.step for e in found.path if e.node.step]
    return steps[0].site if steps else Site()


def _name(event: Event) -> str:
    step = event.node.step
    if step is not None:
        return step.primitive
    inputs = ("argument", "constant", "literal")
    return "(input)" if event.node.kind in inputs else event.node.kind


def _numbers(root: Event, probed: Probed) -> tuple[tuple[Stats, ...], Stats]:
    step = root.node.step
    if step is not None:
        return probed.inputs[step], probed.results[step]
    stats = probed.nodes[root.node]
    return (stats,), stats


def _iteration(root: Event) -> tuple[int, ...]:
    pairs = zip(root.node.loops, root.turns, strict=True)
    loops = [(at, turn) for at, turn in pairs if not isinstance(at, Shards)]
    return tuple(loop.iteration(turn) for loop, turn in loops)


def _device(root: Event) -> int | None:
    """Position in the mesh of the innermost shard_map around the root."""
    pairs = zip(root.node.loops, root.turns, strict=True)
    return next((t for at, t in reversed([*pairs]) if isinstance(at, Shards)), None)


def _chain(found: Blame, turning: Event, frame: Frame, note: str) -> tuple[str, ...]:
    root = found.root
    name = _label(root.node) if root.node.step is None else _name(root)
    if note:
        name = f"{name} ({note})"
    chain = [f"{name} -> {root.kind} at {frame.place}"]
    step = turning.node.step
    if turning is not root and step is not None:
        chain.append(f"{step.primitive} -> nan at {step.site.frame.place}")
    return tuple(chain)


def _label(node: Node) -> str:
    return node.label or "a closed-over constant"
