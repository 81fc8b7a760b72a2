#!/usr/bin/env bash
# Train from a recipe:  ./run_train.sh recipes/rl_reverse.toml [--any.key value ...]
# The first use makes the environment in .venv; later ones start at once.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
extras=""
source "$here/environment.sh"
exec "$here/.venv/bin/torchrl-ckpt" run "$@"
