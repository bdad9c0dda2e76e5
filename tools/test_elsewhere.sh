#!/usr/bin/env bash
# Tests the installed package, with no sources beside it: PYTHON=<an environment's python> tools/test_elsewhere.sh
set -eu
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
cp -r tests pyproject.toml README.md "$elsewhere"
rm -rf "$elsewhere/tests/experiments"
cd "$elsewhere"
"$PYTHON" -c 'import jbackprop; assert "site-packages" in jbackprop.__file__, jbackprop.__file__'
"$PYTHON" -m pytest -n auto --dist loadfile tests README.md --pyargs jbackprop
