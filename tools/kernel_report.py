#!/usr/bin/env python3
"""Registers, stack and shared memory of every CUDA kernel of a build, as `cuobjdump -res-usage` tells them, and
the local memory that shows a spill. Fails if a kernel of the mixer (mixer_prep, delta_*) has any.

    tools/kernel_report.py build/cuda"""
import pathlib
import re
import shutil
import subprocess
import sys

MIXER = re.compile(r"mixer_prep|delta_")
USAGE = re.compile(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def tool(name):
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if not found:
        sys.exit(f"kernel_report: {name} is not on the PATH\n  put the CUDA toolkit's bin/ there")
    return found


def demangled(names):
    text = subprocess.run([tool("cu++filt"), "-p"], input="\n".join(names), capture_output=True, text=True,
                          check=True).stdout
    return [re.sub(r"^void |kla::\w+::|\(anonymous namespace\)::|_INTERNAL_\w+::", "", line)
            for line in text.splitlines()]


def kernels(build):
    """(file, architecture, kernel, registers, stack, static shared, local) of every object below a build folder."""
    objects = sorted(pathlib.Path(build).glob("CMakeFiles/kla_kernels_cuda.dir/**/*.cu.o"))
    if not objects:
        sys.exit(f"kernel_report: {build} holds no CUDA objects\n  build it first: make cuda")
    for path in objects:
        text = subprocess.run([tool("cuobjdump"), "-res-usage", path], capture_output=True, text=True,
                              check=True).stdout
        for part in re.split(r"Fatbin elf code:", text)[1:]:
            arch = re.search(r"arch = (\S+)", part).group(1)
            found = USAGE.findall(part)
            for (_, *numbers), name in zip(found, demangled([f[0] for f in found])):
                yield (path.name.removesuffix(".cu.o"), arch, name, *map(int, numbers))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    spills = []
    print(f"{'file':<22} {'arch':<8} {'regs':>4} {'stack':>6} {'shared':>6} {'local':>6}  kernel")
    for file, arch, name, registers, stack, shared, local in kernels(sys.argv[1]):
        print(f"{file:<22} {arch:<8} {registers:>4} {stack:>6} {shared:>6} {local:>6}  {name}")
        if (stack or local) and MIXER.search(file):
            spills.append(f"{file}: {name} on {arch} keeps {stack + local} bytes a thread in local memory")
    for line in spills:
        print(line, file=sys.stderr)
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
