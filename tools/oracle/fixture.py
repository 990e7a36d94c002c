"""Fixtures: what PyTorch computed, small enough to commit and plain enough to read.

A fixture holds no inputs, only how each was drawn: numbers come from counter-based streams that
tests/support/fixture.h repeats bit for bit. Of every output and gradient it holds signed block
sums: entry i goes into block i*n/size (n = 24 blocks, fewer if the tensor is smaller) with a sign
from the stream "sign". Every entry counts, the expected square of an error is kept, and a block
that differs says where to look; a tensor of at most 24 entries is stored whole, up to signs.
"""

import numpy as np
import torch

BLOCKS = 24


def stream(name, count):
    """Numbers 0 .. count-1 of the stream `name`, in [0, 1): splitmix64 over FNV-1a of the name."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    z = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def block_sums(values):
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    blocks = min(flat.size, BLOCKS)
    signed = np.where(stream("sign", flat.size) < 0.5, -flat, flat)
    index = np.arange(flat.size) * blocks // max(flat.size, 1)
    sums = np.zeros(blocks)
    np.add.at(sums, index, signed)
    return sums


class Fixture:
    """Draws inputs, remembers how, and writes them with the expected results."""

    def __init__(self, name, **options):
        self.name = name
        self.options = options
        self.inputs = {}
        self.recipes = []
        self.expected = []

    def draw(self, name, shape, kind, low, high):
        """uniform: in [low, high). integers: in [low, high). rows: uniform in [-1, 1) times
        10^e, e uniform in [low, high) and common to 8 rows (all but the last dimension).
        All are rounded to f32, so that an f32 device can be given exactly these numbers."""
        size = int(np.prod(shape))
        x = stream(f"{self.name}/{name}", size)
        if kind == "uniform":
            x = low + (high - low) * x
        elif kind == "integers":
            x = np.floor(low + (high - low) * x)
        elif kind == "rows":
            row = np.arange(size) // shape[-1] // 8
            exponent = low + (high - low) * stream(f"{self.name}/{name}/rows", int(row.max()) + 1)
            x = (2 * x - 1) * 10.0 ** exponent[row]
        else:
            raise ValueError(kind)
        x = x.astype(np.float32).astype(np.float64)
        self.recipes.append((name, shape, kind, low, high))
        tensor = torch.tensor(x.reshape(shape), dtype=torch.float64)
        if kind != "integers":
            tensor.requires_grad_()
        self.inputs[name] = tensor
        return tensor

    def expect(self, name, tensor):
        self.expected.append((name, tensor.detach().numpy()))

    def write(self, folder):
        lines = [f"fixture {self.name}"]
        lines += [f"option {key} {value}" for key, value in self.options.items()]
        for name, shape, kind, low, high in self.recipes:
            dims = " ".join(str(n) for n in shape)
            lines.append(f"input {name} {kind} {low!r} {high!r} {len(shape)} {dims}")
        for name, values in self.expected:
            lines.append(f"expect {name} {values.size}")
            lines += [f"{x:.17g}" for x in block_sums(values)]
        with open(f"{folder}/{self.name}.txt", "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
