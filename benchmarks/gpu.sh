#!/usr/bin/env bash
# The tests and benchmarks of a machine with a CUDA device, which needs no network and no `make dev`:
# torch, Triton, pytest and what faststy runs on, in some Python, are enough.
#
#   [OUT=folder] [PYTHON=python3] [BENCH_SECONDS=480] benchmarks/gpu.sh
#   REHEARSE=1 OUT=folder [PYTHON=python3] benchmarks/gpu.sh
#
# Leaves logs, junit.xml, the results of all suites with their charts and tables, and guards.toml with
# floors for this device in OUT, by default benchmarks/results/<device>/. Each suite is a process of
# its own, which is ended when its share of BENCH_SECONDS is over: what it had measured is kept.
# REHEARSE goes through all of it on a CPU in short: tests are collected, suites take their quick form.
# Exit status: 0; 1 if a step failed (the others still run); 2 without a CUDA device.
set -uo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
BENCH_SECONDS=${BENCH_SECONDS:-480}
REHEARSE=${REHEARSE:-}

# .venv may hold torch without CUDA while the machine's own Python has it, or the other way round.
where=(--device cuda)
[ -n "$REHEARSE" ] && where=(--device cpu --quick)
device=
for python in ${PYTHON:+"$PYTHON"} "$repository/.venv/bin/python" python3; do
  device=$(REHEARSE=$REHEARSE "$python" -c 'import os, torch
if os.environ["REHEARSE"]: print("rehearsal")
elif torch.cuda.is_available(): print(torch.cuda.get_device_name().replace(" ", "-"))' 2>/dev/null)
  [ -n "$device" ] && break
done
if [ -z "$device" ]; then
  echo "There is no CUDA device that torch of ${PYTHON:+$PYTHON, }.venv or python3 can use: nothing was run." >&2
  exit 2
fi
python=$("$python" -c 'import sys; print(sys.executable)')
OUT=${OUT:-benchmarks/results/$device}
mkdir -p "$OUT/suites" && OUT=$(cd "$OUT" && pwd) || exit 1

# What is built goes to a folder of its own, from which everything runs: so it comes before the
# package in the repository, which lacks its kernels until it is installed.
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
if ! "$python" setup.py -q egg_info --egg-base "$build" \
  build --build-base "$build/temporary" --build-lib "$build/package" >"$OUT/build.log" 2>&1; then
  echo "setup.py build fails here (build.log): the package is copied, without its C++ extension"
  rm -rf "$build/package" && mkdir -p "$build/package"
  cp -r faststy "$build/package/" && cp -r kernels "$build/package/faststy/" || exit 1
fi
ln -s "$repository/benchmarks" "$build/package/benchmarks" # where `faststy bench` looks for them
cd "$build/package" || exit 1
export PYTHONPATH=$build/package${PYTHONPATH:+:$PYTHONPATH}
unset TRITON_INTERPRET FASTSTY_IMPL
nvidia-smi >"$OUT/nvidia-smi.txt" 2>&1

failed=
step() { # NAME COMMAND…
  local name=$1
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$OUT/$name.log" || failed="$failed $name"
}
tests() { # ARGUMENTS…
  "$python" -m pytest -c "$repository/pyproject.toml" --rootdir "$repository" -p no:cacheprovider -q \
    ${REHEARSE:+--collect-only} "$@"
}

cases=$repository/tests
# What compiles for chips that are not there takes minutes, and no GPU.
step tests-ops tests "$cases/ops" "$cases/kernels" --ignore "$cases/kernels/test_compile.py" \
  --junitxml "$OUT/junit.xml"
mapfile -t marked < <(grep -rl --include='test_*.py' 'mark\.gpu' "$cases" | grep -v "^$cases/\(ops\|kernels\)/")
[ ${#marked[@]} -gt 0 ] && step tests-others tests -m gpu "${marked[@]}"

suites=(startup memory stylization training ops)
end=$((SECONDS + BENCH_SECONDS)) left=${#suites[@]}
for suite in "${suites[@]}"; do
  share=$(((end - SECONDS) / left--))
  step "$suite" timeout -k 5 "$share" "$python" -m faststy bench "$suite" --json "$OUT/suites/$suite.json" \
    --seconds $((share - share / 10)) "${where[@]}"
done
commit=$(git -C "$repository" describe --always --dirty 2>/dev/null || echo unknown)
step tables "$python" benchmarks/_join.py "$OUT/$(date -u +%F)-$commit.json" "$OUT"/suites/*.json

cp "$repository/benchmarks/guards.toml" "$OUT/guards.toml"
if [ -z "$REHEARSE" ]; then # a rehearsal measures too little for floors
  step guards timeout -k 5 120 "$python" benchmarks/guard.py --renew --file "$OUT/guards.toml"
  echo "To hold these floors: cp $OUT/guards.toml $repository/benchmarks/"
fi

echo "Results are in $OUT"
if [ -n "$failed" ]; then
  echo "Failed:$failed" >&2
  exit 1
fi
