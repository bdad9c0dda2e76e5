"""Test accuracy of the digits' default settings over seeds 0 to 4: `make seeds`."""

import json
import tempfile
from pathlib import Path

from experiments.digits import Options, main

if __name__ == "__main__":
    accuracies = []
    for seed in range(5):
        with tempfile.TemporaryDirectory() as folder:
            main(Options(seed=seed, out=Path(folder)))
            (metrics,) = Path(folder).glob("*/metrics.jsonl")
            last = json.loads(metrics.read_text().splitlines()[-1])
            accuracies.append(last["test"]["accuracy"])
    mean = sum(accuracies) / len(accuracies)
    print("test accuracy:", *(f"{a:.2%}" for a in accuracies), f"mean {mean:.2%}")
