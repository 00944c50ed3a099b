#!/usr/bin/env bash
# Sets everything up and trains: config/config.json if there is one, else the embedded example.
# All arguments go to `simpletuner train`, e.g.  ./train.sh --max_train_steps 50
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup-venv.sh
setup_venv
exec .venv/bin/simpletuner train "$@"
