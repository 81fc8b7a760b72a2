#!/usr/bin/env bash
# Run the checks and the tests:  ./run_tests.sh [--all] [pytest arguments]
# Without --all the tests marked `slow` are left out, and pytest says how many.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here"
extras="[dev]"
source "$here/environment.sh"
bin="$here/.venv/bin"

select=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
  select=(--hypothesis-profile=long)
  shift
fi

if [ $# -eq 0 ]; then
  echo "== ruff, mypy, import-linter" >&2
  "$bin/ruff" check .
  "$bin/ruff" format --check .
  "$bin/mypy"
  "$bin/lint-imports"
fi
echo "== pytest" >&2
# Two workers, since much of the time is spent waiting for processes to start. A folder's tests stay
# on one worker, in the order of collection (tests/conftest.py): they share expensive runs.
exec "$bin/python" -m pytest "${select[@]}" --numprocesses 2 --dist loadscope --no-loadscope-reorder "$@"
