#!/usr/bin/env python3
"""Writes tests/fixtures/*.txt: outputs, loss and every gradient of the mixer and of the whole model
in PyTorch float64. Run from the repository root: python3 tools/oracle/write_fixtures.py
The result depends on nothing but this folder; the files are committed, PyTorch is not needed to
test.
"""

import pathlib

import torch
import torch.nn.functional as F

from fixture import Fixture
from mixer import RULES, language_model, mixer_core

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures"
UNBOUNDED = ("no_norm", "seq_only")  # gain grows with the key: keys are drawn small

# Strong decay is drawn mixed, a few tokens down to about -20 and the others slow: after a decay of
# that size at every token the state has rank one, the output norm removes its one direction, and
# dq is a difference of nearly equal numbers, which no f32 kernel can have to 1e-5. That case is
# checked op by op (tests/kernels/mixer_device_test.cpp).


def draw_mixer(f, B, T, H, K, V, rule, decay, strong, carried):
    """Inputs, small parameters and the state of a mixer; returns (x, p, carried)."""
    uniform = lambda name, shape, low, high: f.draw(name, shape, "uniform", low, high)
    key_low, key_high = (-3, -0.2) if rule in UNBOUNDED else (-3, 2.3)
    x = {"q": uniform("q", (B, T, H * K), -2, 2),
         "k": f.draw("k", (B, T, H * K), "rows", key_low, key_high) if strong
              else uniform("k", (B, T, H * K), *((-0.45, 0.45) if rule in UNBOUNDED else (-2, 2))),
         "v": uniform("v", (B, T, H * V), -2, 2), "gate": uniform("gate", (B, T, H * V), -3, 3),
         "a": uniform("a", (B, T, H), *((-14, 3) if strong else (-2, 2.5))),
         "b": uniform("b", (B, T, H), -4, 16 if strong and decay == "single" else 3)}
    p = {name: uniform(name, (C, 4), -1, 1) for name, C in
         (("q_conv", H * K), ("k_conv", H * K), ("v_conv", H * V))}
    p["b_bias"] = uniform("b_bias", (H,), -1, 1)
    p["norm_weight"] = uniform("norm_weight", (V,), 0.5, 1.5)
    if decay != "single":
        p["a_bias"] = uniform("a_bias", (H,), -0.5, 0.5)
    if decay == "dual_mamba":
        p["a_log"] = uniform("a_log", (H,), *((1.5, 2.1) if strong else (-3, -1)))
    if rule == "learned_scalar":
        p["theta"] = uniform("theta", (1,), -0.35, 0)
    state = {"S_initial": torch.zeros(B, H, V, K, dtype=torch.float64),
             "conv_tail": torch.zeros(B, 3, 2 * H * K + H * V, dtype=torch.float64),
             "position": torch.zeros(B, dtype=torch.int64),
             "reset": torch.zeros(B, T, dtype=torch.int64)}
    if carried:
        state["S_initial"] = uniform("S_initial", (B, H, V, K), -1, 1)
        state["conv_tail"] = uniform("conv_tail", (B, 3, 2 * H * K + H * V), -0.7, 0.7)
        state["position"] = f.draw("position", (B,), "integers", 1, 100).long()
    return x, p, state


def draw_reset(f, shape):
    """Reset flags: a document starts where the number drawn is positive (one token in ten)."""
    return (f.draw("reset", shape, "integers", -8, 2) > 0).long()


def mixer_fixture(name, rule="kla", decay="dual_mamba", factor="none", strong=False, carried=False,
                  resets=False, T=70):
    B, H, K, V = 2, 4, 8, 12
    options = {"rule": rule, "decay": decay, "factor": factor}
    f = Fixture("mixer_" + name, B=B, T=T, H=H, K=K, V=V, **options)
    x, p, state = draw_mixer(f, B, T, H, K, V, rule, decay, strong, carried)
    if resets:
        state["reset"] = draw_reset(f, (B, T))
    dy = f.draw("dy", (B, T, H * V), "uniform", -1, 1).detach()
    dS = f.draw("dS_final", (B, H, V, K), "uniform", -1, 1).detach()
    seen = {}
    y, S = mixer_core(p, x, options, state, seen)
    ((y * dy).sum() + (S * dS).sum()).backward()
    f.expect("y", y)
    f.expect("S_final", S)
    for key, tensor in {**x, **p, "S_initial": state["S_initial"]}.items():
        if tensor.requires_grad:
            grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            f.expect("d." + key, grad)
    assert torch.isfinite(y).all() and seen["gain"].max() < 2, name
    print(f"{f.name:32} key norm {seen['norm'].min():.1e}..{seen['norm'].max():.1e}"
          f"  g {seen['g'].min():7.2f}..{seen['g'].max():.1e}  gain <= {seen['gain'].max():.2f}")
    f.write(FOLDER)


def draw_parameters(f, o):
    """Every parameter of the model under its checkpoint name."""
    D, H, K, V, N = o["D"], o["H"], o["K"], o["V"], o["N"]
    p = {}

    def add(name, shape, low, high):
        p[name] = f.draw(name, shape, "uniform", low, high)

    def linear(name, rows, columns):
        add(name + ".weight", (rows, columns), -columns**-0.5, columns**-0.5)

    add("model.embeddings.weight", (N, D), -0.5, 0.5)
    for i in range(o["L"]):
        layer, attn = f"model.layers.{i}.", f"model.layers.{i}.attn."
        add(layer + "attn_norm.weight", (D,), 0.5, 1.5)
        for name, rows in (("q", H * K), ("k", H * K), ("v", H * V), ("g", H * V), ("a", H),
                           ("b", H)):
            linear(f"{attn}{name}_proj", rows, D)
        linear(attn + "o_proj", D, H * V)
        add(attn + "b_proj.bias", (H,), -1, 1)
        if o["decay"] == "dual_mamba":
            add(attn + "A_log", (H,), -2, 1)
            add(attn + "dt_bias", (H,), -3, 0)
        elif o["decay"] == "dual_logsigmoid":
            add(attn + "a_proj.bias", (H,), -1, 1)
        if o["rule"] == "learned_scalar":
            add(attn + "learned_norm_logit", (1,), 0.3, 0.8)
        for name, rows in (("q", H * K), ("k", H * K), ("v", H * V)):
            add(f"{attn}{name}_conv1d.weight", (rows, 1, 4), -0.7, 0.7)
        add(attn + "o_norm.weight", (V,), 0.5, 1.5)
        add(layer + "mlp_norm.weight", (D,), 0.5, 1.5)
        for name, shape in (("gate", (o["F"], D)), ("up", (o["F"], D)), ("down", (D, o["F"]))):
            linear(f"{layer}mlp.{name}_proj", *shape)
    add("model.norm.weight", (D,), 0.5, 1.5)
    return p


def model_fixture(name, rule="kla", decay="dual_mamba", factor="none", resets=False):
    B, T = 2, 70
    o = {"B": B, "T": T, "L": 2, "D": 32, "H": 4, "K": 8, "V": 16, "F": 40, "N": 37, "rule": rule,
         "decay": decay, "factor": factor}
    f = Fixture("model_" + name, **o)
    p = draw_parameters(f, o)
    tokens = f.draw("tokens", (B, T), "integers", 0, o["N"]).long()
    targets = f.draw("targets", (B, T), "integers", -1, o["N"]).long()
    reset = draw_reset(f, (B, T)) if resets else torch.zeros(B, T, dtype=torch.int64)
    logits = language_model(p, tokens, o, reset)
    losses = F.cross_entropy(logits.reshape(B * T, -1), targets.reshape(-1), ignore_index=-1,
                             reduction="none")
    loss = losses.sum() / (targets >= 0).sum()
    loss.backward()
    f.expect("logits", logits)
    f.expect("losses", losses)
    f.expect("loss", loss)
    for key, tensor in p.items():
        f.expect("d." + key, torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
    print(f"{f.name:32} loss {loss.item():.6f}")
    f.write(FOLDER)


def main():
    FOLDER.mkdir(exist_ok=True)
    for rule in RULES:
        mixer_fixture(rule, rule)
        mixer_fixture(rule + "_strong", rule, strong=True)
    for factor in ("inv_t", "inv_sqrt_t", "inv_log_t"):
        mixer_fixture("kla_" + factor, factor=factor)
    mixer_fixture("gdn_logsigmoid", "gdn", decay="dual_logsigmoid")
    mixer_fixture("deltanet_logsigmoid", "deltanet", decay="dual_logsigmoid")
    mixer_fixture("kla_single", decay="single")
    mixer_fixture("kaczmarz_single_strong", "kaczmarz", decay="single", strong=True)
    mixer_fixture("kla_carried", factor="inv_sqrt_t", carried=True)
    mixer_fixture("seq_only_carried_resets", "seq_only", carried=True, resets=True)
    mixer_fixture("learned_scalar_carried_resets", "learned_scalar", factor="inv_sqrt_t",
                  carried=True, resets=True)
    mixer_fixture("kla_one_token", carried=True, T=1)
    mixer_fixture("gdn_chunk", "gdn", carried=True, T=64)
    for rule in RULES:
        model_fixture(rule, rule, "dual_logsigmoid" if rule == "deltanet" else "dual_mamba")
    model_fixture("longhorn_single", "longhorn", decay="single", factor="inv_sqrt_t")
    model_fixture("kla_resets", factor="inv_log_t", resets=True)


if __name__ == "__main__":
    main()
