#!/usr/bin/env bash
# From nothing to two trained models and a report: fetches the dictionary, prepares tokens, trains KLA and GDN,
# writes runs/quickstart/report.html. Every step continues, or is skipped, where it was done before.
set -euo pipefail
kla=$1
corpus=data/corpus/gcide
dictionary=/usr/share/dictd/gcide.dict.dz  # of the package dict-gcide, which need not be installed

fetch_dictionary() {  # into the current directory
  apt-get download -qq dict-gcide && return
  # A machine whose package lists were never fetched, or are old.
  local as_root=()
  [[ $(id -u) == 0 ]] || as_root=(sudo -n)
  "${as_root[@]}" apt-get update -qq && apt-get download -qq dict-gcide && return
  echo "quickstart: the package dict-gcide could not be downloaded. Run, then try again:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y dict-gcide" >&2
  exit 2
}

if [[ ! -e $corpus/gcide.jsonl ]]; then
  echo "== corpus: Webster's dictionary (Debian package dict-gcide)"
  mkdir -p "$corpus"
  if [[ ! -e $dictionary ]]; then
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    (cd "$unpacked" && fetch_dictionary && dpkg-deb -x dict-gcide_*.deb .)
    dictionary=$unpacked$dictionary
  fi
  python3 tools/gcide_corpus.py "$dictionary" "$corpus/gcide.jsonl"
fi

echo "== tokens: tokenizer, training and validation shards"
"$kla" data prepare configs/data/quickstart.yaml
for model in kla gdn; do
  echo "== training $model"
  "$kla" train "configs/quickstart/$model.yaml"
done
echo "== report"
"$kla" report runs/quickstart/kla runs/quickstart/gdn -o runs/quickstart/report.html

cat << END
== done
   the report     $PWD/runs/quickstart/report.html
   a sample       $kla generate runs/quickstart/kla --prompt "A dog is"
   longer texts   $kla eval runs/quickstart/kla --context 128,512,2048
END
