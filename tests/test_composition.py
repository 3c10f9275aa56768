"Composition scores against float64 brute force, TransformerLens, exact identities and known numbers"

import math
import sys
import subprocess

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import tiny
from talking_heads.base.core import *
from talking_heads.hooks import load_model
from talking_heads.svd import *
from talking_heads.composition import *

close = lambda a, b, eps=1e-5: torch.testing.assert_close(a, b, atol=eps, rtol=1e-4)


def random_layer(g, heads, kv, d, r, scale=1.0):
    "One layer with grouped queries and a head dimension of its own, uneven spectra"
    t = lambda *s: torch.randn(*s, generator=g) * torch.rand(s[-1] if s[-1] == r else (s[-2], 1), generator=g) * scale
    return LayerWeights(
        t(heads, d, r),
        t(kv, d, r),
        t(kv, d, r),
        t(heads, r, d),
        *(torch.zeros(n, r) for n in (heads, kv, kv)),
        torch.zeros(d),
    )


class Weights:
    "Layers in memory that look like `AttentionWeights`"

    processing, center_writing, config = "raw", False, {}

    def __init__(self, layers):
        w = layers[0]
        self.layers, self.shape = layers, Shape(len(layers), len(w.W_Q), len(w.W_K), w.W_Q.shape[1], w.W_Q.shape[2])

        class C:
            name = revision = sha256 = "made"
            source = "memory"

        self.checkpoint = C

    def __getitem__(self, l):
        return self.layers[l]


def full(w, mode, h):
    "The d_model x d_model matrix a head reads with, float64"
    kv = h // (len(w.W_Q) // len(w.W_K))
    if mode == "V":
        return w.W_V[kv].double() @ w.W_O[h].double()
    B = w.W_Q[h].double() @ w.W_K[kv].double().T
    return B if mode == "Q" else B.T


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(2, 4),
    kv=st.integers(1, 3),
    per=st.integers(1, 3),
    r=st.integers(1, 5),
    extra=st.integers(0, 9),
    seed=st.integers(0, 10**6),
)
def test_every_level_equals_brute_force(layers, kv, per, r, extra, seed):
    g = torch.Generator().manual_seed(seed)
    W = Weights([random_layer(g, kv * per, kv, kv * per * r + extra + 1, r) for _ in range(layers)])
    scores = compose(W)
    a, b = 0, layers - 1
    for mode in modes:
        heads = scores[mode].heads()
        for h in range(kv * per):
            B = full(W[b], mode, h)
            for i in range(kv * per):
                A = full(W[a], "V", i)
                close(heads[a, i, b, h].double(), (A @ B).norm() / A.norm() / B.norm())
                U, S, Vh = torch.linalg.svd(A)
                got = scores[mode].layers[b][a, i, :, h]
                Vc = write_directions(W[a])[1][i].double()
                close(got.double(), (Vc @ B).norm(dim=-1) / B.norm())
        pairs = component_pairs(W, f"{a}.0", f"{b}.0", mode)
        tau = reader_components(W, b, mode)[1][0].double()
        close(
            ((pairs.double() ** 2 * tau**2).sum(-1) / (tau**2).sum()).sqrt(),
            scores[mode].layers[b][a, 0, :, 0].double(),
            1e-4,
        )


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize("processing", ["raw", "folded"])
def test_heads_equal_transformer_lens(kind, processing, tmp_path):
    folder = tiny.save(kind, tmp_path)
    model = load_model(str(folder), device="cpu")
    if processing == "folded":
        model.enable_compatibility_mode()
    centre = processing == "folded" and kind != "llama"
    mine = compose(attention_weights(str(folder), processing, center_writing=centre))
    live = compose(attention_weights(model))
    for mode in modes:
        theirs = model.all_composition_scores(mode).scores.detach()
        close(mine[mode].heads(), theirs), close(live[mode].heads(), theirs)


def test_a_bridge_gives_its_own_weights(tmp_path):
    for kind in tiny.families:
        folder = tiny.save(kind, tmp_path / kind)
        model = load_model(str(folder), device="cpu")
        for p in ("raw", "folded"):
            a, b = attention_weights(str(folder), p), attention_weights(model, p)
            for l in range(3):
                for n in vars(a[l]):
                    close(getattr(a[l], n), getattr(b[l], n), 1e-6)
    with torch.no_grad():
        model.blocks[1].attn.o.weight.mul_(2.0)
    close(attention_weights(model)[1].W_O, 2 * attention_weights(str(folder))[1].W_O)
    model.enable_compatibility_mode()
    with pytest.raises(ModelError, match="compatibility mode"):
        attention_weights(model, "folded")


def test_projection_kernel_equals_transformer_lens(tmp_path):
    from transformer_lens.tools.analysis.projection_kernel import attention_head_subspace_affinity

    folder = tiny.save("gpt2", tmp_path)
    model, w = load_model(str(folder), device="cpu"), attention_weights(str(folder))
    for mode in modes:
        close(baseline(w, mode, "pk"), attention_head_subspace_affinity(model, target_role=mode).scores, 1e-4)


def test_baselines_equal_brute_force():
    g = torch.Generator().manual_seed(0)
    W = Weights([random_layer(g, 2, 1, 20, 4) for _ in range(2)])
    O, Q = W[0].W_O[1].T.double(), W[1].W_Q[0].double()
    got = {m: baseline(W, "Q", m)[0, 1, 1, 0].double() for m in ("simple", "pk", "factor", "cka", "procrustes")}
    u, v = (torch.linalg.svd(x, full_matrices=False)[0] for x in (O, Q))
    (
        close(got["simple"], (u.T @ v).norm() / 4),
        close(got["pk"], torch.linalg.svdvals(u.T @ v).square().sum()),
        close(got["factor"], (O.T @ Q).norm() / O.norm() / Q.norm()),
    )
    o, q = O - O.mean(0), Q - Q.mean(0)
    H = torch.eye(20).double() - 1 / 20
    hsic = lambda a, b: (H @ a @ a.T @ H * (b @ b.T)).sum()
    close(got["cka"], hsic(O, Q) / (hsic(O, O) * hsic(Q, Q)).sqrt())
    close(got["procrustes"], torch.linalg.svdvals(o.T @ q).sum() / o.norm() / q.norm())
    assert float(baseline(W, "Q", "pk")[1].abs().sum()) == 0


def hf_frequencies(config, kind):
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0]


def test_rotation_is_the_models_own(tmp_path):
    "Rotating the query by the distance equals rotating query and key by their positions"
    for kind in ("llama", "neox", "gemma3", "phi3"):
        w = attention_weights(str(tiny.save(kind, tmp_path / kind)))
        x, r, d = w[1], w.shape.d_head, 7
        f = rope_frequencies(w.config, 1)
        n = 2 * len(f)
        angle = lambda pos: torch.cat([pos * f, pos * f])[None, None, None]
        q, k = torch.randn(1, 1, 1, r), torch.randn(1, 1, 1, r)
        turn = lambda y, pos: torch.cat(
            [apply_rotary_pos_emb(y[..., :n], y[..., :n], angle(pos).cos()[0], angle(pos).sin()[0])[0], y[..., n:]], -1
        )
        close((turn(q, 20) * turn(k, 20 - d)).sum(), (rotation(w, 1, d)(q) * k).sum(), 1e-4)
    with pytest.raises(ModelError, match="no rotary"):
        rotation(attention_weights(str(tiny.save("gpt2", tmp_path / "g"))), 1, 3)
    with pytest.raises(HeadError, match="looks back"):
        rotation(w, 1, -1)


def test_rope_frequencies_equal_transformers():
    from transformers import LlamaConfig

    llama3 = dict(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
        rope_theta=500000.0,
    )
    for p in (llama3, dict(rope_type="linear", factor=4.0, rope_theta=10000.0)):
        c = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=p)
        close(rope_frequencies(c.to_dict(), 0), hf_frequencies(c, p["rope_type"]), 1e-7)
    old = dict(
        model_type="llama",
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        rope_theta=10000.0,
        rope_scaling=dict(type="linear", factor=2.0),
    )
    close(rope_frequencies(old, 0), 10000.0 ** -(torch.arange(0, 32, 2) / 32) / 2)
    gemma = dict(
        model_type="gemma3_text",
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=dict(sliding_attention=dict(rope_theta=10000.0), full_attention=dict(rope_theta=1e6)),
    )
    assert rope_frequencies(gemma, 1)[1] < rope_frequencies(gemma, 0)[1]
    older = dict(
        model_type="gemma3_text",
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=12,
        rope_theta=1e6,
        rope_local_base_freq=10000.0,
        sliding_window_pattern=6,
        rope_scaling=dict(rope_type="linear", factor=8.0),
    )
    (
        close(rope_frequencies(older, 0), rope_frequencies(gemma, 0)),
        close(rope_frequencies(older, 5), rope_frequencies(gemma, 1) / 8),
    )
    with pytest.raises(ModelError, match="not covered"):
        rope_frequencies(old | dict(rope_scaling=dict(type="fancy", factor=2.0)), 0)


def test_distance_zero_is_no_distance_and_curves_move(tmp_path):
    w = attention_weights(str(tiny.save("llama", tmp_path)))
    none, zero, far = compose(w, "QK"), compose(w, "QK", distance=0), compose(w, "QK", distance=9)
    for m in "QK":
        close(none[m].heads(), zero[m].heads())
    assert (none["K"].heads() - far["K"].heads()).abs().max() > 1e-3
    assert far["K"].provenance["distance"] == 9


def test_gpt2_numbers(shared):
    raw = compose(attention_weights(str(shared / "gpt2-small-attention")), "QK")
    f = raw["Q"].ranking("9.9")
    assert len(f) == 6912 and set("8.6.2 8.10.1 7.3.1 7.9.6".split()) <= set(f.src[:7])
    assert [int(f[f.src == c]["rank"].iloc[0]) for c in "8.6.2 8.10.1 7.3.1 7.9.6".split()] == [2, 4, 5, 7]
    g = raw["Q"].ranking("L9H9", "head").set_index("src")["rank"]
    assert g[["8.6", "8.10", "7.3", "7.9"]].tolist() == [11, 1, 3, 18]
    assert raw["K"].ranking("5.5", "head").src[0] == "4.11"


@pytest.mark.slow
def test_smollm2_numbers():
    c = compose(attention_weights("smollm2", "folded"), "Q")
    ranks = [
        int(f[f.src == "20.0.0"]["rank"].iloc[0]) for f in map(c.ranking, ("23.0", "23.1", "23.2", "23.7", "22.7"))
    ]
    assert sum(r <= 3 for r in ranks) >= 3


def test_dead_heads_have_no_score():
    g = torch.Generator().manual_seed(0)
    layers = [random_layer(g, 2, 2, 12, 3) for _ in range(2)]
    layers[1].W_Q[0].zero_(), layers[0].W_O[1].zero_()
    c = compose(Weights(layers), "Q")
    dead = torch.zeros(1, 2, 3, 2, dtype=torch.bool)
    dead[..., 0] = dead[:, 1] = True
    assert torch.equal(c.layers[1].isnan(), dead) and torch.equal(c.heads()[0, :, 1].isnan(), dead[0, :, 0])
    assert float(c.heads()[1].abs().max()) == 0 and set(c.ranking("1.1").src) == {"0.0.0", "0.0.1", "0.0.2"}


def test_bad_input():
    g = torch.Generator().manual_seed(0)
    W = Weights([random_layer(g, 2, 1, 12, 3) for _ in range(2)])
    c = compose(W, "Q")
    for head, words in (
        ("2.0", "does not exist"),
        ("1.2", "does not exist"),
        ("0.1", "first layer"),
        ("nine", "names no head"),
    ):
        with pytest.raises(HeadError, match=words):
            c.ranking(head)
    with pytest.raises(HeadError, match="come before"):
        component_pairs(W, "1.0", "1.1")
    with pytest.raises(HeadError, match="Unknown mode"):
        reader_factors(W[0], "O")
    with pytest.raises(HeadError, match="Unknown measure"):
        baseline(W, "Q", "cosine")
    with pytest.raises(HeadError, match="Unknown mode"):
        baseline(W, "X")
    for modes in ("", "QX"):
        with pytest.raises(HeadError, match="Unknown modes"):
            compose(W, modes)


def test_ranking_says_what_a_score_leaves_out():
    g = torch.Generator().manual_seed(0)
    W = Weights([random_layer(g, 2, 1, 12, 3) for _ in range(2)])
    f = compose(W, "Q").ranking("1.1").set_index("src")
    S = write_directions(W[0])[0]
    assert float(f.loc["0.1.2", "share"]) == pytest.approx(float(S[1, 2] ** 2 / S[1].square().sum()), rel=1e-4)
    with pytest.raises(HeadError, match="Unknown level"):
        compose(W, "Q").ranking("1.1", "components")


def test_an_edited_model_is_not_taken_for_its_checkpoint(tmp_path):
    folder = tiny.save("llama", tmp_path)
    model = load_model(str(folder), device="cpu")
    before = attention_weights(model).checkpoint.sha256
    with torch.no_grad():
        model.blocks[1].attn.o.weight.mul_(1.001)
    assert (
        attention_weights(model).checkpoint.sha256
        != before
        == attention_weights(load_model(str(folder), device="cpu")).checkpoint.sha256
    )


def test_no_heavy_import(tmp_path):
    from test_svd import heavy

    folder = tiny.save("gpt2", tmp_path)
    code = (
        "import sys; from talking_heads.weights.scan import *; from talking_heads.svd import *; "
        f"scan(attention_weights({str(folder)!r}), {str(tmp_path / 'o')!r}); "
        f"sys.exit(any({heavy} for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
