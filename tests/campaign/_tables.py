"""Counts made of what the steps did, and the tables they stand in."""

import numpy as np

from jaxsafe import testing
from tests.campaign._harness import FINITE, NONFINITE

PLACES, KINDS = testing.FAULT_PLACES, testing.FAULT_KINDS
STATE = PLACES.index("optimizer_state")


def nonfinite(seen):
    """Which faults left something non-finite.

    In an update, which nothing outside of the optimizer sees, the kind tells: no
    update is so large that one exponent bit could make it infinite.
    """
    kinds = [KINDS.index(k) for k in NONFINITE]
    in_update = (seen["place"] == PLACES.index("updates")) & np.isin(
        seen["kind"], kinds
    )
    return seen["struck"] & (seen["nonfinite"] | in_update)


def row(seen):
    """What one run comes to."""
    struck, ok = seen["struck"], seen["ok"]
    bad = nonfinite(seen)
    finite = struck & ~bad
    before = seen["before"]
    loss = seen["loss"]
    return {
        "faults": int(struck.sum()),
        "non-finite": int(bad.sum()),
        "rejected": int((bad & ~ok).sum()),
        "gone": int((bad & ok & ~seen["missed"]).sum()),
        "poisoned": int(seen["poisoned"].sum()),
        "missed": int(seen["missed"].sum()),
        "changed": int(seen["changed"].sum()),
        "healthy rejected": int((~struck & ~ok & ~before).sum()),
        "finite": int(finite.sum()),
        "clipped": int((finite & ok & seen["clipped"]).sum()),
        "skipped": int((finite & ~ok).sum()),
        "passed": int((finite & ok & ~seen["clipped"]).sum()),
        "before": int(before.sum()),
        "seen": int((before & ~ok).sum()),
        "unhealed": int(seen["unhealed"].sum()),
        "rolled back": int(seen["rolled_back"].sum()),
        "first": float(loss[:5].mean()),
        "last": float(loss[-20:].mean()),
        "disagree": int(np.sum(seen.get("disagree", 0))),
    }


def added(rows):
    return {key: sum(r[key] for r in rows) for key in rows[0]}


def by_place(runs):
    """(place, kind) -> row, over all runs."""
    cells = {}
    for place in PLACES:
        for kind in KINDS:
            rows = []
            for seen in runs:
                here = (seen["place"] == PLACES.index(place)) & (
                    seen["kind"] == KINDS.index(kind)
                )
                rows.append(row({**seen, "struck": seen["struck"] & here}))
            total = added(rows)
            if total["faults"]:
                cells[place, kind] = total
    return cells


def share(part, whole):
    return f"{100 * part / whole:.0f} %" if whole else "-"


def learns(r):
    word = "" if r["last"] < r["first"] else " (no)"
    return f"{r['first']:.2g} → {r['last']:.2g}{word}"


def tables(ours, behind, peers):
    """Title, note, header and rows of each table; arguments map name -> seen."""
    rows = {name: row(seen) for name, seen in ours.items()}
    after = {name: row(seen) for name, seen in behind.items()}
    theirs = {name: row(seen) for name, seen in peers.items()}
    counted = ["faults", "non-finite", "rejected", "gone", "poisoned", "missed"]
    counted += ["changed", "healthy rejected"]
    total = added(list(rows.values()))
    yield (
        "Every fault, jaxsafe",
        "Places: batch, loss, gradients and loss scale with every kind, updates and "
        "optimizer state with NaN and infinities. *Rejected*, *gone*: of non-finite "
        "faults (gone: overwritten before it was read, committed with everything "
        "finite). *Poisoned*: after the step a leaf of the model state is not finite "
        "and none was before. *Missed*: committed, and the loss or a leaf is not "
        "finite. *Changed*: rejected, and the model state is not bitwise as it was "
        "(on several devices: or they differ).",
        ["run", *counted, "loss, first → last"],
        [
            *([n, *(r[k] for k in counted), learns(r)] for n, r in rows.items()),
            ["all", *(total[k] for k in counted), ""],
        ],
    )
    cells = by_place(list(ours.values()) + list(behind.values()))
    yield (
        "Finite faults: what became of them",
        "All runs together. *Clipped*: committed, shortened. *Skipped*: the step was "
        "rejected. *Passed*: committed as it was; harmless, or noticed later.",
        ["place", "kind", "faults", "clipped", "skipped", "passed"],
        [
            [p, k, c["finite"], *(share(c[x], c["finite"]) for x in OUTCOMES)]
            for (p, k), c in cells.items()
            if k in FINITE and c["finite"]
        ],
    )
    way_back = ("healthy rejected", "rolled back", "poisoned", "missed")
    yield (
        "Finite faults behind the clip: the way back",
        "Huge numbers, flipped exponent bits, zeros and denormals in updates and "
        "optimizer state, one in every fourth step; nothing but a bound on loss and "
        "parameters can see them. *Rolled back*: to the last good snapshot, by the "
        "rule of `guard.run`; until then healthy steps are rejected. The "
        "loss has to end below its start.",
        ["run", "faults", *OUTCOMES, *way_back, "loss, first → last"],
        [
            [
                n,
                r["faults"],
                *(share(r[x], r["faults"]) for x in OUTCOMES),
                *(r[k] for k in way_back),
                learns(r),
            ]
            for n, r in after.items()
        ],
    )
    yield (
        "Faults in the optimizer state: poisoned before the step",
        "*Poisoned before*: a leaf of the state is not finite when the step begins. "
        "*Seen*: the step is rejected. *Gone*: it is committed and everything is "
        "finite. *Left*: not finite after `transforms.heal_state`; for a peer, which "
        "has no such thing, after the step.",
        ["run", "poisoned before", "seen", "gone", "left"],
        [
            [
                n,
                r["before"],
                r["seen"],
                r["before"] - r["seen"] - lost(n),
                r["unhealed"],
            ]
            for source, lost in ((rows, lambda _: 0), (theirs, missed_before(peers)))
            for n, r in source.items()
            if r["before"]
        ],
    )
    beside = {n: r for n, r in rows.items() if n in COMPARED}
    yield (
        "The same faults at what people use today",
        "A peer that was poisoned gets the state back that it had before, so that "
        "every fault counts once.",
        ["run", *(k for k in counted if k not in ("gone", "changed"))],
        [
            [n, *(r[k] for k in counted if k not in ("gone", "changed"))]
            for n, r in {**beside, **theirs}.items()
        ],
    )


OUTCOMES = ("clipped", "skipped", "passed")
COMPARED = ("MLP, adam", "transformer, float16, loss scale")


def gone(r, lost):
    return r["before"] - r["seen"] - lost


def missed_before(peers):
    def count(name):
        seen = peers[name]
        return int((seen["before"] & seen["missed"]).sum())

    return count


def markdown(found, heading):
    lines = [heading, ""]
    for title, note, header, rows in found:
        lines += [f"## {title}", "", note, ""]
        lines += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        lines += [f"| {' | '.join(str(c) for c in r)} |" for r in rows]
        lines.append("")
    return "\n".join(lines)
