#!/usr/bin/env bash
# Tests the installed package, with no sources beside it: PYTHON=<an environment's python> tools/test_elsewhere.sh
set -eu
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
cp -r tests pyproject.toml README.md "$elsewhere"
# that all of it is there and works; how exact it is was tested where it was built, by the slow tests
rm -rf "$elsewhere"/tests/{experiments,planted,test_planted.py,test_mutants.py,test_extremes.py,test_ways.py,test_optimizers.py}
cd "$elsewhere"
"$PYTHON" -c 'import jbackprop; assert "site-packages" in jbackprop.__file__, jbackprop.__file__'
"$PYTHON" -m pytest -n auto --dist loadfile tests README.md --pyargs jbackprop
