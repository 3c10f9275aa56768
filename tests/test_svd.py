"Attention weights of every family against TransformerLens, components against float64"

import json
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from talking_heads.base.core import *
from talking_heads.hooks import load_model
from talking_heads.svd import *

close = lambda a, b, eps=1e-5: torch.testing.assert_close(a.detach(), b.detach(), atol=eps, rtol=1e-4)


@pytest.fixture(scope="module", params=tiny.families)
def saved(request, tmp_path_factory):
    return request.param, tiny.save(request.param, tmp_path_factory.mktemp(request.param))


def stacked(weights, name):
    return torch.stack([getattr(weights[l], name) for l in range(len(weights))])


def test_raw_equals_transformer_lens(saved):
    kind, folder = saved
    model, w = load_model(str(folder), device="cpu"), attention_weights(str(folder))
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        close(stacked(w, name), getattr(model, name))
    if kind in ("gpt2", "neox", "qwen2"):
        for name in ("b_Q", "b_K", "b_V") + (() if kind == "qwen2" else ("b_O",)):
            close(stacked(w, name), getattr(model, name).reshape(stacked(w, name).shape))
        assert stacked(w, "b_Q").abs().sum() > 0


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama", "qwen2", "mistral"])
def test_folded_equals_transformer_lens(kind, tmp_path):
    folder = tiny.save(kind, tmp_path)
    model = load_model(str(folder), device="cpu")
    model.enable_compatibility_mode()
    centre = kind in ("gpt2", "neox")
    w = attention_weights(str(folder), "folded", center_writing=centre)
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        close(stacked(w, name), getattr(model, name).reshape(stacked(w, name).shape), 1e-4)


def test_folded_reads_what_the_model_reads(saved):
    "Queries from folded weights and the norm's bare output equal the queries of plain transformers"
    kind, folder = saved
    plain, w = AutoModelForCausalLM.from_pretrained(folder).eval(), attention_weights(str(folder), "folded")
    if kind == "olmo2":
        return  # no norm in front of attention; its own test below
    got, layer = {}, 1
    block = (
        plain.gpt_neox.layers[1]
        if kind == "neox"
        else plain.transformer.h[1]
        if kind == "gpt2"
        else plain.model.layers[1]
    )
    norm = block.ln_1 if kind == "gpt2" else block.input_layernorm
    attn = block.attention if kind == "neox" else block.attn if kind == "gpt2" else block.self_attn
    proj = (
        attn.query_key_value
        if kind == "neox"
        else attn.c_attn
        if kind == "gpt2"
        else attn.qkv_proj
        if kind == "phi3"
        else attn.q_proj
    )
    hs = [
        norm.register_forward_pre_hook(lambda m, a: got.__setitem__("x", a[0])),
        proj.register_forward_hook(lambda m, a, o: got.__setitem__("q", o)),
    ]
    with torch.no_grad():
        plain(torch.tensor([[5, 6, 7, 8]]))
    [h.remove() for h in hs]
    x = got["x"] - got["x"].mean(-1, keepdim=True) if w.family.layer_norm else got["x"]
    x = (
        x
        / (
            x.pow(2).mean(-1, keepdim=True) + (getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 1e-6))
        ).sqrt()
    )
    q = torch.einsum("bpm,hmd->bphd", x, w[1].W_Q) + w[1].b_Q
    s = w.shape
    if w.family.qk_norm:  # the gain is folded in, and acts after the projection
        q = q / (attn.q_norm.weight.detach() + w.family.offset)
    theirs = (
        got["q"].view(1, 4, s.n_heads, 3, s.d_head)[:, :, :, 0]
        if kind == "neox"
        else got["q"][..., : s.n_heads * s.d_head].view(1, 4, s.n_heads, s.d_head)
    )
    close(q, theirs, 2e-4)


def test_post_norm_gain_lands_in_the_write(tmp_path):
    for kind, offset in (("olmo2", 0.0), ("gemma2", 1.0)):
        folder = tiny.save(kind, tmp_path / kind)
        gain = load_file(folder / "model.safetensors")["model.layers.1.post_attention_layernorm.weight"] + offset
        raw, folded = (attention_weights(str(folder), p)[1] for p in ("raw", "folded"))
        close(folded.W_O, raw.W_O * gain)
        if kind == "olmo2":
            assert torch.equal(folded.W_V, raw.W_V)


def test_shards_and_half_precision(tmp_path):
    folder = tiny.save("llama", tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = attention_weights(str(folder)), attention_weights(str(tmp_path / "many"))
    for l in range(3):
        assert torch.equal(one[l].W_Q, many[l].W_Q) and torch.equal(one[l].W_O, many[l].W_O)
    model.half().save_pretrained(tmp_path / "half")
    half = attention_weights(str(tmp_path / "half"))[1]
    assert half.W_V.dtype == torch.float32
    close(half.W_V, one[1].W_V, 1e-3)


def test_attention_only_checkpoint(shared):
    w = attention_weights(str(shared / "gpt2-small-attention"))
    assert (w.shape.n_layers, w.shape.n_heads, w.shape.d_model) == (12, 12, 768) and w[11].W_O.shape == (12, 64, 768)
    assert w.prefix == ""


heavy = (
    "m.startswith('transformer_lens') or m == 'transformers.modeling_utils' "
    "or ('.models.' in m and '.modeling_' in m and not m.endswith('modeling_auto'))"
)
start = "import sys; from talking_heads.svd import *; "


def test_no_model_code_is_imported(tmp_path):
    "A config class of transformers may be, and is not where a config gives all sizes"
    folder = tiny.save("gpt2", tmp_path)
    code = f"components(attention_weights({str(folder)!r}), 1); sys.exit(any({heavy} for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", start + code]).returncode == 0
    folder = tiny.save("llama", tmp_path / "llama")
    code = f"components(attention_weights({str(folder)!r}, 'folded'), 1); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", start + code]).returncode == 0


def damage(folder, f):
    w = load_file(folder / "model.safetensors")
    f(w)
    save_file(w, folder / "model.safetensors")


def test_bad_checkpoints(tmp_path):
    folder = tiny.save("llama", tmp_path)
    good = (folder / "model.safetensors").read_bytes()
    damage(folder, lambda w: w["model.layers.2.self_attn.q_proj.weight"][13].fill_(float("inf")))
    with pytest.raises(CheckpointError, match="W_Q of head 2.1"):
        attention_weights(str(folder))[2]
    attention_weights(str(folder))[1]
    (folder / "model.safetensors").write_bytes(good)
    damage(folder, lambda w: w.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(CheckpointError, match="Layer 1: .* no tensor .*k_proj"):
        attention_weights(str(folder))[1]
    (folder / "model.safetensors").write_bytes(good)
    damage(folder, lambda w: w.update({"model.layers.0.self_attn.o_proj.weight": torch.ones(3, 3)}))
    with pytest.raises(CheckpointError, match=r"Layer 0: .*o_proj.weight has shape \(3, 3\)"):
        attention_weights(str(folder))[0]
    (folder / "model.safetensors").write_bytes(good[:-9])
    with pytest.raises(CheckpointError, match="truncated"):
        attention_weights(str(folder))
    (folder / "model.safetensors").write_bytes(good)
    c = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(c | {"model_type": "mamba"}))
    with pytest.raises(ModelError, match="No family record"):
        attention_weights(str(folder))
    (folder / "config.json").write_text(json.dumps(c | {"num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match="calls for 2 layers"):
        attention_weights(str(folder))
    (folder / "config.json").write_text(json.dumps(c | {"num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match="Layer 3: .* no tensor"):
        attention_weights(str(folder))[3]
    (folder / "config.json").write_text(json.dumps(c | {"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="under any known prefix"):
        attention_weights(str(folder))
    (folder / "config.json").write_text(json.dumps(c))
    with pytest.raises(ModelError, match="raw or folded"):
        attention_weights(str(folder), "cooked")
    with pytest.raises(HeadError, match="layers 0 to 2"):
        attention_weights(str(folder))[3]
    with pytest.raises(HeadError, match="OV or QK"):
        components(attention_weights(str(folder)), 0, "VO")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype, tmp_path):
    folder = tiny.save("llama", tmp_path)
    damage(folder, lambda w: w.update({k: w[k].to(dtype) for k in w if "layers.1.self_attn.v_proj" in k}))
    with pytest.raises(CheckpointError, match="Layer 1: .*v_proj.* Quantised"):
        attention_weights(str(folder))[1]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(text, tmp_path):
    folder = tiny.save("llama", tmp_path)
    (folder / "model.safetensors").rename(
        folder / "model-00001-of-00001.safetensors"
    )  # beside a single file it would not be read
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a shard index"):
        attention_weights(str(folder))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), m=st.integers(2, 24), n=st.integers(2, 24), r=st.integers(1, 8), seed=st.integers(0, 10**6)
)
def test_thin_svd_equals_brute_force(batch, m, n, r, seed):
    r, g = min(r, m, n), torch.Generator().manual_seed(seed)
    A, B = (
        torch.randn(batch, m, r, generator=g, dtype=torch.float64),
        torch.randn(batch, r, n, generator=g, dtype=torch.float64),
    )
    U, S, Vh = thin_svd(A, B)
    close(U * S[:, None] @ Vh, A @ B, 1e-9)
    close(S, torch.linalg.svdvals(A @ B)[:, :r], 1e-9)
    close(U.mT @ U, torch.eye(r, dtype=torch.float64).expand(batch, r, r), 1e-9)
    close(Vh @ Vh.mT, torch.eye(r, dtype=torch.float64).expand(batch, r, r), 1e-9)
    U2, V2 = fix_signs(U, Vh)
    close(U2 * S[:, None] @ V2, A @ B, 1e-9)
    flip = torch.where(torch.rand(batch, r, generator=g) < 0.5, -1.0, 1.0).double()
    for a, b in zip(fix_signs(U * flip[:, None], Vh * flip[..., None]), (U2, V2)):
        assert torch.equal(a, b)


def test_components_of_grouped_queries(tmp_path):
    "Each query head's matrices, built in full in float64"
    w = attention_weights(str(tiny.save("gemma3", tmp_path)))
    x, s = w[1], w.shape
    for kind in ("OV", "QK"):
        c = components(w, 1, kind)
        for h in range(s.n_heads):
            kv = h // (s.n_heads // s.n_kv_heads)
            full = x.W_V[kv].double() @ x.W_O[h].double() if kind == "OV" else x.W_Q[h].double() @ x.W_K[kv].double().T
            close((c.U[h] * c.S[h] @ c.Vh[h]).double(), full, 1e-4)
            assert (c.S[h].diff() <= 0).all()


def test_effective_rank_and_degeneracy():
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])).item() == pytest.approx(1) and effective_rank(
        torch.ones(7)
    ).item() == pytest.approx(7)
    assert degenerate(torch.tensor([5.0, 4.0, 3.999, 1.0])).tolist() == [False, True, True, False]
    assert degenerate_groups(torch.tensor([5.0, 4.0, 3.999, 3.998, 1.0])).tolist() == [0, 1, 1, 1, 4]
    assert degenerate(torch.tensor([2.0])).tolist() == [False]
    assert degenerate(torch.tensor([[1.0, 0.5, 0.0, 0.0], [1.0, 0.5, 0.2, 0.0]])).tolist() == [
        [False, False, True, True],
        [False, False, False, True],
    ]


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_half_of_a_model_that_sees(tmp_path, prefix):
    "Its config wraps the text model's, and its tensors stand under a longer name"
    d = tiny.save("gemma3", tmp_path)
    before = attention_weights(str(d))
    want = [before[1].W_Q.clone(), before[0].W_O.clone()]
    config, t = json.loads((d / "config.json").read_text()), load_file(d / "model.safetensors")
    e = tmp_path / "sees"
    shutil.copytree(d, e, ignore=lambda *_: ["sees"])
    (e / "config.json").write_text(json.dumps(dict(model_type="gemma3", text_config=config)))
    save_file({k.replace("model.", prefix, 1): v for k, v in t.items()}, e / "model.safetensors")
    w = attention_weights(str(e))
    assert torch.equal(w[1].W_Q, want[0]) and torch.equal(w[0].W_O, want[1])
