"Edits of what heads read: plain float64 products on every family, undone to the last bit, as adapters, in training"

import hashlib
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from transformers import AutoModelForCausalLM

import tiny
from talking_heads.base.core import *
from talking_heads.edits.adapters import lora_factors, to_peft
from talking_heads.edits.parametrisations import *
from talking_heads.edits.upper_layers import *
from talking_heads.hooks import load_model
from talking_heads.interventions import *
from talking_heads.svd import attention_weights, components

close = lambda a, b, eps=1e-5: torch.testing.assert_close(a.double(), b.double(), atol=eps, rtol=1e-5)
few = lambda n: settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {k: tiny.save(k, tmp_path_factory.mktemp(k)) for k in tiny.families}


@pytest.fixture(scope="module")
def models(folders):
    return {k: load_model(str(f), device="cpu") for k, f in folders.items()}


@pytest.fixture(scope="module")
def exact(folders):
    "In float64, so that equal means equal"
    return {k: load_model(str(folders[k]), dtype=torch.float64) for k in ("gpt2", "neox", "llama", "phi3", "gemma2")}


def basis(d, k, seed=0):
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed)))[0].T


def bits(model):
    named = model.original_model.named_parameters(remove_duplicate=False)
    return {n: p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for n, p in named}


def tokens(n=3, length=11, seed=0):
    return torch.randint(5, 150, (n, length), generator=torch.Generator().manual_seed(seed))


def mixing(k, seed=1):
    return torch.eye(k) + 0.7 * torch.randn(k, k, generator=torch.Generator().manual_seed(seed))


def some(model, seed=0):
    "One change on each side, of several heads; keys by KV head"
    V, G = basis(model.cfg.d_model, 3, seed), mixing(3)
    e = subspace_edit(model, "1.1", V, G, side="Q") + subspace_edit(model, "1.1", V, G.mT, side="K")
    return e + subspace_edit(model, "2.3", V, [0.0, 2.0, -1.0], side="Q") + subspace_edit(model, "1.1", V[:1], 0.5)


def dense(c, W):
    "W_Q or W_K (d_model d_head) after a change, by the definition: what is read goes through the matrix first"
    V, G = c.V.double(), c.G.double()
    return (torch.eye(V.shape[1]).double() + V.T @ (G - torch.eye(len(G)).double()) @ V) @ W.double()


@pytest.mark.parametrize("kind", tiny.families)
def test_weights_are_the_dense_product_and_nothing_else_moves(models, kind):
    m = models[kind]
    edit, before = some(m), bits(m)
    was = {s: [getattr(b.attn, f"W_{s}").detach().clone() for b in m.blocks] for s in "QKO"}
    with edited(m, edit):
        for l in range(3):
            for s in "QK":
                for h, W in enumerate(was[s][l]):
                    mine = [c for c in edit.changes if c.place == (Head(l, h), s)]
                    want = dense(mine[0], W) if mine else W
                    close(getattr(m.blocks[l].attn, f"W_{s}")[h].detach(), want, 2e-6 if mine else 0)
        names = {n.replace("._original_component", "") for n, x in bits(m).items() if x != before[n]}
        assert names and all("attn." in n or "attention." in n for n in names)
    assert bits(m) == before and active_edits(m) == ()


@pytest.mark.parametrize("kind", tiny.families)
@torch.no_grad()
def test_the_model_reads_what_was_changed(models, folders, kind):
    "The bridge, its transformers model and a plain model with the edit applied agree; the edit does something"
    m, T = models[kind], tokens()
    plain = AutoModelForCausalLM.from_pretrained(folders[kind], attn_implementation="eager").eval()
    edit, clean = some(m), m(T)
    with edited(m, edit):
        ours, inner = m(T), m.original_model(T).logits
    edit.apply(plain)
    close(inner, ours, 1e-5)
    close(plain(T).logits, ours, 2e-4)
    assert (ours - clean).abs().max() > 1e-3
    assert torch.equal(m(T), clean)


@pytest.mark.parametrize("kind", tiny.families)
def test_components_and_reads_are_of_the_weights_before_any_edit(models, kind):
    m = models[kind]
    want = attention_weights(m)[1]
    one = component_edit(m, "1.0.0", "raw")
    with edited(m, some(m)):
        assert component_edit(m, "1.0.0", "raw") == one
    assert torch.equal(attention_weights(m)[1].W_Q, want.W_Q)


@pytest.mark.parametrize("kind", tiny.families)
@torch.no_grad()
def test_adapter_factors_make_the_change(models, folders, kind, tmp_path):
    "Added to a plain model's own modules as PEFT adds them, they give the edited model's logits"
    m, T = models[kind], tokens()
    edit = some(m)
    config = json.loads((to_peft(edit, m, tmp_path / "a") / "adapter_config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(folders[kind], attn_implementation="eager").eval()
    factors, modules = lora_factors(edit, m), dict(plain.named_modules())
    assert set(factors) == set(config["target_modules"]) <= set(modules)
    for name, (A, B) in factors.items():
        D = B @ A
        modules[name].weight += D.T if config["fan_in_fan_out"] else D
        assert config["rank_pattern"][name] == len(A)
    with edited(m, edit):
        close(plain(T).logits, m(T), 2e-4)
    assert load_edit(tmp_path / "a" / "edit", m) == edit
    assert "Query, key or output projections" in (tmp_path / "a" / "README.md").read_text()


def test_keys_belong_to_kv_heads(models):
    "Under grouped queries there are fewer of them, and one change reaches all query heads of its group"
    m = models["llama"]
    V = basis(m.cfg.d_model, 1)
    with pytest.raises(HeadError, match="heads 0 to 1"):
        subspace_edit(m, "1.2", V, 0.0, side="K")
    T, seen = tokens(), {}
    keep = "blocks.1.attn.hook_pattern", lambda x, hook: seen.setdefault(len(seen), x.clone())
    with torch.no_grad(), m.hooks([keep]):
        m(T)
        with edited(m, subspace_edit(m, "1.1", V, 0.0, side="K")):
            m(T)
    moved = (seen[0] - seen[1]).abs().amax((0, 2, 3))
    assert torch.equal(moved[:2], torch.zeros(2)) and (moved[2:] > 0).all()


def test_another_model_is_refused(models, folders, tmp_path):
    m = models["llama"]
    edit = subspace_edit(m, "1.1", basis(m.cfg.d_model, 2), 0.0, side="K")
    with pytest.raises(EditError, match="made for another model"):
        check_target(edit, models["gpt2"])
    other = load_model(str(tiny.save("llama", tmp_path / "other", seed=5)))
    with pytest.raises(EditError, match="head 1.1 K are not those"):
        edit.apply(other)
    assert active_edits(other) == ()


def test_a_copy_that_differs_is_refused(folders):
    "GPT-NeoX runs on a copy of its packed matrix; a model in which the two disagree is no model to edit"
    m = load_model(str(folders["neox"]))
    edit = subspace_edit(m, "1.1", basis(m.cfg.d_model, 2), 0.0, side="Q")
    with torch.no_grad():
        m.blocks[1].attn.q.weight[13, 0] += 1
    with pytest.raises(EditError, match="twice, and the two differ"):
        edit.apply(m)


def test_old_edits_keep_their_hash(models, tmp_path):
    "An edit of writes alone is stored and hashed as before sides were known"
    m = models["llama"]
    edit = component_edit(m, {"1.0.0": 0.0, "2.1.1": 2.0}, "raw", name="writes")
    about = json.loads((edit.save(tmp_path) / "edit.json").read_text())
    assert about["kind"] == "talking_heads edit 1" and all(set(c) == {"head", "names"} for c in about["changes"])
    head = [edit.target, [(c.where, c.names, tuple(c.V.shape)) for c in edit.changes]]
    tensors = [x.numpy().tobytes() for c in edit.changes for x in (c.V, c.G)]
    content = b"\0".join([json.dumps(head, sort_keys=True).encode(), *tensors])
    assert hashlib.sha256(content).hexdigest() == edit.sha256 == about["sha256"]
    assert "side" not in edit.components and load_edit(tmp_path, m) == edit


def test_a_side_is_part_of_the_hash(models, tmp_path):
    m = models["llama"]
    V = basis(m.cfg.d_model, 2)
    q, k = (subspace_edit(m, "1.1", V, 0.5, side=s) for s in "QK")
    assert q != k and q.sha256 != k.sha256
    about = json.loads(((q + k).save(tmp_path) / "edit.json").read_text())
    assert about["kind"] == "talking_heads edit 2" and [c["side"] for c in about["changes"]] == ["K", "Q"]
    assert load_edit(tmp_path, m) == q + k and (q + k).heads == [Head(1, 1)]
    with pytest.raises(EditError, match="Unknown side"):
        subspace_edit(m, "1.1", V, 0.5, side="V")


histories = st.lists(st.tuples(st.sampled_from("QKO"), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=5)


@few(12)
@given(history=histories, data=st.data(), kind=st.sampled_from(["gpt2", "neox", "phi3", "llama"]))
def test_any_order_of_undoing(models, history, data, kind):
    "Random edits of all sides, undone in any order, leave the bytes that stood there; `then` is one after the other"
    m = models[kind]
    before = bits(m)
    edits = [subspace_edit(m, (1, h), basis(48, 2, seed), mixing(2, seed), side=s) for s, h, seed in history]
    for e in edits:
        e.apply(m)
    together = {s: getattr(m.blocks[1].attn, f"W_{s}").detach().clone() for s in "QKO"}
    for e in data.draw(st.permutations(edits)):
        e.undo(m)
    assert bits(m) == before
    chain = edits[0]
    for e in edits[1:]:
        chain = chain.then(e)
    with edited(m, chain):
        for s, W in together.items():
            close(getattr(m.blocks[1].attn, f"W_{s}").detach(), W, 2e-4 * float(W.abs().max().clamp_min(1)))
    assert bits(m) == before


def test_scaled_and_random(models):
    m = models["llama"]
    V, W = basis(m.cfg.d_model, 2), models["llama"].blocks[1].attn.W_Q[1].detach().clone()
    e = subspace_edit(m, "1.1", V, mixing(2), side="Q")
    moved = {}
    for t in (0.0, 0.5, 1.0):
        with edited(m, e.scaled(t)):
            moved[t] = m.blocks[1].attn.W_Q[1].detach() - W
    close(moved[0.5], moved[1.0] / 2)
    assert not moved[0.0].any()
    for within in ("head", "residual"):
        r = random_like(e, m, 0, within)
        assert r.changes[0].place == e.changes[0].place and torch.equal(r.changes[0].G, e.changes[0].G)
    with pytest.raises(EditError, match="Components are what heads write"):
        random_like(e, m)
    with pytest.raises(EditError, match="changes what heads read"):
        edit_hooks(m, e)


@few(20)
@given(
    kind=st.sampled_from(["gpt2", "neox", "llama", "phi3", "gemma2"]),
    side=st.sampled_from("OQK"),
    layer=st.integers(0, 2),
    seed=st.integers(0, 99),
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
)
def test_training_adds_what_the_edited_weights_do(exact, kind, side, layer, seed, rows):
    "Updates of any side, and rank 1 in a layer: the fast pass is the plain model with the edit in its weights"
    m, T, g = exact[kind], tokens(seed=seed), torch.Generator().manual_seed(seed)
    many, d = m.cfg.n_heads, m.cfg.d_model
    kv = attention_weights(m).shape.n_kv_heads if side == "K" else many
    s = UpperLayers(m, min(layer, 1))
    e, layer = s.enter(T), max(layer, s.layer)
    heads = tuple(Head(layer, h % kv) for h in range(3))
    r = lambda *size: torch.randn(*size, generator=g)
    updates = WeightUpdates(heads, r(3, d) / d**0.5, r(3, d) / d**0.5, ("a", "b", "c"), None, side)
    x = r(3)
    with edited(m, updates_edit(m, updates, x)):
        want = m(T)
    got = s.logits(s.run(e, added_output(m, updates)(x.double()), rows))
    close(got, want[rows], 2e-4)
    assert (want - m(T)).abs().max() > 1e-4
    wide = kv * m.cfg.d_head
    size = (wide, d) if side == "O" else (d, wide)
    rank1 = Rank1(layer, r(size[0]).double() / size[0] ** 0.5, r(size[1]).double(), 0.3, side)
    u = 0.3 * r(sum(size)).double()
    with edited(m, rank1.edit(m, u, "one")):
        want = m(T)
    close(s.logits(s.run(e, rank1.added(m, u), rows)), want[rows], 5e-4)


@pytest.mark.filterwarnings("ignore:A forward hook edited")
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@torch.no_grad()
def test_a_gain_of_minus_one_is_deaf_to_the_channel(exact, kind):
    "With the norm's scale held, what is put in along the component's direction does not reach the reader's queries"
    m, T, seen = exact[kind], tokens(), {}
    updates = channel_reads(m, "0.1.0", ["1.2", "2.0"])
    v = components(attention_weights(m, "folded"), 0).Vh[1, 0].double()

    def queries(edit, shift):
        hooks = [
            ("blocks.1.hook_resid_pre", lambda x, hook: x + shift * v),
            ("blocks.1.ln1.hook_scale", lambda x, hook: torch.ones_like(x)),
            ("blocks.1.attn.hook_q", lambda x, hook: seen.__setitem__("q", x[:, :, 2].clone())),
        ]
        with edited(m, edit), m.hooks(hooks):
            m(T)
        return seen["q"]

    hears = subspace_edit(m, "2.3", basis(48, 1), 1.0, side="Q")  # changes nothing
    deaf = updates_edit(m, updates, -torch.ones(2))
    assert (queries(hears, 3.0) - queries(hears, 0.0)).abs().max() > 1e-3
    close(queries(deaf, 3.0), queries(deaf, 0.0), 1e-5)


def test_together_learns_both_sides(models):
    m = models["llama"]
    g = torch.Generator().manual_seed(0)
    r = lambda n: torch.randn(n, generator=g)
    parts = (Rank1(1, r(48), r(48), 1.0), Rank1(2, r(48), r(48), 1.0, "Q", torch.arange(48) < 12))
    both = Together(parts)
    u = 0.1 * r(192)
    edit = both.edit(m, u, "both")
    assert {c.place for c in edit.changes} == {(Head(1, h), "O") for h in range(4)} | {(Head(2, 0), "Q")}
    assert edit.name == "both" and len(both.start()) == 192
    with pytest.raises(EditError, match="same layer and side"):
        Together((parts[0], parts[0])).added(m, u)
