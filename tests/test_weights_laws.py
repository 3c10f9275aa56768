"""Laws of the weights-only chapters: configs as transformers makes them,
any rank, nothing from the solver or torch's switches"""

import contextlib
import inspect
import json
import threading
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tiny
import talking_heads.weights.channels as channels
import talking_heads.composition as composition
import talking_heads.weights.detection as detection
import talking_heads.weights.nulls as nulls
import talking_heads.weights.planted as planted
import talking_heads.weights.scan as scanning
import talking_heads.svd as svd
from test_composition import Weights, random_layer
from talking_heads.weights.channels import *
from talking_heads.composition import *
from talking_heads.base.core import *
from talking_heads.weights.detection import *
from talking_heads.weights.nulls import *
from talking_heads.weights.planted import *
from talking_heads.weights.scan import *
from talking_heads.svd import *

close = lambda a, b, eps=1e-5: torch.testing.assert_close(a, b, atol=eps, rtol=1e-4, equal_nan=True)
gen = lambda seed: torch.Generator().manual_seed(seed)

# A. configs


def rotary_module(config):
    "The rotary embedding of the model that transformers would build from a config"
    import importlib

    kind = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    m = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    return next(c for n, c in vars(m).items() if n.endswith("RotaryEmbedding") and c.__module__ == m.__name__)(config)


rotary_families = sorted(set(families) - {"gpt2"})


@st.composite
def configs(draw):
    "A config.json of some family: sizes and rotary settings in old or new keys, or left to the defaults"
    kind = draw(st.sampled_from(rotary_families))
    heads, wide = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([8, 12, 20]))
    c = dict(model_type=kind, hidden_size=heads * wide, num_attention_heads=heads, num_hidden_layers=7)
    if draw(st.booleans()) or kind.startswith("gemma"):
        c["num_key_value_heads"] = 1
    if kind in ("llama", "mistral", "qwen3", "gemma2", "gemma3_text") and draw(st.booleans()):
        c["head_dim"] = draw(st.sampled_from([6, 16]))
    if kind in ("llama", "mistral") and "head_dim" not in c and draw(st.booleans()):
        c["head_dim"] = None
    base = draw(st.sampled_from([None, 500.0, 1e6]))
    scalings = [
        None,
        dict(type="linear", factor=4.0),
        dict(rope_type="dynamic", factor=2.0),
        dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=512),
    ]
    scaling = draw(st.sampled_from(scalings if kind != "phi3" else [None]))
    if kind in ("gpt_neox", "phi3") and draw(st.booleans()):
        c["rotary_pct" if kind == "gpt_neox" else "partial_rotary_factor"] = draw(st.sampled_from([0.5, 0.75, 1.0]))
    if kind == "gemma3_text" and draw(st.booleans()):
        c |= draw(
            st.sampled_from(
                [
                    dict(sliding_window_pattern=3),
                    dict(rope_local_base_freq=300.0),
                    dict(layer_types=["full_attention", "sliding_attention"] * 3 + ["full_attention"]),
                ]
            )
        )
    form = draw(st.sampled_from(["old", "new", "by layer type"] if kind == "gemma3_text" else ["old", "new"]))
    if form == "old":
        if base:
            c["rotary_emb_base" if kind == "gpt_neox" else "rope_theta"] = base
        if scaling:
            c["rope_scaling"] = scaling
    else:
        p = (
            {k if k != "type" else "rope_type": v for k, v in scaling.items()} if scaling else dict(rope_type="default")
        ) | (dict(rope_theta=base) if base else {})
        if kind == "gemma3_text" and form == "new":
            p = {}  # flat settings are not what this family's class reads
        c["rope_parameters"] = (
            dict(full_attention=p, sliding_attention=dict(rope_type="default", rope_theta=100.0))
            if form != "new"
            else p or None
        )
    return {k: v for k, v in c.items() if k != "rope_parameters" or v}


@settings(max_examples=60, deadline=None)
@given(config=configs())
def test_sizes_and_frequencies_are_transformers_own(config):
    c = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    s = shape_of(config)
    assert (s.n_layers, s.n_heads, s.d_model) == (c.num_hidden_layers, c.num_attention_heads, c.hidden_size)
    assert s.d_head == (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    assert s.n_kv_heads == (getattr(c, "num_key_value_heads", None) or c.num_attention_heads)
    try:
        module = rotary_module(c)
    except (RuntimeError, TypeError, KeyError, ZeroDivisionError):  # a model that transformers cannot build
        with pytest.raises(ModelError, match="cannot be used"):
            rope_frequencies(config, 0)
        return
    for l in (0, 5, 6):
        at = f"{c.layer_types[l]}_" if config["model_type"] == "gemma3_text" else ""
        close(rope_frequencies(config, l), getattr(module, at + "inv_freq"), 1e-7)
        assert rope_factor(config, l) == pytest.approx(getattr(module, at + "attention_scaling"))


def test_longrope_turns_a_part_and_raises_it():
    "Phi-4-mini's kind: two sets of frequencies, a factor, three quarters of the dimensions"
    short, long = [1.0 + i / 10 for i in range(6)], [2.0 + i for i in range(6)]
    config = dict(
        model_type="phi3",
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        partial_rotary_factor=0.75,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_scaling=dict(type="longrope", short_factor=short, long_factor=long),
    )
    module = rotary_module(CONFIG_MAPPING["phi3"].from_dict(json.loads(json.dumps(config))))
    close(rope_frequencies(config, 0), module.inv_freq, 1e-7)
    close(rope_frequencies(config, 0, 17), module.inv_freq * torch.tensor(short) / torch.tensor(long), 1e-6)
    g, x = gen(0), torch.zeros(1)
    q, k = torch.randn(16, generator=g), torch.randn(16, generator=g)
    from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

    cos, sin = module(x, torch.tensor([[9, 4]]))
    turned = [
        apply_rotary_pos_emb(v[None, None, None], v[None, None, None], cos[:, i : i + 1], sin[:, i : i + 1])[
            0
        ].flatten()
        for i, v in ((0, q), (1, k))
    ]

    class W:
        pass

    W.config = config
    close(rotation(W, 0, 5)(q) @ k, turned[0] @ turned[1], 1e-4)


nested = dict(
    gemma3=dict(
        model_type="gemma3",
        text_config=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, sliding_window=512),
    ),
    gemma3_bare=dict(model_type="gemma3_text", hidden_size=64, intermediate_size=128, num_hidden_layers=2),
)


@pytest.mark.parametrize("name", list(nested))
def test_a_config_of_four_numbers(tmp_path, name):
    prefix = "language_model.model." if name == "gemma3" else "model."
    (tmp_path / "config.json").write_text(json.dumps(nested[name]))
    g, t = gen(0), {}
    for l in range(2):
        p = f"{prefix}layers.{l}."
        for n, rows in (("q", 2048), ("k", 1024), ("v", 1024)):
            t[f"{p}self_attn.{n}_proj.weight"] = torch.randn(rows, 64, generator=g)
        t[f"{p}self_attn.o_proj.weight"] = torch.randn(64, 2048, generator=g)
        for n in ("input_layernorm", "post_attention_layernorm"):
            t[f"{p}{n}.weight"] = torch.randn(64, generator=g)
        for n in "qk":
            t[f"{p}self_attn.{n}_norm.weight"] = torch.randn(256, generator=g)
    save_file(t, tmp_path / "model.safetensors")
    w = attention_weights(str(tmp_path), "folded")
    assert w[0].W_Q.shape == (8, 64, 256) and w[1].W_K.shape == (4, 64, 256)
    assert torch.equal(
        attention_weights(str(tmp_path))[0].W_Q[3], t[f"{prefix}layers.0.self_attn.q_proj.weight"][3 * 256 : 4 * 256].T
    )
    S, V = write_directions(w[1])  # heads wider than the stream
    assert S.shape == (8, 64) and V.shape == (8, 64, 64)
    c = compose(w, "V")
    full = lambda l, h: w[l].W_V[h // 2].double() @ w[l].W_O[h].double()
    close(c.heads()[0, 5, 1, 2].double(), (full(0, 5) @ full(1, 2)).norm() / full(0, 5).norm() / full(1, 2).norm())


def test_outer_classes_and_refusals():
    assert shape_of(dict(model_type="llava", text_config=dict(model_type="llama"))) == Shape(32, 32, 32, 4096, 128)
    assert shape_of(dict(model_type="llava_of_somebody", text_config=dict(model_type="mistral"))) == Shape(
        32, 32, 8, 4096, 128
    )
    llama = dict(model_type="llama", hidden_size=32, num_attention_heads=2, num_hidden_layers=2)
    local = dict(model_type="gemma3_text", sliding_window=16, layer_types=["sliding_attention", "full_attention"])

    class W:
        pass

    for config, layer, distance, error, words in (
        (dict(model_type="gpt2"), 0, 3, ModelError, "no rotary"),
        (dict(model_type="mamba"), 0, 3, ModelError, "No family"),
        (llama, 2, 3, HeadError, "layers 0 to 1"),
        (llama | dict(rope_scaling=dict(rope_type="fancy", factor=2.0)), 0, 3, ModelError, "fancy"),
        (llama | dict(rope_scaling=dict(type="linear")), 0, 3, (ModelError, CheckpointError), "factor"),
        (
            llama | dict(rope_scaling=dict(type="linear", factor=2.0), partial_rotary_factor=0.5),
            0,
            3,
            ModelError,
            "8 of a head's 16",
        ),
        (
            llama | dict(rope_scaling=dict(type="dynamic", factor=2.0), max_position_embeddings=64),
            0,
            64,
            HeadError,
            "trained context",
        ),
        (local | dict(num_hidden_layers=2), 0, 16, HeadError, "at most 15"),
        (dict(model_type="mistral", sliding_window=8), 0, 8, HeadError, "at most 7"),
    ):
        W.config = config
        with pytest.raises(error, match=words):
            rotation(W, layer, distance)
    W.config = local | dict(num_hidden_layers=2)
    rotation(W, 0, 15), rotation(W, 1, 500)
    with pytest.raises(CheckpointError, match="transformers refuses"):
        shape_of(dict(model_type="llama", hidden_size="wide"))


# E. gains inside the head


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "olmo2"])
def test_gains_inside_the_head_are_folded_exactly(kind, tmp_path):
    folder = tiny.save(kind, tmp_path)
    raw, folded, t = (
        attention_weights(str(folder)),
        attention_weights(str(folder), "folded"),
        load_file(folder / "model.safetensors"),
    )
    s, offset = raw.shape, 1.0 if kind == "gemma3" else 0.0
    before = 1.0 if kind == "olmo2" else t["model.layers.1.input_layernorm.weight"].double()[:, None] + offset
    gq, gk = (t[f"model.layers.1.self_attn.{n}_norm.weight"].double().view(-1, s.d_head) + offset for n in "qk")
    for h in range(s.n_heads):
        kv = h // (s.n_heads // s.n_kv_heads)
        q, k = (
            before * w.double() * g[min(i, len(g) - 1)]
            for w, g, i in ((raw[1].W_Q[h], gq, h), (raw[1].W_K[kv], gk, kv))
        )
        close((folded[1].W_Q[h] @ folded[1].W_K[kv].T).double(), q @ k.T, 1e-4)
        turn = rotation(folded, 1, 6)  # after the norm, so after the gain
        f = rope_frequencies(folded.config, 1).double()
        R = torch.block_diag(*[torch.tensor([[a.cos(), a.sin()], [-a.sin(), a.cos()]]) for a in 6 * f])
        order = torch.arange(s.d_head).view(2, -1).T.flatten()  # transformers pairs the two halves
        full = torch.zeros(s.d_head, s.d_head, dtype=torch.float64)
        full[order[:, None], order[None]] = R
        close((turn(folded[1].W_Q[h]) @ folded[1].W_K[kv].T).double(), q @ full @ k.T, 1e-3)
    assert "gains folded" in provenance_of(folded)["qk_norm"] and "left out" in provenance_of(raw)["qk_norm"]
    save_file(t | {"model.layers.1.self_attn.q_norm.weight": torch.ones(7)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="q_norm.*has 7 numbers|q_norm.*shape"):
        attention_weights(str(folder), "folded")[1]


# C. rank, silence, degeneracy


@settings(max_examples=15, deadline=None)
@given(
    kv=st.integers(1, 2), per=st.integers(1, 2), d=st.integers(2, 9), r=st.integers(1, 14), seed=st.integers(0, 10**6)
)
def test_any_rank_equals_brute_force(kv, per, d, r, seed):
    g, H = gen(seed), kv * per
    layers = [random_layer(g, H, kv, d, r) for _ in range(3)]
    layers[0].W_O[0, :, : d // 2] = 0  # less than full rank
    layers[1].W_O[-1] = 0  # silent
    layers[2].W_Q[0] = 0  # deaf
    W = Weights(layers)

    def full(l, m, h):
        w = layers[l]
        if m == "V":
            return w.W_V[h // per].double() @ w.W_O[h].double()
        return w.W_Q[h].double() @ w.W_K[h // per].double().T

    scores = compose(W)
    for m in modes:
        heads = scores[m].heads()
        for a in range(2):
            for h in range(H):
                A = full(a, "V", h)
                for b in range(H):
                    B = full(2, m, b).T if m == "K" else full(2, m, b)
                    want = (A @ B).norm() / A.norm() / B.norm()  # 0/0 is NaN
                    close(heads[a, h, 2, b].double(), want, 2e-4)
                rank = int((torch.linalg.svdvals(A) > 1e-9 * max(1e-30, float(A.norm()))).sum())
                single = scores[m].layers[2][a, h, :, -1]
                if full(2, m, H - 1).norm() > 0:
                    assert int(single.isfinite().sum()) == rank
        assert (
            scores[m].ranking(Head(2, H - 1)).score.notna().all()
            and not scores[m].ranking(Head(2, H - 1)).src.str.startswith(f"1.{H - 1}.").any()
        )
    assert len(scores["Q"].ranking("2.0")) == len(scores["K"].ranking("2.0")) == 0
    assert not {"1.%d" % (H - 1)} & set(strongest_pairs(scores["Q"], min_share=0)[0].src)
    for m in ("pk", "simple", "factor", "cka", "procrustes"):
        assert baseline(W, "Q", m)[1, -1, 2].isnan().all()
    for x in sharpen(W).values():
        assert x[1, -1, 2].isnan().all()
    x = heads.clone()
    ap, _ = precision_and_roc(x, [(Head(1, H - 1), Head(2, H - 1))])
    assert float(ap) == pytest.approx(
        1 / len([1 for a in range(3) for b in range(a + 1, 3)]) / H**2
    )  # a head without a score comes last


def equal_values(seed, spread=(3.0, 2.0, 2.0, 2.0, 1.0), d=24, H=2, layers=3):
    "Layers whose writers have equal singular values, and the same W_OV with those components rotated into each other"
    g, r = gen(seed), len(spread)
    frame = lambda: torch.linalg.qr(torch.randn(d, r, generator=g, dtype=torch.float64))[0]
    one, other = [], []
    for _ in range(layers):
        w = random_layer(g, H, H, d, r)
        U, V = [frame() for _ in range(H)], [frame() for _ in range(H)]
        R = torch.eye(r, dtype=torch.float64)
        R[1:4, 1:4] = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
        S = torch.tensor(spread, dtype=torch.float64)
        for out, T in ((one, torch.eye(r, dtype=torch.float64)), (other, R)):
            out.append(
                replace(
                    w,
                    W_V=torch.stack([u @ T for u in U]).float(),
                    W_O=torch.stack([T.T @ (S[:, None] * v.T) for v in V]).float(),
                )
            )
            if T is R:
                out[-1] = replace(
                    out[-1],
                    W_V=torch.stack([u @ T * S for u in U]).float(),
                    W_O=torch.stack([T.T @ v.T for v in V]).float(),
                )  # T commutes with S
    return Weights(one), Weights(other)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_rotation_among_equal_singular_values_changes_nothing(seed):
    A, B = equal_values(seed)
    a, b = compose(A), compose(B)
    for m in modes:
        for l in (1, 2):
            close(a[m].layers[l], b[m].layers[l])
            assert (a[m].layers[l][:, :, 1:4] - a[m].layers[l][:, :, 1:2]).abs().max() == 0
        if m != modes[seed % 3]:
            continue  # tables and channels in one mode each time
        x, y = (c[m].ranking("2.1").set_index("src").sort_index() for c in (a, b))
        for k in ("score", "share"):
            close(torch.tensor(x[k].to_numpy()), torch.tensor(y[k].to_numpy()))
        assert (
            (x["group"] == y["group"]).all()
            and x.loc["0.0.2", "group"] == 1
            and x.loc["0.0.2", "degenerate"]
            and x.loc["0.0.1", "rank"] == x.loc["0.0.3", "rank"]
        )
        close(component_pairs(A, "0.0", "2.1", m), component_pairs(B, "0.0", "2.1", m), 1e-4)
        f, h = (find_channels(c[m], W, z=0.9, q=1.0) for c, W in ((a, A), (b, B)))
        assert [set(c.writers) for c in f] == [set(c.writers) for c in h]
        for c, e in zip(f, h):
            close(c.subspace.T @ c.subspace, e.subspace.T @ e.subspace, 1e-3)
        close(loudest(a[m]), loudest(b[m]))


def test_scan_leaves_out_and_says_so(tmp_path):
    g = gen(3)
    layers = [random_layer(g, 2, 2, 12, 16) for _ in range(3)]
    layers[0].W_O[1] = 0
    layers[2].W_K[0] = 0
    w = weights_in_memory(layers)
    out = scan(w, tmp_path / "a", Scan("QV", top=4))
    t, info = read_scan(out), json.loads((out / "scan.json").read_text())
    S = torch.stack([write_directions(x)[0] for x in layers[:2]])
    low = (shares(S) < 1 / 12) & present(S)
    assert info["left_out"] == dict(
        writers=48, min_share=1 / 12, below_min_share=int(low.sum()), write_nothing=12, readers_without_score=1
    )
    assert (t.share >= 1 / 12).all() and not t.src.str.startswith("0.1.").any()
    assert not ((t["mode"] == "Q") & (t.dst == "2.0")).any()
    assert "Left out of 48 writers" in left_out(info) and "Left out of 48 writers" in scan_page(out).read_text()
    every = read_scan(scan(w, tmp_path / "b", Scan("QV", top=0, min_share=0)))
    assert set(every.groupby(["mode", "dst"]).size()) <= {12, 36} and every.score.notna().all()
    c = compose(w, "Q")
    mine = t[(t["mode"] == "Q") & (t.dst == "2.1")].sort_values("score", ascending=False)
    assert c.ranking("2.1", min_share=1 / 12).src.tolist()[:4] == mine.src.tolist()
    whole = read_scan(scan(w, tmp_path / "c", Scan("QV", level="head")))
    assert "0.1" not in set(whole.src) and whole.score.notna().all()
    with pytest.raises(HeadError, match="part of a head"):
        scan(w, tmp_path / "d", Scan(min_share=2.0))


def test_the_null_where_every_direction_is_heard():
    "As many heard directions as the stream has: tails by simulation"
    g = gen(0)
    lam = torch.rand(6, generator=g).sort(descending=True).values
    lam = lam / lam.sum()
    x = torch.randn(200_000, 6, generator=g).square()
    x = (x * lam).sum(-1) / x.sum(-1)
    p = isotropic_p(x.sqrt()[:, None], lam[None], 6)[:, 0]
    for level in (0.5, 0.05, 0.01):
        assert abs(float((p < level).double().mean()) / level - 1) < 0.15
    assert (isotropic_p(torch.full((3, 1), 6**-0.5), torch.full((1, 6), 1 / 6), 6) == 1).all()


def test_edges_of_the_small_functions():
    nan = float("nan")
    assert effective_rank(torch.zeros(4)) == 0 and effective_rank(torch.tensor([1e-25, 1e-25])) == 2
    assert shares(torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).tolist() == [
        [pytest.approx(0.8), pytest.approx(0.2), 0.0],
        [0.0, 0.0, 0.0],
    ]
    z = robust_z(torch.tensor([1.0, nan, 2.0, 3.0, 10.0]))
    assert z[1].isnan() and torch.equal(z[[0, 2, 3, 4]], robust_z(torch.tensor([1.0, 2.0, 3.0, 10.0])))
    q = benjamini_hochberg(torch.tensor([0.01, nan, 0.5]))
    assert q[1].isnan() and torch.equal(q[[0, 2]], benjamini_hochberg(torch.tensor([0.01, 0.5])))


# L. torch's switches


@contextlib.contextmanager
def switched(name):
    "One switch for the whole process turned, and back"
    if name == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
        return
    backend = torch.backends.mkldnn.matmul
    on, off = {
        "medium": (
            lambda: torch.set_float32_matmul_precision("medium"),
            lambda: torch.set_float32_matmul_precision("highest"),
        ),
        "high": (
            lambda: torch.set_float32_matmul_precision("high"),
            lambda: torch.set_float32_matmul_precision("highest"),
        ),
        "mkldnn": (
            lambda: setattr(backend, "fp32_precision", "bf16"),
            lambda: setattr(backend, "fp32_precision", "ieee"),
        ),
        "float64": (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        "float16": (lambda: torch.set_default_dtype(torch.float16), lambda: torch.set_default_dtype(torch.float32)),
        "meta": (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
        "deterministic": (
            lambda: torch.use_deterministic_algorithms(True),
            lambda: torch.use_deterministic_algorithms(False),
        ),
    }[name]
    on()
    try:
        yield
    finally:
        off()


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    "One call of every public function that computes with weights; a public function without one fails the test"
    folder, sheet = str(tiny.save("gemma3", tmp_path_factory.mktemp("m"))), tmp_path_factory.mktemp("s")
    W, g = Weights([random_layer(gen(0), 4, 2, 40, 12) for _ in range(3)]), gen(1)
    w, c = W[1], compose(W)
    q, S, V = c["Q"], *write_directions(w)
    M, x, lam = reader_factors(w, "Q"), loudest(c["Q"]), spectrum(reader_factors(w, "Q"))
    edges, config, P = (
        [(Head(0, 1), Head(2, 2)), (Head(1, 0), Head(2, 3))],
        dict(model_type="llama", hidden_size=40, num_attention_heads=4),
        shared_directions(reader_gram(W), 1.5),
    )
    n, y = iter(range(10**6)), component_scores(V.flatten(0, 1), M)
    eye, bins = torch.eye(40), torch.ones(60_000, dtype=torch.long)
    rows, table = screen(q, q=1.0, z=2.0), null_table(lam, 40)

    def scanned():
        return read_scan(scan(weights_in_memory(W.layers), sheet / f"{next(n)}", Scan(top=5))).drop(columns=["model"])

    calls = dict(
        family_of=None,
        shape_of=None,
        config_object=None,
        full_config=None,
        read_scan=None,
        scan_charts=None,
        scan_page=None,
        left_out=None,
        parse_bytes=None,
        make_plan=None,
        attention_weights=lambda: attention_weights(folder, "folded")[1],
        weights_in_memory=lambda: weights_in_memory(W.layers)[0],
        thin_svd=lambda: thin_svd(w.W_V, w.W_O[:2]),
        fix_signs=lambda: fix_signs(V.mT, V),
        present=lambda: present(S),
        rank_of=lambda: rank_of(S),
        component_names=lambda: component_names(W, ["1.0", "2.3"]),
        degenerate=lambda: degenerate(S),
        degenerate_groups=lambda: degenerate_groups(S),
        shares=lambda: shares(S),
        effective_rank=lambda: effective_rank(S),
        components=lambda: components(W, 1),
        reader_factors=lambda: reader_factors(w, "K", far=eye),
        write_directions=lambda: write_directions(w),
        component_scores=lambda: component_scores(V.flatten(0, 1), M),
        settle=lambda: settle(y.clone(), S.clone().clamp_min(1.0)),
        provenance_of=None,
        spectrum=lambda: spectrum(M),
        compose=lambda: compose(W),
        robust_z=lambda: robust_z(y),
        share_floor=lambda: share_floor(40),
        reader_components=lambda: reader_components(W, 1, "Q"),
        component_pairs=lambda: component_pairs(W, "0.1", "2.1"),
        rope_frequencies=lambda: rope_frequencies(config, 0),
        rope_factor=lambda: rope_factor(config, 0),
        baseline=lambda: [baseline(W, "Q", m) for m in ("pk", "cka", "procrustes")],
        rotation=lambda: rotation(type("R", (), dict(config=config)), 0, 3)(M[0, :, :10]),
        isotropic_tail=lambda: isotropic_tail(lam, y[0].square() * 2, 40),
        isotropic_p=lambda: isotropic_p(y, lam, 40),
        null_table=lambda: null_table(lam, 40),
        look_up=lambda: look_up(y, *table),
        p_values=lambda: p_values(q),
        benjamini_hochberg=lambda: benjamini_hochberg(y.double()),
        screen=lambda: screen(q, q=1.0, z=2.0),
        rotation_null=lambda: rotation_null(V[0], lam[0], n=5),
        merge_directions=lambda: merge_directions(V.flatten(0, 1)),
        collect=lambda: collect(rows, lambda names: V.flatten(0, 1)[: len(names)], q.provenance),
        find_channels=lambda: find_channels(q, W, z=2.0, q=1.0),
        strongest_pairs=lambda: strongest_pairs(q),
        trace_back=lambda: trace_back(c, "2.0", z=1.0),
        edge_ranks=lambda: edge_ranks(x, edges),
        precision_and_roc=lambda: precision_and_roc(x, edges),
        resamples=lambda: resamples(3, 4, edges, n=9),
        measure=lambda: measure(x, edges, n=50),
        loudest=lambda: loudest(q),
        board_scores=lambda: board_scores(W, "Q"),
        reader_gram=lambda: reader_gram(W),
        shared_directions=lambda: shared_directions(reader_gram(W)),
        without=lambda: without(P)(M),
        far_sides=lambda: far_sides(W)(2, "Q"),
        loud_and_broad=lambda: loud_and_broad(q),
        against_background=lambda: against_background({"Q": x}),
        shrunk_z=lambda: shrunk_z(x),
        sharpen=lambda: sharpen(W),
        make_spectrum=lambda: make_spectrum(weights_in_memory(W.layers), 5, gen(0)),
        plant=lambda: plant(Plant(2, 2, 2, 24, 6, channels=2)),
        q_of=lambda: q_of(y[0].double(), bins),
        scan=scanned,
    )
    return calls


def parts(x):
    "Every tensor and number in a result, as bytes and types"
    if isinstance(x, torch.Tensor):
        return [str(x.dtype), tuple(x.shape), x.contiguous().numpy().tobytes()]
    if isinstance(x, pd.DataFrame):
        return [parts(x[k].tolist()) for k in x]
    if isinstance(x, dict):
        return [(k, parts(v)) for k, v in x.items()]
    if isinstance(x, (list, tuple)):
        return [parts(v) for v in x]
    if isinstance(x, (LayerWeights, Components, Composition, Channel)):
        return parts(vars(x))
    if isinstance(x, AttentionWeights):
        return [parts(x[l]) for l in range(len(x))]
    return [repr(x)]


def test_every_public_function_has_a_recipe(recipes):
    public = {
        n
        for m in (svd, composition, nulls, channels, detection, planted, scanning)
        for n in m.__all__
        if inspect.isfunction(getattr(m, n))
    }
    assert public == set(recipes)


@pytest.mark.parametrize(
    "name", ["medium", "high", "mkldnn", "autocast", "float64", "float16", "meta", "deterministic"]
)
def test_no_number_depends_on_a_switch(name, recipes):
    calls = {n: f for n, f in recipes.items() if f}
    want = {n: parts(f()) for n, f in calls.items()}
    with switched(name):
        got = {n: f() for n, f in calls.items()}
    assert not [n for n in calls if parts(got[n]) != want[n]]
    A = torch.ones(2)
    assert (A.dtype, A.device.type, torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")) == (
        torch.float32,
        "cpu",
        "highest",
        False,
    )


@pytest.mark.parametrize("name", ["medium", "mkldnn", "autocast", "float64", "float16", "meta"])
def test_no_edit_depends_on_a_switch(name, edits):
    model, weights, change = edits
    want = change()
    with switched(name):
        got = change()
    assert all(torch.equal(a, b) for a, b in zip(got, want)) and not torch.equal(want[0], weights)


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    "A tiny model, the weights of one layer, and what edits make of them"
    from talking_heads.hooks import load_model
    from talking_heads.interventions import coordinates, component_edit, random_like, subspace_edit

    model = load_model(str(tiny.save("llama", tmp_path_factory.mktemp("edits"))), device="cpu")
    V, z = torch.linalg.qr(torch.randn(48, 2, generator=gen(0)))[0].T, torch.randn(3, 12, generator=gen(1))
    W = lambda: model.blocks[1].attn.W_O.detach().clone()

    def change():
        out = []
        one = component_edit(model, {"1.0.0": 0.3, "1.2.1": 0.0})
        for e in (one, random_like(one, model, seed=1), subspace_edit(model, "1.1", V, [0.1, 2.0])):
            e.apply(model)
            out.append(W())
            e.undo(model)
        return [*out, coordinates(z, model, V, "1.1")]

    return model, W(), change


def test_the_guard_restores_after_errors_and_across_threads():
    x = torch.randn(200, 200, generator=gen(0))
    exact = x @ x
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ZeroDivisionError):
            with full_precision():
                1 / 0
        assert torch.get_float32_matmul_precision() == "medium"
        inside, leave, seen = threading.Event(), threading.Event(), []

        def other():
            with full_precision():
                inside.set()
                leave.wait(10)
                seen.append(torch.equal(x @ x, exact))

        t = threading.Thread(target=other)
        t.start()
        inside.wait(10)
        with full_precision():
            seen.append(torch.equal(x @ x, exact))
        leave.set()
        t.join()
        assert seen == [True, True] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
