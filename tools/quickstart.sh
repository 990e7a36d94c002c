#!/usr/bin/env bash
# From nothing to two trained models and a report: fetches the dictionary, prepares tokens, trains KLA and
# GDN, writes runs/quickstart/report.html. Every step continues or is skipped when it was done before.
set -euo pipefail
kla=$1
corpus=data/corpus/gcide

if [[ ! -e $corpus/gcide.jsonl ]]; then
  echo "== corpus: Webster's dictionary (Debian package dict-gcide)"
  mkdir -p data/corpus
  temporary=$(mktemp -d data/corpus/fetch.XXXXXX)
  trap 'rm -rf "$temporary"' EXIT
  (cd "$temporary" && apt-get download -qq dict-gcide && dpkg-deb -x dict-gcide_*.deb unpacked)
  mkdir -p "$corpus"
  python3 tools/gcide_corpus.py "$temporary/unpacked/usr/share/dictd/gcide.dict.dz" "$corpus/gcide.jsonl"
fi

echo "== tokens: tokenizer, training and validation shards"
"$kla" data prepare configs/data/quickstart.yaml
for model in kla gdn; do
  echo "== training $model"
  "$kla" train "configs/quickstart/$model.yaml"
done
echo "== report"
"$kla" report runs/quickstart/kla runs/quickstart/gdn -o runs/quickstart/report.html
echo "Done. Open runs/quickstart/report.html; try:"
echo "  $kla generate runs/quickstart/kla --prompt \"A dog is\""
echo "  $kla eval runs/quickstart/kla --context 128,512,2048"
