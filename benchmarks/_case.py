"""What is measured: a case is one piece of work, done by several contenders.

A suite is a module with `cases(quick=) -> Iterator[Case]`. It knows what is done, never
how time is taken; `_measure` knows how time is taken, never what is done.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Around = Callable[[], contextlib.AbstractContextManager[Any]]


class Program(NamedTuple):
    """Something to run again and again.

    Attributes:
      fn: pure function of `args`.
      args: its arguments. Never closed over: XLA would fold them at compile time.
      carried: the first argument is a state that `fn` gives back first; it is donated,
        and the next call gets what the last one left.
      jitted: whether to compile it; a function of the host is run as it is.
      around: what every call, and the compilation, has to stand in.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    carried: bool = False
    jitted: bool = True
    around: Around = contextlib.nullcontext


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One piece of work.

    Attributes:
      name: of the work, with its sizes.
      contenders: name -> how to build it. The arrays are made in there, so that a list
        of cases costs nothing. None for a peer that is not installed.
      baseline: the contender that all ratios are taken to.
      bars: contender -> largest ratio of run times that is demanded of it on a CPU.
      accelerator_bars: the same elsewhere.
      compile_bars: the same for lowering and compiling.
      memory_bars: the same for temporary memory.
    """

    name: str
    contenders: Mapping[str, Callable[[], Program] | None]
    baseline: str
    bars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    accelerator_bars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    compile_bars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    memory_bars: Mapping[str, float] = dataclasses.field(default_factory=dict)
