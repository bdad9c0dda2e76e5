"""`python -m jbackprop`: is it right on this machine? With the file of a saved network: on that."""

import argparse
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

import jbackprop as jb

NETWORKS = {
    "dense": jb.Network((20, 16, 12, 5), (jb.tanh, jb.gelu), jb.softmax, jb.cross_entropy),
    "convolutional": jb.Network(
        ((10, 10, 2), jb.Conv(4, 3, stride=2, padding=1), jb.Conv(24, 3), jb.MaxPool(2), 3),
        jb.tanh,
        jb.sigmoid,
        jb.binary_cross_entropy,
    ),
}


def examples(net: jb.Network, batch: int = 8) -> tuple[Any, Any]:
    """Inputs and targets that the cost takes, at random."""
    of_x, of_t = jax.random.split(jax.random.key(1))
    x, (n,) = jax.random.normal(of_x, (batch, *net.shapes[0])), net.shapes[-1]
    if net.cost == jb.cross_entropy:
        return x, jax.random.randint(of_t, (batch,), 0, n)
    if net.cost == jb.binary_cross_entropy:
        return x, jax.random.bernoulli(of_t, 0.5, (batch, n)).astype(jnp.float32)
    return x, jax.random.normal(of_t, (batch, n))


def main(arguments: list[str] | None = None) -> int:
    """0 where everything agrees, else 1."""
    parser = argparse.ArgumentParser(prog="python -m jbackprop", description=__doc__)
    parser.add_argument("files", nargs="*", help="networks that jbackprop.save wrote")
    files = parser.parse_args(arguments).files
    try:
        loaded = {file: jb.load(file) for file in files}
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    given = loaded or {
        name: (net, jb.init(net, jax.random.key(0))) for name, net in NETWORKS.items()
    }
    start, passed = time.perf_counter(), True
    for name, (net, params) in given.items():
        try:
            report = jb.verify(net, params, *examples(net))
        except ValueError as error:
            report = None
            print(f"{name}: {error}", file=sys.stderr)
        print(f"{name}: {report}\n" if report else "")
        passed &= report is not None and report.passed
    print(f"{'all agree' if passed else 'WRONG'}, after {time.perf_counter() - start:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
