#!/usr/bin/env python3
"""Peer of `kla bench` on a GPU: the same model and batch in PyTorch with the Triton kernels of
flash-linear-attention, in bf16 with fp32 master weights.

Written as well as if it were ours: fused projections, fla's convolution, gated delta rule, norms,
SwiGLU and chunked cross entropy, fused AdamW. Prints JSON lines: whole training steps (forward,
backward, clipping, update) with tokens/s and peak memory, then one layer's mixer between its
projections (`mixer`) and the gated delta rule alone (`delta_rule`), forward and backward, by CUDA
events. Needs torch, triton and flash-linear-attention (tried with 0.6.0).

Triton tries several hundred variants of fla's kernels and compiles them one after the other, for
many minutes: `--compilers N` lets N processes compile them beforehand, each its share.

    tools/peers/fla_step.py --batch 8 --seq-len 4096 --compilers 14

Notation as in kernels/README.md: B batch, T time, D width, H heads, K key dim, V value dim.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys

import fla.ops.common.chunk_o as chunk_o
import torch
import torch._functorch.config
import torch.nn.functional as F
import triton
from fla.modules import FusedLinearCrossEntropyLoss, FusedRMSNormGated, RMSNorm
from fla.modules.activations import swiglu_linear
from fla.modules.causal_conv1d import causal_conv1d
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from torch import nn
from triton.runtime.autotuner import Autotuner

torch._functorch.config.donated_buffer = False  # the timing of a layer keeps its graph
EPS_NORM = 1e-5  # of RMSNorm
EPS_KEY = 1e-6  # of the key norm


@torch.compile
def over_key_norm(v, k):
    return (v * torch.rsqrt(k.float().square().sum(-1, keepdim=True) + EPS_KEY)).to(v.dtype)


class Mixer(nn.Module):
    """PAPER_SPEC 2 with rule `kla` or `gdn`; they differ in whether values are divided by the key norm."""

    def __init__(self, c):
        super().__init__()
        D, H, K, V = c.width, c.heads, c.key_dim, c.value_dim
        self.shape, self.rule = (H, K, V), c.rule
        self.qkvg = nn.Linear(D, 2 * H * (K + V), bias=False)
        self.ab = nn.Linear(D, 2 * H, bias=False)
        self.conv = nn.Parameter(torch.empty(H * (2 * K + V), 4).uniform_(-0.5, 0.5))
        self.b_bias = nn.Parameter(torch.zeros(H))
        self.a_log = nn.Parameter(torch.empty(H).uniform_(1e-3, 16).log())
        step = torch.empty(H).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.norm = FusedRMSNormGated(V, eps=EPS_NORM)
        self.out = nn.Linear(H * V, D, bias=False)

    def delta_rule(self, q, k, v, a, b):
        o, _ = chunk_gated_delta_rule(
            q, k, v, g=a, beta=b, scale=self.shape[1] ** -0.5,
            use_qk_l2norm_in_kernel=True, use_beta_sigmoid_in_kernel=True, state_v_first=True,
            use_gate_in_kernel=True, A_log=self.a_log, dt_bias=self.dt_bias,
        )  # fmt: skip
        return o

    def convolve(self, qkv):
        H, K, V = self.shape
        qkv, _ = causal_conv1d(x=qkv, weight=self.conv.to(qkv.dtype), activation="silu")
        q, k, v = qkv.split([H * K, H * K, H * V], -1)
        shape = qkv.shape[:2]
        k, v = k.reshape(*shape, H, K), v.reshape(*shape, H, V)
        if self.rule == "kla":
            v = over_key_norm(v, k)
        return q.reshape(*shape, H, K), k, v

    def between(self, qkv, gate, ab):
        """Everything between the projections and the output projection."""
        H, _, V = self.shape
        a, b = ab.split(H, -1)
        o = self.delta_rule(*self.convolve(qkv), a.contiguous(), b + self.b_bias.to(b.dtype))
        return self.norm(o, gate.reshape(*gate.shape[:2], H, V)).flatten(2)

    def forward(self, x):
        H, K, V = self.shape
        qkv, gate = self.qkvg(x).split([H * (2 * K + V), H * V], -1)
        return self.out(self.between(qkv.contiguous(), gate, self.ab(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = (RMSNorm(c.width, eps=EPS_NORM) for _ in range(2))
        self.mixer = Mixer(c)
        self.gate_up = nn.Linear(c.width, 2 * c.mlp, bias=False)
        self.down = nn.Linear(c.mlp, c.width, bias=False)

    def forward(self, x):
        y, x = self.norm2(self.mixer(self.norm1(x)), residual=x, prenorm=True)
        gate, up = self.gate_up(y).chunk(2, -1)
        return x + swiglu_linear(gate, up, self.down.weight, None)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(c.vocab, c.width) * 0.02)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.width, eps=EPS_NORM)
        self.criterion = FusedLinearCrossEntropyLoss()

    def forward(self, tokens, targets):
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x)
        return self.criterion(self.norm(x), targets, self.embedding.to(torch.bfloat16))


def milliseconds(work, repeats):
    """Median of CUDA event times after three runs that are not counted."""
    times = []
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def forward_backward_ms(function, inputs, repeats):
    inputs = [x.detach().requires_grad_() for x in inputs]
    with torch.autocast("cuda", torch.bfloat16):
        forward = milliseconds(lambda: function(*inputs), repeats)
        out = function(*inputs)
    gradient = torch.randn_like(out)
    backward = milliseconds(lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True), repeats)
    return forward, backward


def step_row(c, model):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
    tokens, targets = torch.randint(c.vocab, (2, c.batch, c.seq_len), device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    torch.cuda.reset_peak_memory_stats()
    ms = milliseconds(step, c.repeats)
    return {"kind": "peer_step", "ms": ms, "tokens_s": 1e3 * c.batch * c.seq_len / ms,
            "peak_GiB": torch.cuda.max_memory_allocated() / 2**30}  # fmt: skip


def mixer_rows(c, mixer):
    H, K, V = mixer.shape
    new = lambda *shape: torch.randn(c.batch, c.seq_len, *shape, device="cuda", dtype=torch.bfloat16)
    qkv, gate, ab = new(H * (2 * K + V)), new(H * V), new(2 * H)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        q, k, v = (x.contiguous() for x in mixer.convolve(qkv))
    a, b = (x.contiguous() for x in ab.split(H, -1))
    for name, function, inputs in (
        ("mixer", mixer.between, (qkv, gate, ab)),
        ("delta_rule", mixer.delta_rule, (q, k, v, a, b)),
    ):
        forward, backward = forward_backward_ms(function, inputs, c.repeats)
        yield {"kind": "peer_" + name, "forward_ms": forward, "backward_ms": backward}


def compile_share(share, shares):
    """The autotuner now runs every `shares`-th of its candidates once, which compiles it into Triton's
    cache on disk, and times none."""
    bench = Autotuner._bench

    def run_once(self, *args, config, **meta):
        self.__dict__["do_bench"] = lambda call, quantiles: (call(), [1.0] * 3)[1]
        mine = self.configs.index(config) % shares == share % min(shares, len(self.configs))
        return bench(self, *args, config=config, **meta) if mine else [float("inf")] * 3

    Autotuner._bench = run_once


def compile_beforehand(processes, arguments):
    """One training step and one layer's mixer in each of `processes`, which is all that will be compiled."""
    share = lambda i: [sys.executable, __file__, *arguments, "--layers", "1", "--repeats", "1", "--share", f"{i}/{processes}"]  # fmt: skip
    children = [subprocess.Popen(share(i), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                for i in range(processes)]  # fmt: skip
    for child in children:
        errors = child.communicate()[1]
        if child.returncode:
            print("a compiling process failed, which costs time only:", *errors.splitlines()[-1:], file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rule", choices=["kla", "gdn"], default="kla")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile every block")
    parser.add_argument("--any-triton", action="store_true", help="also with versions of Triton that "
                        "fla refuses on Hopper because a gradient comes out wrong: for timing only")  # fmt: skip
    parser.add_argument("--compilers", type=int, default=0, help="processes that compile beforehand")
    parser.add_argument("--share", help=argparse.SUPPRESS)  # of a compiling process: i/n
    # The model of configs/models/gated_delta_0.4b.yaml.
    sizes = dict(width=1536, layers=11, heads=12, key_dim=96, value_dim=192, mlp=6144, vocab=32000)
    for name, size in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=size)
    c = parser.parse_args()
    if c.any_triton:
        chunk_o.TRITON_ABOVE_3_7_1 = True
    if c.share:
        compile_share(*map(int, c.share.split("/")))
    elif c.compilers:
        compile_beforehand(c.compilers, sys.argv[1:])
    torch.manual_seed(1)
    model = Model(c).cuda()
    if c.compile:
        for block in model.blocks:
            block.compile()
    common = {"rule": c.rule, "batch": c.batch, "seq_len": c.seq_len, "compile": c.compile,
              "torch": torch.__version__, "triton": triton.__version__, "gpu": torch.cuda.get_device_name()}  # fmt: skip
    print(json.dumps(step_row(c, model) | common), flush=True)
    for row in mixer_rows(c, model.blocks[0].mixer):
        print(json.dumps(row | common), flush=True)


if __name__ == "__main__":
    main()
