#!/usr/bin/env python3
"""Peer of `kla bench`: the same model and chunkwise algorithm in PyTorch on the CPU, in fp32.

Written as well as if it were ours: fused projections, everything that does not depend on the state
in batched products over all chunks and heads, only the state itself in a loop over chunks, fused
AdamW. Prints a JSON line with tokens/s of whole training steps (forward, backward, clipping, update)
on made-up tokens; with --against the same steps by `kla bench`, in turns, and the ratio.

    tools/peers/torch_cpu.py --compile --against build/release/kla
    tools/peers/torch_cpu.py --check

Notation as in kernels/README.md: B batch, T time, D width, H heads, K key dim, V value dim, C chunk
length, N chunks here; G the log-decay summed inside a chunk.
"""

import argparse
import functools
import json
import math
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 64
EPS_NORM = 1e-5  # of RMSNorm
EPS_KEY = 1e-6  # of query and key norms


def invert_unit_lower(A):
    """(I + A)^-1 of strictly lower triangular A, by halves: four times faster here than one solve."""
    n = A.shape[-1]
    if n % 2 or n <= 16:
        I = torch.eye(n, dtype=A.dtype, device=A.device)
        return torch.linalg.solve_triangular(A + I, I, upper=False, unitriangular=True)
    h = n // 2
    top, bottom = invert_unit_lower(torch.stack([A[..., :h, :h], A[..., h:, h:]]))
    corner = -(bottom @ A[..., h:, :h] @ top)
    return torch.cat([F.pad(top, (0, h)), torch.cat([corner, bottom], -1)], -2)


class UnitLowerInverse(torch.autograd.Function):
    """Two products instead of the derivative of every step of the inversion."""

    @staticmethod
    def forward(ctx, A):
        inverse = invert_unit_lower(A)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx, d_inverse):
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        return -(transposed @ d_inverse @ transposed).tril(-1)


def delta_rule(q, k, v, beta, g, scale):
    """Gated delta rule in chunkwise form. q, k [B,T,H,K] normalised, v [B,T,H,V], beta, g [B,T,H].

    With T = Gam o (I + A)^-1 a chunk's corrected values are Delta = U - W S, where U = T (beta V) and
    W = T (beta e^G K) do not depend on the state S entering it.
    """
    B, T, H, K = q.shape
    V, C = v.shape[-1], min(CHUNK, T)
    N = (T + C - 1) // C
    pad = N * C - T

    def chunks(x):  # [B,T,H,...] -> [N,B*H,C,...]: the loop walks over contiguous pieces
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, pad)) if pad else x
        x = x.reshape(B, N, C, H, -1).permute(1, 0, 3, 2, 4)
        return x.reshape(N, B * H, C, -1)

    q, k, v = chunks(q), chunks(k), chunks(v)
    beta, G = chunks(beta), chunks(g).cumsum(2)  # [N,B*H,C,1]
    lower = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    gate = (G - G.transpose(2, 3)).masked_fill(~lower, -math.inf).exp()  # Gam_ij, i >= j
    A = (beta * (k @ k.transpose(2, 3))).tril(-1)
    transform = gate * UnitLowerInverse.apply(A)

    D = G.exp()
    last = G[:, :, -1:]
    U = transform @ (beta * v)
    W = transform @ (beta * D * k)
    write = ((last - G).exp() * k).transpose(2, 3)  # (E K)^T
    gamma = last.exp()

    S = q.new_zeros(B * H, K, V)
    entering, corrected = [], []
    for n in range(N):
        entering.append(S)
        delta = torch.baddbmm(U[n], W[n], S, alpha=-1)
        corrected.append(delta)
        S = torch.baddbmm(gamma[n] * S, write[n], delta)
    scores = gate * (q @ k.transpose(2, 3))
    o = (D * q) @ torch.stack(entering) + scores @ torch.stack(corrected)
    o = (scale * o).reshape(N, B, H, C, V).permute(1, 0, 3, 2, 4).reshape(B, N * C, H, V)
    return o[:, :T]


def delta_rule_by_tokens(q, k, v, beta, g, scale):
    """The recurrence itself (PAPER_SPEC 2.6), the yardstick of --check."""
    B, T, H, K = q.shape
    S = q.new_zeros(B, H, K, v.shape[-1])
    outputs = []
    for t in range(T):
        S = g[:, t].exp()[..., None, None] * S
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t])
        S = S + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error)
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(outputs, 1)


class Mixer(nn.Module):
    """PAPER_SPEC 2 with rule `kla` or `gdn`; they differ in whether values are divided by the key norm."""

    def __init__(self, c):
        super().__init__()
        D, H, K, V = c.width, c.heads, c.key_dim, c.value_dim
        self.shape, self.rule = (H, K, V), c.rule
        self.qkvg = nn.Linear(D, 2 * H * (K + V), bias=False)
        self.ab = nn.Linear(D, 2 * H, bias=False)
        self.conv = nn.Parameter(torch.empty(4, H * (2 * K + V)).uniform_(-0.5, 0.5))
        self.b_bias = nn.Parameter(torch.zeros(H))
        self.a_log = nn.Parameter(torch.empty(H).uniform_(1e-3, 16).log())
        step = torch.empty(H).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.norm = nn.Parameter(torch.ones(V))
        self.out = nn.Linear(H * V, D, bias=False)
        self.rule_of_state = delta_rule

    def forward(self, x):
        H, K, V = self.shape
        B, T, _ = x.shape
        qkv, gate = self.qkvg(x).split([H * (2 * K + V), H * V], -1)
        padded = F.pad(qkv, (0, 0, 3, 0))
        c = sum(self.conv[i] * padded[:, i : i + T] for i in range(4))
        q, k, v = F.silu(c).split([H * K, H * K, H * V], -1)
        q, k, v = q.view(B, T, H, K), k.view(B, T, H, K), v.view(B, T, H, V)
        q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + EPS_KEY)
        r = torch.rsqrt(k.square().sum(-1, keepdim=True) + EPS_KEY)
        k = k * r
        if self.rule == "kla":
            v = v * r
        a, b = self.ab(x).split(H, -1)
        g = -self.a_log.exp() * F.softplus(a + self.dt_bias)
        beta = torch.sigmoid(b + self.b_bias)
        o = self.rule_of_state(q, k, v, beta, g, K**-0.5)
        o = F.rms_norm(o, (V,), self.norm, EPS_NORM) * F.silu(gate.view(B, T, H, V))
        return self.out(o.reshape(B, T, H * V))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(c.width, EPS_NORM) for _ in range(2))
        self.mixer = Mixer(c)
        self.gate_up = nn.Linear(c.width, 2 * c.mlp, bias=False)
        self.down = nn.Linear(c.mlp, c.width, bias=False)

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(c.vocab, c.width) * 0.02)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.width, EPS_NORM)

    def forward(self, tokens, targets):
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x)
        return self.loss(self.norm(x), targets)

    def loss(self, x, targets):
        return F.cross_entropy(F.linear(x, self.embedding).flatten(0, 1), targets.flatten())


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def check(c):
    """Loss and every gradient of a tiny model, chunkwise against token by token."""
    c.width, c.layers, c.heads, c.key_dim, c.value_dim, c.mlp, c.vocab = 16, 2, 2, 6, 10, 24, 32
    worst = 0.0
    for c.rule in ("kla", "gdn"):
        for T in (1, 63, 64, 150):
            torch.manual_seed(T)
            model = Model(c).double()
            tokens, targets = torch.randint(c.vocab, (2, 2, T))
            results = []
            for rule in (delta_rule, delta_rule_by_tokens):
                for block in model.blocks:
                    block.mixer.rule_of_state = rule
                model.zero_grad()
                loss = model(tokens, targets)
                loss.backward()
                results.append([loss.detach()] + [p.grad.clone() for p in model.parameters()])
            worst = max([worst] + [relative(a, b) for a, b in zip(*results) if b.norm() > 1e-12])
    print(json.dumps({"check": "chunkwise = token by token", "worst_relative": worst}))
    if not worst < 1e-9:
        raise SystemExit("the chunkwise form is wrong")


def torch_step(c, compiled):
    """A callable that trains one step."""
    torch.manual_seed(1)
    model = Model(c)
    if compiled:
        for block in model.blocks:
            block.compile()
        model.loss = torch.compile(model.loss)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
    tokens, targets = torch.randint(c.vocab, (2, c.batch, c.seq_len))

    def step():
        optimizer.zero_grad(set_to_none=False)
        model(tokens, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def timed(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def kla_seconds(c):
    """One step of `kla bench` on the same shapes, measured by itself."""
    settings = {
        "batch": c.batch,
        "seq_len": c.seq_len,
        "repeats": 1,
        "device.backend": "cpu",
        "device.threads": c.threads,
        "model.hidden_size": c.width,
        "model.num_hidden_layers": c.layers,
        "model.num_heads": c.heads,
        "model.key_head_dim": c.key_dim,
        "model.value_head_dim": c.value_dim,
        "model.intermediate_size": c.mlp,
        "model.vocab_size": c.vocab,
        "model.step_size.rule": c.rule,
    }
    root = pathlib.Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "bench.jsonl"
        command = [c.against, "bench", root / "configs/bench/cpu.yaml", "--json", lines]
        command += [f"{key}={value}" for key, value in settings.items()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
    return next(row["seconds_best"] for row in rows if row["kind"] == "step")


def bench(c):
    runs = {"torch": functools.partial(timed, torch_step(c, False))}
    if c.compile:
        runs["torch.compile"] = functools.partial(timed, torch_step(c, True))
    for run in runs.values():
        run(), run()  # warm up, compile
    if c.against:
        runs["kla"] = functools.partial(kla_seconds, c)
    seconds = {name: [] for name in runs}
    for _ in range(c.repeats):  # in turns: what else the machine does slows all alike
        for name, run in runs.items():
            seconds[name].append(run())
    for name, times in seconds.items():
        best = min(times)
        row = {
            "kind": "peer",
            "name": name,
            "torch": torch.__version__,
            "rule": c.rule,
            "threads": torch.get_num_threads(),
            "batch": c.batch,
            "seq_len": c.seq_len,
            "seconds_best": best,
            "seconds_median": statistics.median(times),
            "tokens_s": c.batch * c.seq_len / best,
        }
        if c.against:
            row["times_kla"] = best / min(seconds["kla"])
        print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rule", choices=["kla", "gdn"], default="kla")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--against", metavar="KLA", help="also this kla binary, in turns")
    parser.add_argument("--check", action="store_true", help="against a loop over tokens, float64")
    # The model of configs/bench/cpu.yaml.
    sizes = dict(width=512, layers=8, heads=4, key_dim=96, value_dim=192, mlp=2048, vocab=4096)
    for name, size in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=size)
    c = parser.parse_args()
    if c.threads:
        torch.set_num_threads(c.threads)
    check(c) if c.check else bench(c)


if __name__ == "__main__":
    main()
