#!/usr/bin/env bash
# What is measured on a machine with two GPUs, in ten minutes: both together first, then one lane on each.
#
#   WHEELS=folder bench/on_two_gpus.sh OUT [SECONDS]      # logs and figures go to OUT; WHEELS as for on_gpu.sh
#
# Both: the same course as one (tests/gpu/test_two_gpus.py), then how fast (bench/several_gpus.py). First GPU: `doctor`, the
# ladder's rung of 80 GiB, the step's table. Second: its rungs of 8, 16, 24 and 12 GiB side by side, where memory counts and
# speed does not, then what being watched costs.
set -u
cd "$(dirname "$0")/.."
out=$1 limit=${2:-585}
mkdir -p "$out/a" "$out/b"
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} WHEELS=
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
left() { # seconds that are left, less those of $1
    local rest=$((limit - SECONDS - ${1:-0}))
    echo $((rest > 1 ? rest : 1))
}

both() { # log, seconds, command
    local log=$1 seconds=$2
    shift 2
    timeout "$seconds" "$@" >"$log" 2>&1
    tail -n 20 "$log" | cut -c1-200
}

first_lane() {
    export CUDA_VISIBLE_DEVICES=0
    timeout 40 python3 -c 'from simpletuner.cli.app import main; main()' doctor
    LADDER_S=$(left 5) LADDER="--rungs 80" TAIL=30 bash bench/on_gpu.sh "$out/a" ladder
    STEP_S=$(left 15) STEP="--no-numerics --variants fast --steps 14 --limit 170" TAIL=20 bash bench/on_gpu.sh "$out/a" step
}

second_lane() {
    export CUDA_VISIBLE_DEVICES=1
    local rung
    for rung in 8 16 24 12; do
        LADDER_S=$(left 150) LADDER="--rungs $rung --gemma" TAIL=30 bash bench/on_gpu.sh "$out/b/$rung" ladder >"$out/b/rung-$rung.txt" 2>&1 &
    done
    wait
    cat "$out"/b/rung-*.txt
    timeout "$(left 3)" python3 bench/listening.py --gpu --budget "$(left 25)"
}

CUDA_VISIBLE_DEVICES=0 TESTS_S=80 TESTS=step_graph TAIL=30 bash bench/on_gpu.sh "$out/a" tests &
both "$out/a/two-course.log" 240 python3 -m pytest -q -s --tb=short -p no:cacheprovider tests/gpu/test_two_gpus.py
wait
echo "== speed at $SECONDS s"
both "$out/a/two-speed.log" 260 python3 bench/several_gpus.py --json "$out/a/several.json"
echo "== lanes at $SECONDS s"
first_lane >"$out/a/lane.txt" 2>&1 &
(second_lane) >"$out/b/lane.txt" 2>&1 # its own shell: what it waits for is its own
wait
grep -vh "Writing model\|torchao" "$out/b/lane.txt" | cut -c1-200
cut -c1-200 "$out/a/lane.txt"
echo "== end at $SECONDS s"
