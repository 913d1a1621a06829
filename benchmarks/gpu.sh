#!/usr/bin/env bash
# The tests and benchmarks of a machine with a CUDA device, which needs no network and no `make dev`:
# torch, Triton, pytest and what faststy runs on, in some Python, are enough; with pytest-xdist the
# tests run side by side, with matplotlib there are charts.
#
#   [OUT=folder] [PYTHON=python3] [TEST_SECONDS=150] [BENCH_SECONDS=480] [SUITES="training ops"] \
#     benchmarks/gpu.sh
#   REHEARSE=1 OUT=folder [PYTHON=python3] benchmarks/gpu.sh
#
# Leaves logs, JUnit files, the results of all suites with their charts and tables, and guards.toml
# with floors for this device in OUT, by default benchmarks/results/<device>/. Tests are interrupted
# after TEST_SECONDS (0: there are none); those that had failed are told. Each suite, and the guards,
# are a process of their own, which is ended when its share of BENCH_SECONDS is over: what it had
# measured is kept. A suite that is not among SUITES keeps what it measured before at the same commit,
# or, where git tells none, of the same sources.
# The build and the tables come on top, in about a minute.
# REHEARSE goes through all of it on a CPU in short: tests are collected, suites take their quick form.
# Exit status: 0; 1 if a step failed, or the build (the others still run); 2 without a CUDA device, or for a suite
# that there is not.
set -uo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
TEST_SECONDS=${TEST_SECONDS:-150}
BENCH_SECONDS=${BENCH_SECONDS:-480}
REHEARSE=${REHEARSE:-}

declare -A weight=([stylization]=3 [training]=3 [ops]=5 [startup]=2 [memory]=2 [guards]=2)
read -ra suites <<<"${SUITES:-stylization training ops startup memory}"
for suite in "${suites[@]}"; do
  if [ -z "${weight[$suite]:-}" ] || [ "$suite" = guards ]; then
    echo "SUITES: expected stylization, training, ops, startup or memory, got $suite: nothing was run." >&2
    exit 2
  fi
done

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
for name in tests-others tests-ops "${suites[@]}" guards; do # of a run before, they would pass for ours
  rm -f "$OUT/$name.log" "$OUT/$name.xml" "$OUT/suites/$name.json"
done

# What is built goes to a folder of its own, from which everything runs: so it comes before the
# package in the repository, which lacks its kernels until it is installed.
build=$(mktemp -d) failed=
trap 'rm -rf "$build"' EXIT
package() { # into $build/package
  if ! "$python" setup.py -q egg_info --egg-base "$build" \
    build --build-base "$build/temporary" --build-lib "$build/package" >"$OUT/build.log" 2>&1; then
    echo "setup.py build fails here (build.log): the package is copied, without its C++ extension"
    failed="$failed build"
    rm -rf "$build/package" && mkdir -p "$build/package"
    cp -r faststy "$build/package/" && cp -r kernels "$build/package/faststy/" || exit 1
    rm -f "$build"/package/faststy/_C*.so # of another torch, or an older source
  fi
  # Where faststy is installed editable, its finder would give what is lacking from the repository.
  compgen -G "$build/package/faststy/_C*.so" >/dev/null ||
    echo 'raise ModuleNotFoundError("it was not built: see build.log")' >"$build/package/faststy/_C.py"
}
package
ln -s "$repository/benchmarks" "$build/package/benchmarks" # where `faststy bench` looks for them
cd "$build/package" || exit 1
export PYTHONPATH=$build/package${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
unset TRITON_INTERPRET FASTSTY_IMPL
nvidia-smi >"$OUT/nvidia-smi.txt" 2>&1

step() { # NAME SECONDS COMMAND…
  local name=$1 seconds=$2
  shift 2
  echo "== $name: at most $seconds s"
  # An interrupt, upon which pytest still tells what failed and suites stop; then the end. tee is not
  # waited for long: what a process that was killed has started may keep its input open.
  local to tee
  exec {to}> >(exec tee "$OUT/$name.log") && tee=$!
  timeout --foreground -s INT -k 10 "$seconds" "$@" >&"$to" 2>&1 {to}>&- || failed="$failed $name"
  exec {to}>&-
  for _ in {1..20}; do
    kill -0 "$tee" 2>/dev/null || break
    sleep 0.1
  done
}

# --------------------------------------------------------------------------- tests

options=(-p no:cacheprovider -p no:benchmark -q -rfE --tb=short --durations=8)
[ -n "$REHEARSE" ] && options+=(--collect-only)
if [ -z "$REHEARSE" ] && "$python" -c 'import xdist' 2>/dev/null; then
  # Side by side each has one core, for what is compiled as well.
  export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1
  workers=$(nproc)
  options+=(-n "$((workers > 14 ? 14 : workers))")
fi
tests() { # NAME SECONDS ARGUMENTS…
  local name=$1 seconds=$2
  shift 2
  [ "$seconds" -gt 0 ] || return 0 # `timeout` takes 0 for no limit
  step "$name" "$seconds" "$python" -m pytest -c "$repository/pyproject.toml" --rootdir "$repository" \
    "${options[@]}" --junitxml "$OUT/$name.xml" "$@"
}
cases=$repository/tests end=$((SECONDS + TEST_SECONDS))
marked_in() { # FOLDER: what there needs a GPU, without ops and kernels; a conftest.py marks its folder
  grep -rl --include='*.py' 'mark\.gpu' "$1" | sed 's|/conftest\.py$||' |
    grep -v "^$1/\(ops\|kernels\)\(/\|$\)"
}
mapfile -t marked < <(marked_in "$cases")
[ ${#marked[@]} -gt 0 ] && tests tests-others $((TEST_SECONDS / 2)) -m gpu "${marked[@]}"
# What compiles for chips that are not there takes minutes, and no GPU.
tests tests-ops $((end - SECONDS)) "$cases/ops" "$cases/kernels" \
  --ignore "$cases/kernels/test_compile.py"
unset OMP_NUM_THREADS TORCHINDUCTOR_COMPILE_THREADS

# --------------------------------------------------------------------------- benchmarks

end=$((SECONDS + BENCH_SECONDS)) weights=0
share() { # WEIGHT: that of the time that is left, by the weights that are left
  seconds=$(((end - SECONDS) * $1 / weights)) weights=$((weights - $1))
  seconds=$((seconds > 1 ? seconds : 1))
}
for suite in "${suites[@]}" guards; do weights=$((weights + weight[$suite])); done
for suite in "${suites[@]}"; do
  share "${weight[$suite]}"
  # No case begins in the last quarter: the slowest take so long.
  step "$suite" "$seconds" "$python" -m faststy bench "$suite" --json "$OUT/suites/$suite.json" \
    --seconds $((seconds * 3 / 4)) "${where[@]}"
done
cp "$repository/benchmarks/guards.toml" "$OUT/guards.toml"
if [ -z "$REHEARSE" ]; then # a rehearsal measures too little for floors
  share "${weight[guards]}"
  step guards "$seconds" "$python" benchmarks/guard.py --renew --file "$OUT/guards.toml" \
    --seconds $((seconds * 3 / 4))
  echo "To hold these floors: cp $OUT/guards.toml $repository/benchmarks/"
fi
commit=$(git -C "$repository" describe --always --dirty 2>/dev/null || echo unknown)
step tables 60 "$python" benchmarks/_join.py "$OUT/$(date -u +%F)-$commit.json" "$OUT"/suites/*.json

# --------------------------------------------------------------------------- what came of it

came_of_it() { # of this run: logs of suites that were not asked for are of one before
  local name
  for name in tests-others tests-ops "${suites[@]}" guards; do
    grep -shE '^(FAILED|ERROR) |^(wrong|WRONG)|[0-9]+ (passed|failed|error).* in [0-9.]+s' "$OUT/$name.log"
  done
}
came_of_it
echo "Results are in $OUT"
if [ -n "$failed" ]; then
  echo "Failed:$failed" >&2
  exit 1
fi
