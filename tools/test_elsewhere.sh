#!/usr/bin/env bash
# Tests the installed package, with no sources beside it: PYTHON=<an environment's python> tools/test_elsewhere.sh
set -eu
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
cp -r tests pyproject.toml README.md "$elsewhere"
cd "$elsewhere"
"$PYTHON" -c 'import jbackprop; assert "site-packages" in jbackprop.__file__, jbackprop.__file__'
# that all of it is there and works: every public function is called twice, every example runs; what
# comes out was compared where it was built
"$PYTHON" -m pytest -n auto --dist loadfile tests/test_calls.py tests/test_checks.py tests/test_train.py README.md --pyargs jbackprop
