"""Print the XLA flags under which the tests compile in half the time, or nothing where this jaxlib does not know them.

The tests run thousands of small programs once: most of their time is the compiler's. Without LLVM's optimisations and XLA's fusion
emitters it takes half of that. What is computed is the same but for the last bits. XLA ends the process at a flag that it does
not know, so a process of its own asks.
"""

import os
import subprocess
import sys

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
ask = [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"]
if subprocess.run(ask, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True).returncode == 0:
    print(flags)
else:
    print(os.environ.get("XLA_FLAGS", ""))
