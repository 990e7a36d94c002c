#!/usr/bin/env bash
# Everything there is to know about this build on a GPU machine without network, in about ten minutes:
#
#   tools/gpu_check.sh [--deps kla-bundle] [--out DIR] [--seconds 570] [STEP...]
#
# Builds the tree it stands in (with the libraries of an unpacked bundle, tools/bundle_deps.sh, where the machine has
# none of them), then runs: doctor, ranks (several GPUs, if there are), tests (ops, training, resume, evaluation, on
# the GPU against the double reference), step (0.4B, KLA and GDN, batch 8 and 16), train (100 steps beside the CPU's,
# repeats bit for bit, resume), decode, sanitizer (memcheck, racecheck, initcheck on the mixer's ops), peer (PyTorch
# with flash-linear-attention, if python3 has it). Naming steps runs those alone. DIR gets log, one file a step, and results.jsonl, written as it goes: a run that is cut off keeps what
# it has. Ends with a table of the steps; exit code 1 if a test, the sanitizer or a training comparison failed.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
deps="" out=$root/build/gpu_check seconds=570
while (($#)); do
  case $1 in
    --deps) deps=$(realpath "$2"); shift 2 ;;
    --out) out=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) break ;;
  esac
done
steps=("$@")
((${#steps[@]})) || steps=(doctor ranks tests step train decode sanitizer peer)
mkdir -p "$out" && out=$(realpath "$out")
results=$out/results.jsonl
: > "$results"
build=$root/build/gpu
kla=$build/kla
cd "$root" || exit 2
failed=0

table() {
  printf '\n%-34s %8s  %s\n' step seconds result
  sed -nE 's/^\{"kind":"check","name":"([^"]*)","seconds":([0-9]*),"result":"([^"]*)".*/\1\t\2\t\3/p' "$results" |
    awk -F'\t' '{printf "%-34s %8s  %s\n", $1, $2, $3}'
}
trap table EXIT

# check NAME LIMIT COMMAND...: runs it with the time that is left, keeps its output in DIR/NAME.log.
check() {
  local name=$1 limit=$2 start=$SECONDS left=$((seconds - SECONDS)) code
  shift 2
  if ((left < 5)); then code=skipped; else
    local guard=(timeout -k 5 $((limit < left ? limit : left)))
    [[ $(type -t "$1") == function ]] && guard=()  # a function watches the clock itself
    "${guard[@]}" "$@" > "$out/$name.log" 2>&1
    code=$?
  fi
  local result="passed"
  case $code in 0) ;; skipped) result="no time left" ;; 124 | 137) result="cut off" ;; *) result="FAILED ($code)" ;; esac
  printf '{"kind":"check","name":"%s","seconds":%d,"result":"%s"}\n' "$name" $((SECONDS - start)) "$result" >> "$results"
  echo "== $name: $result, $((SECONDS - start)) s"
  [[ $result == passed ]] && return 0
  tail -n 15 "$out/$name.log" 2> /dev/null | cut -c1-200
  return 1
}
bench() { # NAME LIMIT ARGUMENTS...
  local name=$1 limit=$2
  shift 2
  check "$name" "$limit" "$kla" bench configs/bench/gpu.yaml "$@" --json "$out/$name.jsonl"
  sed "s/^{/{\"name\":\"$name\",/" "$out/$name.jsonl" >> "$results" 2> /dev/null
  grep -E '^(step of|products at|of the time|decoding at|copying|all products)' "$out/$name.log"
}

configure=(cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DKLA_CUDA=ON -DKLA_TESTS=ON)
command -v ninja > /dev/null && configure+=(-G Ninja)
if [[ -n $deps ]]; then
  lib=$deps/deps/usr/lib/x86_64-linux-gnu
  configure+=("-DCMAKE_PREFIX_PATH=$deps/deps/usr" -DCMAKE_LIBRARY_ARCHITECTURE=x86_64-linux-gnu
    "-DOPENSSL_ROOT_DIR=$deps/deps/usr" "-DCMAKE_BUILD_RPATH=$lib" "-DCMAKE_EXE_LINKER_FLAGS_INIT=-Wl,-rpath-link,$lib")
fi
# Triton compiles its kernels for minutes: let it begin beside our compiler.
if [[ " ${steps[*]} " == *" peer "* ]]; then
  python3 tools/peers/fla_step.py --batch 8 --repeats 1 --compilers 9 ${KLA_PEER_ARGUMENTS:-} > "$out/peer_warm.log" 2>&1 &
fi
targets=(kla test_device test_train test_eval test_distributed)
check configure 60 "${configure[@]}" && check build 400 cmake --build "$build" -j "$(nproc)" --target "${targets[@]}" ||
  exit 1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader

ranks() {
  if (($(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l) < 2)); then
    echo "== ranks: one GPU here"
    return
  fi
  check ranks 90 "$build/tests/test_distributed" --gtest_filter='GpuRanks.*' || failed=1
}

tests() {
  check test_device 150 "$build/tests/test_device" || failed=1
  check test_train 90 "$build/tests/test_train" --gtest_filter='DeviceTraining.*' || failed=1
  check test_eval 60 "$build/tests/test_eval" || failed=1
}

sanitizer() {
  local tool
  for tool in memcheck racecheck initcheck; do
    check "sanitizer_$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$build/tests/test_device" --gtest_filter='*EveryLength:*SeveralDocuments:*WholeWarpgroups:DeviceStep.*' || failed=1
  done
}

# Runs a training command, asks it to save and stop once it has made some steps: success is its exit code 75.
stop_early() {
  local metrics=$1/runs/halves/metrics/train.jsonl
  shift
  "$@" &
  local pid=$! i
  for ((i = 0; i < 400; i++)); do
    [[ $(wc -l < "$metrics" 2> /dev/null || echo 0) -ge 20 ]] && break
    sleep 0.05
  done
  kill -USR1 $pid
  wait $pid
  [[ $? == 75 ]]
}

# A micro corpus out of the tree's own text, one model trained five ways.
train() {
  local data=$out/train
  rm -rf "$data" && mkdir -p "$data"
  cat README.md kernels/README.md src/*/*.cpp kernels/*/*.cpp > "$data/corpus.txt"
  cat > "$data/data.yaml" << END
inputs: ["$data/corpus.txt"]
output: "$data/tokens"
tokenizer: {vocab_size: 1024}
val_fraction: 0
END
  cat > "$data/run.yaml" << END
defaults: [$root/configs/quickstart/kla.yaml]
run: {dir: "$data/runs/{name}"}
model: {vocab_size: 1024}
data: {train: "$data/tokens/train", val: ""}
train: {max_tokens: 819200, global_batch_tokens: 8192}
eval: {interval_tokens: 0}
log: {interval_steps: 1}
optim: {lr: 1.0e-3}  # at the quickstart's 4e-3, a hundred steps amplify any rounding to per cents
END
  check train_data 60 "$kla" data prepare "$data/data.yaml" || return
  local run=("$kla" train "$data/run.yaml" --quiet)
  check train_cpu 100 "${run[@]}" run.name=cpu device.backend=cpu
  check train_f32 60 "${run[@]}" run.name=f32 device.backend=cuda device.dtype=f32
  check train_bf16 60 "${run[@]}" run.name=bf16 device.backend=cuda
  check train_again 60 "${run[@]}" run.name=again device.backend=cuda
  check train_stopped 60 stop_early "$data" "${run[@]}" run.name=halves device.backend=cuda
  check train_resumed 60 "${run[@]}" run.name=halves device.backend=cuda
  check train_compare 20 python3 tools/compare_losses.py "$data/runs/cpu" "$data/runs/f32:1e-3" \
    "$data/runs/bf16:2e-2" || failed=1
  check train_repeats 20 python3 tools/compare_losses.py "$data/runs/bf16" "$data/runs/again:0" \
    "$data/runs/halves:0" || failed=1
}

step() {
  local batch rule
  for batch in 8 16; do
    for rule in kla gdn; do bench "step_${rule}_b$batch" 90 batch=$batch model.step_size.rule=$rule; done
  done
  KLA_MATMUL_CHOICES=$out/matmul_choices bench step_kla_b8_tuned 90 batch=8
}
decode() { # batch, positions; the cost of getting there bounds the long ones
  local batch positions
  while read -r batch positions; do
    bench "decode_b$batch" 60 batch=$batch seq_len=$((batch > 32 ? 128 : 4096 / batch)) repeats=3 \
      --decode "$positions" --decode-only
  done << END
1 128,4096,32768,131072
8 128,4096,32768
32 128,4096
128 128,4096
END
}
peer() {
  local batch
  wait  # for the compilation begun at the start
  for batch in 8 16; do
    check "peer_b$batch" 200 python3 tools/peers/fla_step.py --batch $batch ${KLA_PEER_ARGUMENTS:-}
    grep '^{' "$out/peer_b$batch.log" | tee -a "$results"
  done
}

for name in "${steps[@]}"; do
  case $name in
    doctor) check doctor 60 "$kla" doctor && cat "$out/doctor.log" ;;
    ranks | tests | sanitizer | train | step | decode | peer) "$name" ;;
    *) echo "gpu_check: unknown step '$name'" >&2; exit 2 ;;
  esac
done
wait
exit $failed
