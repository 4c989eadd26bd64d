#!/usr/bin/env bash
# Runs everything that only a GPU can show: parity, benchmarks, repeatability and a search.
#
#   scripts/gpu_check.sh [FOLDER]       results go to FOLDER, by default results/gpu
#   SMOKE=1 scripts/gpu_check.sh DIR    runs the same parts in small on a CPU, to test this script
#
# CORPUS is the text of the search: stdlib (the default), which needs no download, or parquet:DIR, a
# folder of shards. Its rows are packed into CACHE (default: cache) before the clock starts. PYTHON is
# the interpreter (default: .venv/bin/python). Each part has a time limit, and all parts end within 9
# minutes. A part that fails or exceeds its limit costs only its own figures.
set -uo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${1:-results/gpu}")
python=${PYTHON:-.venv/bin/python}
corpus=${CORPUS:-stdlib}
cache=${CACHE:-cache}
smoke=${SMOKE:-0}
mkdir -p "$out"
rm -f "$out"/parts.tsv

if [ "$smoke" = 1 ]; then
  tiny=model.n_layer=1,model.n_embd=24,model.sequence_len=16,data.vocab_size=300
  size=(--variants=cpu --set=$tiny --rounds=2 --steps=2)
  large=(--variants=d12 --rounds=1)  # skipped on a CPU
  repeat=("${size[@]}")
  search=(--variants=cpu "--set=$tiny,train.steps=4,search.generations=1,data.corpus=$corpus")
  lanes=2 total=${SECONDS_ALLOWED:-900}
else
  size=(--variants=d4 --rounds=3 --steps=5)
  # NanoChat divides its batch of :d12 over eight GPUs; this is the share of one.
  large=(--variants=d12 --rounds=3 --steps=3 --batch_size=8)
  repeat=(--variants=d4 --set=model.n_layer=2 --steps=5)
  search=(--variants=d4 "--set=data.corpus=$corpus,train.steps=100,train.segment_steps=50,search.generations=1,data.max_epochs=100,data.validation_rows=256")
  lanes=64 total=${SECONDS_ALLOWED:-530}
fi

# Packs rows before the clock starts, because downloads and packing are not measured.
echo "preparing $corpus in $cache"
"$python" - "$corpus" "$cache" "$smoke" <<'PYTHON' || exit 1
import sys

from nanoevolve_jax.configs import screen
from nanoevolve_jax.data.rows import build_rows

corpus, cache, smoke = sys.argv[1:]
config = screen.get_config("cpu" if smoke == "1" else "d4")
if smoke == "1":
    config.data.vocab_size, config.model.sequence_len = 300, 16
build_rows(
    corpus,
    vocab_size=config.data.vocab_size,
    sequence_len=config.model.sequence_len,
    cache_dir=cache,
    shards=config.data.shards,
    folds=config.data.folds,
)
PYTHON

began=$(date +%s)

# part NAME LIMIT COMMAND...: runs a command for at most LIMIT seconds or the remaining time.
part() {
  local name=$1 limit=$2 left started code
  shift 2
  left=$((total - ($(date +%s) - began)))
  [ "$limit" -gt "$left" ] && limit=$left
  started=$(date +%s)
  if [ "$limit" -le 5 ]; then
    code=skipped
  else
    echo "== $name, at most $limit s: $*"
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.txt" 2>&1
    code=$?
    tail -n 40 "$out/$name.txt"
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$(($(date +%s) - started))" "${*//$out\//}" \
    >>"$out/parts.tsv"
}

run() {
  local name=$1 limit=$2 module=$3
  shift 3
  part "$name" "$limit" "$python" -m "$module" "$@" --out="$out/$name.json"
}

scale=$((smoke == 1 ? 5 : 1))  # a shared CPU is slow
part parity $((60 * scale)) "$python" -m model.parity \
  --reference tests/reference/a.npz --reference tests/reference/muon.npz
run population_d4 $((120 * scale)) benchmarks.population "${size[@]}" --max_lanes=$lanes --seconds=30
run population_d12 $((75 * scale)) benchmarks.population "${large[@]}" --max_lanes=1 --seconds=60
run optimizer $((85 * scale)) benchmarks.optimizer "${size[@]}" --seconds=120
run search $((130 * scale)) benchmarks.search "${search[@]}" --prepared --cache="$cache"
run repeat $((110 * scale)) benchmarks.repeat "${repeat[@]}"
run code $((60 * scale)) benchmarks.code "${size[@]}" --rounds=10

# Writes the parts with their results, the device and the versions.
"$python" - "$out" "$python" "$smoke" <<'PYTHON'
import json
import sys
from pathlib import Path

from benchmarks.timing import environment

out, python, smoke = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
rows = [line.split("\t") for line in (out / "parts.tsv").read_text().splitlines()]
parts = [
    {
        "part": name,
        "ended": {"0": "finished", "124": "time limit", "skipped": "skipped"}.get(
            code, f"exit code {code}"
        ),
        "seconds": int(seconds),
        "command": command.replace(python, "python"),
    }
    for name, code, seconds, command in rows
]
command = f"{'SMOKE=1 ' if smoke == '1' else ''}scripts/gpu_check.sh"
document = environment("") | {"command": command, "parts": parts}
(out / "summary.json").write_text(json.dumps(document, indent=2) + "\n")
for part in parts:
    print(f"{part['part']}: {part['ended']} after {part['seconds']} s")
sys.exit(any(part["ended"] != "finished" for part in parts))
PYTHON
code=$?
rm -f "$out"/parts.tsv
exit $code
