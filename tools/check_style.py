#!/usr/bin/env python3
"""Holds the size limits of the code: lines of 100 columns, files of 500 lines, nine functions in ten
within 40 lines (120 in kernels/). Prints what is over, and the longest functions."""
import pathlib
import subprocess
import sys

LINE, FILE = 100, 500
FUNCTION = {"src": 40, "tests": 40, "kernels": 120}  # 90th percentile


def functions(lines):
    """(first line, length) of every function, by the shape clang-format gives: it starts at the left
    margin, everything in it is indented, and its end is a lone brace at the margin."""
    start = 0
    for i, line in enumerate(lines):
        if line == "}":
            yield start + 1, i - start + 1
        elif line[:1].isalpha() or line[:1] == "_":
            start = i


def check(root, names):
    over, lengths = [], {folder: [] for folder in FUNCTION}
    for name in names:
        lines = (root / name).read_text(encoding="utf-8").splitlines()
        over += [f"{name}:{i}: {len(line)} columns" for i, line in enumerate(lines, 1) if len(line) > LINE]
        if len(lines) > FILE:
            over.append(f"{name}: {len(lines)} lines")
        folder = name.split("/")[0]
        lengths[folder] += [(length, f"{name}:{start}") for start, length in functions(lines)]
    for folder, found in lengths.items():
        found.sort()
        if not found:
            continue
        p90 = found[(9 * len(found) - 1) // 10][0]
        print(f"{folder}: {len(found)} functions, 90 % within {p90} lines, the longest "
              f"{found[-1][0]} ({found[-1][1]})")
        if p90 > FUNCTION[folder]:
            over.append(f"{folder}: 90 % of the functions within {p90} lines, the limit is {FUNCTION[folder]}")
    return over


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    patterns = [f"{folder}/*.{suffix}" for folder in FUNCTION for suffix in ("h", "cpp", "cu", "cuh")]
    names = subprocess.run(["git", "ls-files", *patterns], cwd=root, capture_output=True, text=True,
                           check=True).stdout.split()
    over = check(root, names)
    print("\n".join(over) or f"{len(names)} files within {LINE} columns and {FILE} lines")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
