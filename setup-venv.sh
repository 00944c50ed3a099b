#!/usr/bin/env bash
# Makes .venv beside this file and installs simpletuner into it. Sourced by train.sh and test.sh.
# Usage: setup_venv [extra]; safe to run again: it installs only when pyproject.toml or constraints.txt changed, or when
# something (pip install './[wandb]') has put a copy in the place of this folder, which would not change with it.

setup_venv() {
    local extra="${1:-}" root python stamp wanted
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
    python="${PYTHON:-}"
    if [ -z "$python" ]; then
        for candidate in python3 python3.12 python3.11 python3.13; do
            if command -v "$candidate" >/dev/null 2>&1 &&
                "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
                python="$candidate"
                break
            fi
        done
    fi
    if [ -z "$python" ]; then
        echo "SimpleTuner needs Python 3.11, 3.12 or 3.13, and none was found. Install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
        return 1
    fi
    stamp="$root/.venv/.installed${extra:+-$extra}"
    wanted="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$root/.venv/bin/python" -P -c 'import importlib.util, sys
sys.exit(not importlib.util.find_spec("simpletuner").origin.startswith(sys.argv[1]))' "$root/simpletuner/" 2>/dev/null; then
        return 0
    fi
    echo "Setting up the virtual environment in .venv (once; about a minute) …"
    if ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv --clear "$root/.venv" || {
            echo "Could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        }
    fi
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$root/constraints.txt" -e "$root${extra:+[$extra]}" || return 1
    echo "$wanted" >"$stamp"
}
