"""What per-example quantities cost, in multiples of the plain gradient; and what they cost others.

Those in JAX run over the batches in a compiled loop that writes each result over the last, so that
no fresh memory is counted. Each peer's numbers are compared with ours first.
"""

import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbackprop as jb
from experiments.benchmark.compare import GradientsDiffer
from experiments.benchmark.timing import in_turn, ratio
from experiments.benchmark.work import Work, problem

MAX_NORM = 1.0
# a peer that holds every example's gradient needs B × P numbers; beyond this it is left out
LIMIT = 2 * 2**30


class Peer(NamedTuple):
    """Another way to one of our quantities.

    Attributes:
        name: what the tables call it.
        quantity: which of ours it computes.
        result: no arguments, to that quantity, as NumPy arrays.
        run: computes it once, and returns when it is done.
        temporary_bytes: what it allocates besides arguments and result, or None if unknown.
        steps: batches in a run.
    """

    name: str
    quantity: str
    result: Callable[[], Any]
    run: Callable[[], object]
    temporary_bytes: float | None = None
    steps: int = 1

    @property
    def library(self) -> str:
        """The first word of the name."""
        return self.name.split(",")[0].split()[0]


def _panel(net: jb.Network, params: Any, factors: jb.Factors) -> Any:
    state = jb.TrainState._make([params, (), (), None, None])
    gradient = jb.mean_gradient(factors)
    updates = jax.tree.map(lambda g: -0.01 * g, gradient)
    return gradient, jb.observe_all(net)(factors, state, updates)


def _with(*quantities: Callable[[jb.Factors], Any]) -> Callable[..., Any]:
    """The mean gradient, and these beside it."""

    def both(net: jb.Network, params: Any, factors: jb.Factors) -> Any:
        return jb.mean_gradient(factors), *(quantity(factors) for quantity in quantities)

    return both


OURS: dict[str, Callable[..., Any]] = {
    "gradient": _with(),
    "factors as well": _with(lambda factors: factors),
    "norms, noise scale, norm test": _with(jb.squared_norms, jb.noise_scale, jb.norm_test),
    "norms alone": lambda net, params, factors: jb.squared_norms(factors),
    "clipped mean": lambda net, params, factors: jb.clipped_mean(MAX_NORM)(factors),
    "second moment": _with(jb.second_moment),
    "variance": _with(jb.variance),
    "inner-product and orthogonality tests": _with(jb.inner_product_test, jb.orthogonality_test),
    "Gram matrix": _with(jb.gram),
    "Kronecker factors": _with(jb.kronecker_factors),
    "the whole panel": _panel,
    "norms": _with(jb.squared_norms),
}


class Kept(NamedTuple):
    """A jitted function over many batches.

    Attributes:
        result: no arguments, to what it gives for the first batch.
        run: all batches in one compiled loop, each result written over the last.
        steps: how many batches that is.
        temporary_bytes: what one batch allocates besides arguments and result.
    """

    result: Callable[[], Any]
    run: Callable[[], object]
    steps: int
    temporary_bytes: float


def kept(f: Callable[..., Any], params: Any, x: Any, t: Any) -> Kept:
    """f(params, x, t) of a batch, over the batches x and t."""
    one = jax.jit(f)
    analysis = one.lower(params, x[0], t[0]).compile().memory_analysis()

    def loop(last: Any, params: Any, x: Any, t: Any) -> Any:
        return jax.lax.scan(lambda _, batch: (f(params, *batch), None), last, (x, t))[0]

    shapes = jax.eval_shape(f, params, x[0], t[0])
    last = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    compiled = jax.jit(loop, donate_argnums=0).lower(last, params, x, t).compile()

    def run() -> None:
        nonlocal last
        last = jax.block_until_ready(compiled(last, params, x, t))

    temporaries = float(analysis.temp_size_in_bytes) if analysis else float("nan")
    return Kept(lambda: one(params, x[0], t[0]), run, len(x), temporaries)


def quantities(work: Work, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Time and temporaries of every quantity, and of the peers that compute the same."""
    net = work.net
    numbers = problem(work._replace(steps=min(max(work.steps, 2), 100)))
    params = jb.init_state(net, optax.identity(), jax.random.key(0), params=numbers.params).params
    x, t = jnp.asarray(numbers.x), jnp.asarray(numbers.labels)

    def ours(quantity: Callable[..., Any], params: Any, x: Any, t: Any) -> Any:
        return quantity(net, params, jb.backprop(net, params, x, t))

    made = {name: kept(partial(ours, q), params, x, t) for name, q in OURS.items()}
    peers: list[Peer] = []
    for module in ("examples_jax", "examples_equinox", "examples_backpack", "examples_opacus"):
        try:
            peer = importlib.import_module(f"experiments.benchmark.peers.{module}")
        except ImportError as error:
            say(f"  {module}: skipped, {error.name} is not installed")
            continue
        peers += peer.candidates(work, numbers, MAX_NORM, small=_materialised(work) < LIMIT)
    for peer in peers:
        check(work, peer, made[peer.quantity].result())
    seconds = turns({name: (k.run, k.steps) for name, k in made.items()}, 0.2, rounds)
    plain = seconds["gradient"]
    return {
        "work": work._asdict(),
        "ours": {
            name: {
                "us": 1e6 * float(np.median(seconds[name])),
                "over_gradient": ratio(seconds[name], plain)._asdict(),
                "temporary_bytes": k.temporary_bytes,
            }
            for name, k in made.items()
        },
        "peers": beside(peers, made, rounds),
        "factors_bytes": 4 * work.batch * sum(work.sizes[1:]),
    }


def beside(peers: list[Peer], made: Any, rounds: int) -> dict[str, Any]:
    """Every peer in turn with ours of its quantity, apart from other libraries.

    Threads of one library that still spin slow down what another runs after it: the longer turns
    are, the less."""
    rows = {}
    for library in dict.fromkeys(peer.library for peer in peers):
        of_it = [peer for peer in peers if peer.library == library]
        ours = {p.quantity: (made[p.quantity].run, made[p.quantity].steps) for p in of_it}
        seconds = turns(ours | {p.name: (p.run, p.steps) for p in of_it}, 0.4, rounds)
        for peer in of_it:
            rows[peer.name] = {
                "quantity": peer.quantity,
                "us": 1e6 * float(np.median(seconds[peer.name])),
                "over_ours": ratio(seconds[peer.name], seconds[peer.quantity])._asdict(),
                "temporary_bytes": peer.temporary_bytes,
            }
    return rows


def turns(runs: dict[str, tuple[Any, int]], turn: float, rounds: int) -> Any:
    """Seconds of one batch of each, by round; a turn repeats a run for about so many seconds."""
    times = {name: _times(run, turn if rounds > 2 else 0) for name, (run, _) in runs.items()}
    repeated = {name: partial(_repeat, run, times[name]) for name, (run, _) in runs.items()}
    seconds = in_turn(repeated, rounds)
    return {name: s / times[name] / runs[name][1] for name, s in seconds.items()}


def _times(run: Callable[[], object], turn: float) -> int:
    run()
    start = time.perf_counter()
    run()
    return max(1, round(turn / (time.perf_counter() - start)))


def _repeat(run: Callable[[], object], times: int) -> None:
    for _ in range(times):
        run()


def _materialised(work: Work) -> int:
    params = sum((a + 1) * b for a, b in zip(work.sizes, work.sizes[1:], strict=False))
    return 4 * work.batch * params


def check(work: Any, peer: Peer, ours: Any, *, tolerance: float = 1e-4) -> None:
    """Every number of the peer's against ours, relative to the largest of its array."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(peer.result()), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        difference = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
        if not difference <= tolerance:
            raise GradientsDiffer(
                f"{peer.name} at {work.name}: its {peer.quantity} differs from ours by "
                f"{difference:.1e} of its largest entry; expected at most {tolerance:.0e}"
            )
