#!/usr/bin/env python3
"""Compares the training losses of runs, step by step, with those of the first: RUN:BOUND is the largest relative
difference allowed (0: the same bits). Exit code 1 if one differs by more.

    tools/compare_losses.py runs/cpu runs/gpu_f32:1e-5 runs/gpu_bf16:2e-2
"""
import json
import pathlib
import sys


def losses(run):
    lines = (pathlib.Path(run) / "metrics" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines) if row["t"] == "train"}


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    base = losses(sys.argv[1])
    failed = False
    for argument in sys.argv[2:]:
        run, _, bound = argument.rpartition(":")
        other = losses(run)
        missing = base.keys() ^ other.keys()
        worst = max((abs(other[s] - base[s]) / base[s], s) for s in base.keys() & other.keys())
        good = not missing and worst[0] <= float(bound)
        failed |= not good
        print(f"{run}: {len(other)} steps, largest relative difference {worst[0]:.3g} at step {worst[1]}, "
              f"bound {bound}: {'ok' if good else 'FAILED'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
