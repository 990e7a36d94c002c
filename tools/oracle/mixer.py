"""The gated-delta mixer and the language model around it, as plain PyTorch: the token recurrence on
raw keys with the raw step beta, differentiated by autograd.

Deliberately *not* the chunkwise, normalised form that the kernels use. Shapes: B batch, T time,
D width, H heads, K key dim, V value dim; states are [B,H,V,K].
"""

import torch
import torch.nn.functional as F

EPS = 1e-6  # of key and query norms
RULES = ["gdn", "kla", "relaxed_kaczmarz", "kaczmarz", "k_norm_only", "longhorn", "deltanet",
         "no_norm", "seq_only", "learned_scalar"]


def l2(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + EPS)


def softplus(x):
    return torch.logaddexp(torch.zeros_like(x), x)


def documents(reset):
    """Index of the document of each token; what came before the call belongs to document 0."""
    return torch.cumsum(reset, dim=1)


def positions(reset, start):
    """t of every token: counts from `start`, restarts at 1 at a reset."""
    t, rows = start.clone(), []
    for i in range(reset.shape[1]):
        t = torch.where(reset[:, i] > 0, torch.ones_like(t), t + 1)
        rows.append(t)
    return torch.stack(rows, 1)


def short_conv(x, w, tail, reset):
    """c[t] = sum_i w[:,i] x[t-3+i]; x [B,T,C], w [C,4], tail [B,3,C] the inputs before."""
    T = x.shape[1]
    past = torch.cat([tail, x], 1)
    document = documents(reset)
    before = torch.cat([torch.zeros_like(document[:, :1]).expand(-1, 3), document], 1)[:, : T + 3]
    out = torch.zeros_like(x)
    for i in range(4):
        same = (before[:, i : i + T] == document).to(x.dtype)
        out = out + w[:, i] * past[:, i : i + T] * same[:, :, None]
    return out


def step(rule, eta, n, t, theta):
    """beta of every rule; eta, n, t are [B,T,H]."""
    if rule in ("gdn", "deltanet", "no_norm"):
        return eta
    if rule in ("kla", "relaxed_kaczmarz"):
        return eta / (n + EPS)
    if rule in ("kaczmarz", "k_norm_only"):
        return 1 / (n + EPS)
    if rule == "longhorn":
        return eta / (1 + eta * n)
    if rule == "seq_only":
        return (1 / t).expand_as(n)
    if rule == "learned_scalar":
        return eta / (softplus(theta) * n + EPS)
    raise ValueError(rule)


def factor_of(mode, t):
    return {"none": torch.ones_like(t), "inv_t": 1 / t, "inv_sqrt_t": 1 / torch.sqrt(t),
            "inv_log_t": 1 / torch.log(1 + t)}[mode]


def log_decay(kind, a, eta, p):
    if kind == "single":
        return torch.log(torch.clamp(1 - eta, 1e-6, 1))
    if kind == "dual_logsigmoid":
        return -softplus(-(a + p["a_bias"])) / 16
    return -torch.exp(p["a_log"]) * softplus(a + p["a_bias"])


def delta_rule(q, k, v, beta, g, S, reset):
    """The recurrence, token by token; q, k [B,T,H,K], v [B,T,H,V], beta, g [B,T,H]."""
    out = []
    for t in range(q.shape[1]):
        keep = (1 - reset[:, t]).to(q.dtype)[:, None] * torch.exp(g[:, t])
        S = S * keep[:, :, None, None]
        error = v[:, t] - torch.einsum("bhvk,bhk->bhv", S, k[:, t])
        S = S + beta[:, t, :, None, None] * error[..., :, None] * k[:, t, :, None, :]
        out.append(torch.einsum("bhvk,bhk->bhv", S, q[:, t]) * q.shape[-1] ** -0.5)
    return torch.stack(out, 1), S


def mixer_core(p, x, options, carried, watch=None):
    """From projected q, k, v, a, b, gate to the gated, normalised output [B,T,H*V] and the state.

    p: q_conv, k_conv [H*K,4], v_conv, b_bias, a_log, a_bias, theta, norm_weight [V];
    carried: S_initial, conv_tail [B,3,2HK+HV], position [B], reset [B,T]."""
    rule = options["rule"]
    B, T, H = x["b"].shape
    reset, tail = carried["reset"], carried["conv_tail"]
    HK = x["q"].shape[-1]
    q = short_conv(x["q"], p["q_conv"], tail[..., :HK], reset)
    k = short_conv(x["k"], p["k_conv"], tail[..., HK : 2 * HK], reset)
    v = F.silu(short_conv(x["v"], p["v_conv"], tail[..., 2 * HK :], reset))
    if rule != "deltanet":
        q, k = F.silu(q), F.silu(k)
    q, k, v = (z.reshape(B, T, H, -1) for z in (q, k, v))
    eta = torch.sigmoid(x["b"] + p["b_bias"])
    g = log_decay(options["decay"], x["a"], eta, p)
    if rule == "deltanet":
        q, k = torch.softmax(q, -1), torch.softmax(k, -1)
    if rule in ("gdn", "kla"):
        q = l2(q)
    n = (k * k).sum(-1)
    t = positions(reset, carried["position"]).to(q.dtype)[:, :, None]
    if watch is not None:
        watch.update(norm=torch.sqrt(n.detach()), g=g.detach())
    if rule == "gdn":
        k = l2(k)
        n = (k * k).sum(-1)
    beta = step(rule, eta, n, t, p.get("theta"))
    if rule != "seq_only":
        beta = beta * factor_of(options["factor"], t)
    if watch is not None:
        watch.update(gain=(beta * n).detach())
    o, S = delta_rule(q, k, v, beta, g, carried["S_initial"], reset)
    normed = o / torch.sqrt((o * o).mean(-1, keepdim=True) + 1e-5) * p["norm_weight"]
    return normed.reshape(B, T, -1) * F.silu(x["gate"]), S


def rms_norm(x, w):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * w


def mixer(p, prefix, u, options, reset):
    """One mixer layer on the normed residual u [B,T,D]; parameters by checkpoint name."""
    B, T = u.shape[:2]
    H, K, V = options["H"], options["K"], options["V"]
    project = lambda name: u @ p[f"{prefix}{name}_proj.weight"].T
    x = {name: project(name) for name in ("q", "k", "v", "a", "b")}
    x["gate"] = project("g")
    small = {f"{c}_conv": p[f"{prefix}{c}_conv1d.weight"].reshape(-1, 4) for c in "qkv"}
    small["b_bias"] = p[f"{prefix}b_proj.bias"]
    small["norm_weight"] = p[f"{prefix}o_norm.weight"]
    for name, key in (("A_log", "a_log"), ("dt_bias", "a_bias"), ("a_proj.bias", "a_bias"),
                      ("learned_norm_logit", "theta")):
        if prefix + name in p:
            small[key] = p[prefix + name]
    carried = {"S_initial": torch.zeros(B, H, V, K, dtype=u.dtype), "reset": reset,
               "conv_tail": torch.zeros(B, 3, 2 * H * K + H * V, dtype=u.dtype),
               "position": torch.zeros(B, dtype=torch.int64)}
    y, _ = mixer_core(small, x, options, carried)
    return y @ p[f"{prefix}o_proj.weight"].T


def language_model(p, tokens, options, reset):
    """Logits [B,T,N] of the tied-embedding, pre-norm model."""
    embedding = p["model.embeddings.weight"]
    x = embedding[tokens]
    for i in range(options["L"]):
        layer = f"model.layers.{i}."
        x = x + mixer(p, layer + "attn.", rms_norm(x, p[layer + "attn_norm.weight"]), options,
                      reset)
        u = rms_norm(x, p[layer + "mlp_norm.weight"])
        gate, up = (u @ p[f"{layer}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ p[layer + "mlp.down_proj.weight"].T
    return rms_norm(x, p["model.norm.weight"]) @ embedding.T
