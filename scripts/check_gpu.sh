#!/usr/bin/env bash
# Proves and measures the GPU of this machine, within nine minutes: makes the environment, runs the tests that need a
# GPU, then the benchmarks, and writes a table for docs/speed.md. Needs no network where the packages are there.
#
#   bash scripts/check_gpu.sh
#   PARTS=speed bash scripts/check_gpu.sh      all of the time for the benchmarks (or PARTS=tests)
#
# Ends with exit code 1 where a test failed; the benchmarks are run nevertheless.
set -euo pipefail
set -f
own_python=${PYTHON_BIN:-}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

PARTS=${PARTS:-tests speed}
LIMIT=${LIMIT:-530}                        # seconds for all of it
TEST_LIMIT=${TEST_LIMIT:-240}              # seconds of the tests
RUN_DIR=${RUN_DIR:-runs/check_gpu}         # gets gpu.md and tests.log
ROWS=${ROWS:-}                             # of python -m benchmarks.gpu; empty: all that there is time for

need_number LIMIT 1
need_number TEST_LIMIT 1
for word in $PARTS; do
    case $word in tests|speed) ;; *) fail "PARTS: '$word' is none of: tests speed" ;; esac
done

packages="torch, torchvision, timm, numpy, pandas, PIL, matplotlib, tqdm, jinja2, safetensors, filelock"
if ! "$PYTHON_BIN" -c "import $packages, pytest, hypothesis" 2> /dev/null; then
    [ -z "$own_python" ] || fail "PYTHON_BIN=$PYTHON_BIN lacks one of: $packages, pytest, hypothesis"
    bash scripts/setup.sh requirements-test.txt
    PYTHON_BIN=$ROOT/.venv/bin/python
fi

card=$("$PYTHON_BIN" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
[ -n "$card" ] || fail "PyTorch finds no GPU: see nvidia-smi; a CPU build of PyTorch finds none either (setup.sh)"
echo "check_gpu: $card; at most $LIMIT s"
mkdir -p "$RUN_DIR"
code=0 said="not run" table="not asked for"

case " $PARTS " in *" tests "*)
    several=()
    # Each worker starts processes of its own, and all share one card.
    workers=$("$PYTHON_BIN" -c 'from utils.run.cpus import available_cpus as cpus; print(min(max(cpus() // 2, 2), 8))')
    if "$PYTHON_BIN" -c 'import xdist' 2> /dev/null; then several=(-n "$workers"); fi
    timeout -k 10 "$TEST_LIMIT" "$PYTHON_BIN" -m pytest -q -m cuda ${several[@]+"${several[@]}"} \
        tests/cuda tests/utils/fit 2>&1 | tee "$RUN_DIR/tests.log" || code=$?
    said=$(tail -n 1 "$RUN_DIR/tests.log")
    [ "$code" -ne 124 ] || said="not done in $TEST_LIMIT s"
esac

case " $PARTS " in *" speed "*)
    speed=0
    left=$((10#$LIMIT - SECONDS - 10))    # 0530 is no octal number
    "$PYTHON_BIN" -m benchmarks.gpu --device cuda --seconds "$((left > 0 ? left : 0))" --output "$RUN_DIR/gpu.md" \
        ${ROWS:+--rows $ROWS} || speed=$?
    if [ "$speed" -eq 0 ]; then
        table="$RUN_DIR/gpu.md, for docs/speed.md"
        echo
        cat "$RUN_DIR/gpu.md"
    else
        table="the benchmarks ended with exit code $speed" code=$speed
    fi
esac

echo
echo "check_gpu: tests: $said; table: $table; $SECONDS s"
[ "$code" -eq 0 ] || exit 1
