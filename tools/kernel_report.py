#!/usr/bin/env python3
"""Registers, static shared memory, stack and spills of every CUDA kernel of a build, as ptxas told them when it was
compiled. Fails if a kernel of the mixer (mixer_prep*.cu, delta_*.cu) spills registers. Most shared memory is dynamic, which
ptxas does not see: kernels/README.md lists it, and the device simt refuses a launch beyond 163 KiB.

    tools/kernel_report.py build/cuda
    tools/kernel_report.py --compile COMMAND...   # what the build does: COMMAND, ptxas's remarks kept in OBJECT.ptxas
"""
import pathlib
import re
import subprocess
import sys

MIXER = re.compile(r"mixer_prep|delta_")
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def compile_object(command):
    command = [word for word in command if word]  # an empty launcher is an empty word
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    remarks = [line for line in done.stderr.splitlines() if line.startswith("ptxas info") or FRAME.search(line)]
    others = [line for line in done.stderr.splitlines() if line not in remarks]
    if others:
        print("\n".join(others), file=sys.stderr)
    target = pathlib.Path(command[command.index("-o") + 1])
    target.with_name(target.name + ".ptxas").write_text("\n".join(remarks) + "\n", encoding="utf-8")
    return done.returncode


def readable(names):
    text = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [re.sub(r"kla::(cuda::)?|\(anonymous namespace\)::", "", line) for line in text.splitlines()]


def kernels(remarks):
    """(mangled name, architecture, registers, static shared memory, stack, spilled) of each entry function."""
    name = arch = frame = None
    for line in remarks:
        if entry := ENTRY.search(line):
            name, arch = entry.groups()
        elif found := FRAME.search(line):
            frame = [int(number) for number in found.groups()]
        elif name and (used := USED.search(line)):
            shared = SHARED.search(line)
            yield name, arch, int(used.group(1)), int(shared.group(1)) if shared else 0, frame[0], sum(frame[1:])
            name = None


def report(build):
    files = sorted(pathlib.Path(build).glob("CMakeFiles/kla_kernels_cuda.dir/**/*.ptxas"))
    if not files:
        sys.exit(f"kernel_report: {build} holds no CUDA objects\n  build it first: make cuda")
    print(f"{'file':<22} {'arch':<7} {'regs':>4} {'static':>6} {'stack':>5} {'spill':>5}  kernel")
    spills = 0
    for path in files:
        source = path.name.split(".")[0]
        found = list(kernels(path.read_text(encoding="utf-8").splitlines()))
        for (_, arch, registers, shared, stack, spilled), name in zip(found, readable([f[0] for f in found])):
            print(f"{source:<22} {arch:<7} {registers:>4} {shared:>6} {stack:>5} {spilled:>5}  {name}")
            if spilled and MIXER.match(source):
                spills += 1
                print(f"kernel_report: {name} spills registers", file=sys.stderr)
    return 1 if spills else 0


def main():
    if len(sys.argv) > 2 and sys.argv[1] == "--compile":
        return compile_object(sys.argv[2:])
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    return report(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
