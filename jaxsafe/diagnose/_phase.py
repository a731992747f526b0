"""Which pass of a training step an equation belongs to.

JAX keeps it in the name stack: `transpose(jvp(...))` around the backward pass, `jvp`
around the forward pass that is differentiated. A coefficient of the derivative, such as
`0.5 / sqrt(x)`, is computed in the forward pass but belongs to the backward one: its
bad value reaches the outputs through transposed equations only.
"""

from jaxsafe._program import Apply, Loop, Node, Site
from jaxsafe.diagnose._blame import Event, Run

_GRADIENT_NAMES = ("grad", "update")


def phase(run: Run, root: Event) -> str:
    """Say "input", "forward", "backward" or "update" of the root of a fault."""
    node = root.node
    if node.kind in ("argument", "constant", "literal"):
        return "input"
    site = node.step.site if node.step else Site()
    upstream = ancestors(node)
    if _is_training_loop(root) or _is_update(site, upstream):
        return "update"
    if is_transposed(site) or not _reaches_value(run, root):
        return "backward"
    return "forward"


def pass_of(step: Apply, *, differentiated: bool) -> str:
    """Say "forward", "backward" or "update" of an equation, whatever its numbers.

    `differentiated`: whether the program has a backward pass that it could come after.
    """
    site = step.site
    if is_transposed(site):
        return "backward"
    if is_differentiated(site):
        return "forward"
    after = differentiated and _is_update(site, ancestors(step.outputs[0]))
    return "update" if site.optimizer or after else "forward"


def is_transposed(site: Site) -> bool:
    """Whether an equation belongs to the backward pass proper."""
    _, found, rest = site.stack.rpartition("transpose(")
    return bool(found) and "rematted_computation" not in rest


def is_differentiated(site: Site) -> bool:
    """Whether an equation belongs to a function of which a derivative is taken."""
    return "jvp(" in site.stack or "transpose(" in site.stack


def ancestors(node: Node) -> set[Node]:
    """Everything that a value is computed from."""
    seen: set[Node] = set()
    todo = [node]
    while todo:
        for parent in todo.pop().parents:
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return seen


def _is_update(site: Site, upstream: set[Node]) -> bool:
    if is_differentiated(site):
        return False
    if site.optimizer:
        return True
    if any(n.step is not None and is_transposed(n.step.site) for n in upstream):
        return True
    names = [n.label.lower() for n in upstream if n.kind == "argument"]
    return any(name.startswith(_GRADIENT_NAMES) for name in names)


def _is_training_loop(root: Event) -> bool:
    """A later turn of a loop whose carried values were updated by gradients."""
    for loop, turn in zip(root.node.loops, root.turns, strict=True):
        if not isinstance(loop, Loop) or turn == 0 or is_differentiated(loop.site):
            continue
        upstream = ancestors(root.node)
        for node in loop.carry:
            if node in upstream and any(
                n.step is not None and loop in n.loops and is_transposed(n.step.site)
                for n in ancestors(node)
            ):
                return True
    return False


def _twins(run: Run, root: Event) -> list[Event]:
    """The events of the root's equation: remat runs it again in the backward pass."""
    step = root.node.step
    if step is None:
        return [root]
    return [
        event
        for event in run.events.values()
        if event.node.step is not None
        and event.node.step.primitive == step.primitive
        and event.node.step.site.frame == step.site.frame
        and event.kind == root.kind
    ]


def _reaches_value(run: Run, root: Event) -> bool:
    """Whether the bad value spoils a result without passing the backward pass."""
    readers = run.program.walk()
    consumed = {node for step in readers for node in step.inputs}
    consumed.update(p for e in run.events.values() for p in e.node.parents)
    outputs = set(run.program.outputs)
    after = run.after()
    todo = _twins(run, root)
    seen = {event.key for event in todo}
    while todo:
        event = todo.pop()
        node = event.node
        # `jax.grad` computes the loss and drops it: a scalar that nobody uses.
        dropped = node not in consumed and node.aval.shape == ()
        if node in outputs or dropped:
            return True
        for later in after[event.key]:
            step = later.node.step
            if later.key in seen or (step and is_transposed(step.site)):
                continue
            seen.add(later.key)
            todo.append(later)
    return False
