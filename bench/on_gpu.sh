#!/usr/bin/env bash
# The measurements that need a GPU, one after the other within their limits, on a machine that may have no network.
#
#   bench/on_gpu.sh OUT [memory] [cache] [tests] [kernels] [plans] [step] …      # logs and figures go to OUT
#   WHEELS=folder bench/on_gpu.sh OUT …                                   # first installs tools/offline_wheels.py's folder
#
# Each part has a limit in seconds, so that a command of ten minutes shows something of all: MEMORY_S=190 CACHE_S=100 …
set -u
cd "$(dirname "$0")/.."
out=$1 && shift
mkdir -p "$out"
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
python3 -c 'import diffusers, pydantic, rich, torch; print(torch.__version__, torch.cuda.get_device_name())' || exit 1

# One depthwise operation, forward and backward, at the real size.
STALLS='
import torch
from simpletuner.models.sana.kernels.depthwise import gated_depthwise
x, w, b = (torch.randn(s, device="cuda").bfloat16().requires_grad_() for s in ((8, 1024, 11200), (11200, 1, 3, 3), (11200,)))
gated_depthwise(x, w, b, 32, 32).sum().backward()
'

part() { # name, seconds, command
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    echo "== $name: $*"
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
    echo "== $name: exit $? after $((SECONDS - began)) s"
    tail -n "${TAIL:-25}" "$out/$name.log" | cut -c1-220
}

for name in "$@"; do
    case $name in
    memory) part memory "${MEMORY_S:-240}" python3 bench/low_memory.py --base nf4-bnb --steps "${MEMORY_STEPS:-20}" ${MEMORY:-} ;;
    cache) part cache "${CACHE_S:-130}" python3 bench/cache_build.py --pictures "${PICTURES:-240}" ${CACHE:---batch 4} ;;
    tests) part tests "${TESTS_S:-80}" python3 -m pytest -q -p no:cacheprovider tests/gpu -k "${TESTS:-gpu}" ;;
    kernels) part kernels "${KERNELS_S:-90}" python3 bench/operations.py --batch 8 --seconds 80 ;;
    plans) part plans "${PLANS_S:-60}" python3 bench/operations.py --batch 8 --plans --seconds 45 ${PLANS:-} ;;
    stalls) part stalls "${STALLS_S:-60}" ncu --clock-control none -k "regex:(gate|spread)_kernel" -c 3 --set full \
        python3 -c "$STALLS" ;;
    ladder) part ladder "${LADDER_S:-540}" python3 bench/ladder.py --budget "${LADDER_S:-540}" --json "$out/ladder.json" ${LADDER:-} ;;
    chart) part chart "${CHART_S:-100}" python3 bench/recompute_chart.py --out "$out/recompute.png" ${CHART:-} ;;
    loader) part loader "${LOADER_S:-100}" python3 bench/step.py --loader --budget "${LOADER_S:-100}" --json "$out/loader.json" ;;
    startup) part startup "${STARTUP_S:-130}" python3 bench/step.py --start-up --budget "${STARTUP_S:-130}" --json "$out/startup.json" ;;
    curve) part curve "${CURVE_S:-150}" python3 bench/loss_curve.py --out "$out/loss_curve.png" ;;
    step) part step "${STEP_S:-200}" python3 bench/step.py --json "$out/step.json" --budget "${STEP_S:-200}" ${STEP:-} ;;
    *) echo "there is no part $name" && exit 2 ;;
    esac
done
