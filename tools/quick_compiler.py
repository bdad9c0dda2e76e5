"""Print XLA flags with which the tests take half the time, or nothing new where they are not known.

The tests run thousands of small programs once, so that most of their time is the compiler's. It is
half of that without LLVM's optimisations and XLA's fusion emitters; what is computed is the same,
but for the last bits. XLA ends a process at a flag that it does not know: so another one asks.
"""

import os
import subprocess
import sys

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

before = os.environ.get("XLA_FLAGS", "")
flags = f"{before} {QUICK}".strip()
ask = [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"]
known = subprocess.run(ask, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True)
print(before if known.returncode else flags)
