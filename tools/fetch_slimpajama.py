#!/usr/bin/env python3
"""Fetches the study's corpus, SlimPajama-6B, and its tokenizer, as configs/data/slimpajama.yaml expects.

    pip install huggingface_hub pyarrow zstandard
    tools/fetch_slimpajama.py data/corpus/slimpajama                    about 14 GB to download
    tools/fetch_slimpajama.py data/corpus/slimpajama --from FOLDER      parquet files fetched otherwise

Each parquet file (columns text, meta) becomes one .jsonl.zst file under train/ or validation/. Files
that are there are complete and are not fetched or converted again, so the same command continues
after an interruption.
"""
import argparse
import glob
import json
import os
import sys

DATASET = "DKYoon/SlimPajama-6B"
TOKENIZER = ("TinyLlama/TinyLlama_v1.1", "tokenizer.model")
SPLITS = ("train", "validation")


def fail(message, remedy, code):
    print(f"error: {message}\n  -> {remedy}", file=sys.stderr)
    sys.exit(code)


def need(module):
    try:
        return __import__(module)
    except ImportError:
        fail(f"this needs the Python package '{module}'",
             "pip install huggingface_hub pyarrow zstandard", 2)


def split_of(name):
    """train-00000-of-00048-ab685552c3527bd7.parquet -> train"""
    return next((s for s in SPLITS if os.path.basename(name).startswith(s + "-")), None)


def remote_files():
    """Names of the parquet files, and how to get one into a local file."""
    hub = need("huggingface_hub")
    names = hub.HfApi().list_repo_files(DATASET, repo_type="dataset")
    return names, lambda name: hub.hf_hub_download(DATASET, name, repo_type="dataset")


def local_files(folder):
    names = glob.glob(os.path.join(folder, "**", "*.parquet"), recursive=True)
    return names, lambda name: name


def convert(source, target):
    """One parquet file to one .jsonl.zst file, by batches of rows; complete or absent."""
    parquet = need("pyarrow.parquet").parquet
    zstandard = need("zstandard")
    file = parquet.ParquetFile(source)
    if "text" not in file.schema_arrow.names:
        fail(f"'{source}' has no column 'text' but {file.schema_arrow.names}",
             "give the parquet files of " + DATASET, 3)
    temporary = target + ".tmp"
    rows = 0
    with open(temporary, "wb") as raw, zstandard.ZstdCompressor(level=6).stream_writer(raw) as out:
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            for text in batch.column(0).to_pylist():
                out.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
            rows += batch.num_rows
    os.replace(temporary, target)
    return rows


def fetch_tokenizer(folder):
    target = os.path.join(folder, "tokenizer.model")
    if os.path.exists(target):
        return
    cached = need("huggingface_hub").hf_hub_download(*TOKENIZER)
    with open(cached, "rb") as source, open(target + ".tmp", "wb") as out:
        out.write(source.read())
    os.replace(target + ".tmp", target)
    print(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where train/, validation/ and tokenizer.model go")
    parser.add_argument("--from", dest="local", metavar="FOLDER",
                        help="convert these parquet files, and fetch nothing")
    arguments = parser.parse_args()
    names, get = local_files(arguments.local) if arguments.local else remote_files()
    wanted = sorted(name for name in names if name.endswith(".parquet") and split_of(name))
    if not wanted:
        fail("there are no train-*.parquet or validation-*.parquet files",
             "give the folder that holds them", 4)
    for name in wanted:
        folder = os.path.join(arguments.folder, split_of(name))
        os.makedirs(folder, exist_ok=True)
        target = os.path.join(folder, os.path.basename(name)[:-len("parquet")] + "jsonl.zst")
        if os.path.exists(target):
            continue
        print(f"{target}: {convert(get(name), target)} documents", flush=True)
    if not arguments.local:
        fetch_tokenizer(arguments.folder)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted", "run the same command again: it continues", 130)
    except OSError as error:  # full disk, no network
        fail(str(error), "run the same command again: it continues", 4)
