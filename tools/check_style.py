#!/usr/bin/env python3
"""Holds the size limits of the code: lines of 100 columns, files of 500 lines. Prints what is over."""
import pathlib
import subprocess
import sys

LINE, FILE = 100, 500


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    names = subprocess.run(["git", "ls-files", "*.h", "*.cpp", "*.cu", "*.cuh"], cwd=root,
                           capture_output=True, text=True, check=True).stdout.split()
    over = []
    for name in names:
        lines = (root / name).read_text(encoding="utf-8").splitlines()
        over += [f"{name}:{i}: {len(line)} columns" for i, line in enumerate(lines, 1) if len(line) > LINE]
        if len(lines) > FILE:
            over.append(f"{name}: {len(lines)} lines")
    print("\n".join(over) or f"{len(names)} files within {LINE} columns and {FILE} lines")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
