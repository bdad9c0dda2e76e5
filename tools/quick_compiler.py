"""Print the XLA flags with which the tests take half the time: those of them that are known here.

The tests run thousands of small programs once, so that most of their time is the compiler's. It is
half of that without LLVM's optimisations and XLA's fusion emitters; what is computed is the same,
but for the last bits. XLA ends a process at a flag that it does not know: so others ask.
"""

import os
import subprocess
import sys

QUICK = "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"
ASK = [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"]


def is_known(flag: str) -> bool:
    asked = subprocess.run(ASK, env={**os.environ, "XLA_FLAGS": flag}, capture_output=True)
    return asked.returncode == 0


before = os.environ.get("XLA_FLAGS", "")
flags = [before] if before else []
print(*flags, *filter(is_known, QUICK))
