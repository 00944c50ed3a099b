#!/usr/bin/env bash
# Sets everything up and passes the tests: format, lint, types, the order of rooms, then pytest.
# Arguments go to pytest, e.g.  ./test.sh tests/unit -k captions
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup-venv.sh
setup_venv dev
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/lint-imports
# One thread each: two test processes would otherwise fight over the cores.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist worksteal "$@"
