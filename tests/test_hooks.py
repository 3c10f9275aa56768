"Readouts, ablations and path patching on every family, against plain transformers with torch hooks"

from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.hooks import *
from talking_heads.circuits.patching import *
from talking_heads.circuits.finding import *
from talking_heads.tasks.repeats import *
from transformer_lens.head_detector import detect_head

close = lambda a, b, eps=2e-4: torch.testing.assert_close(a.float(), b.float(), atol=eps, rtol=1e-4)


@pytest.fixture(scope="module", params=tiny.kinds)
def pair(request, tmp_path_factory):
    "Our model and plain transformers' on the same folder"
    folder = tiny.save(request.param, tmp_path_factory.mktemp(request.param))
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return request.param, load_model(str(folder), device="cpu"), plain


def layers(plain):
    return (
        plain.gpt_neox.layers
        if hasattr(plain, "gpt_neox")
        else plain.transformer.h
        if hasattr(plain, "transformer")
        else plain.model.layers
    )


def attn(layer):
    return getattr(layer, "self_attn", None) or getattr(layer, "attention", None) or layer.attn


def out_proj(layer):
    a = attn(layer)
    return getattr(a, "o_proj", None) or getattr(a, "dense", None) or a.c_proj


def final_norm(plain):
    return (
        plain.gpt_neox.final_layer_norm
        if hasattr(plain, "gpt_neox")
        else plain.transformer.ln_f
        if hasattr(plain, "transformer")
        else plain.model.norm
    )


@torch.no_grad()
def run_plain(plain, tokens, edit=None):
    "Logits, attentions and the input of every output projection, `edit(layer, z)` applied to the latter"
    zs, handles = {}, []
    for l, layer in enumerate(layers(plain)):

        def hook(mod, args, l=l):
            z = args[0].clone()
            if edit:
                z = edit(l, z)
            zs[l] = z
            return (z, *args[1:])

        handles.append(out_proj(layer).register_forward_pre_hook(hook))
    try:
        out = plain(tokens, output_attentions=True)
    finally:
        [h.remove() for h in handles]
    return out.logits, out.attentions, zs


def prompts_of(model, n=30):
    return ioi(**task_args(model), n=n)


def test_rows_of_groups_come_back_in_order():
    rows, order = torch.arange(12).view(6, 2), [4, 0, 5, 2, 1, 3]
    assert torch.equal(in_order([rows[order[:4]], rows[order[4:]]], [order[:4], order[4:]]), rows)


def test_bos_follows_the_tokenizer(pair):
    kind, model, _ = pair
    assert model.cfg.default_prepend_bos == kind.startswith("gemma")
    assert prompts_of(model)[0].tokens[0] == (1 if kind.startswith("gemma") else prompts_of(model)[0].tokens[0])


def test_readout_equals_plain_transformers(pair):
    _, model, plain = pair
    prompts = prompts_of(model)
    r = readout(model, prompts)
    for i in (0, 1, 13, 29):
        p = prompts[i]
        logits, att, zs = run_plain(plain, torch.tensor([p.tokens]))
        close(r.logits[i], logits[0, -1])
        keys = [p.roles[x] for x in r.roles]
        for l in range(3):
            close(r.attention[i, l], att[l][0, :, -1, keys])
            close(r.z[i, l].flatten(), zs[l][0, -1])


def test_padded_batch_equals_single_prompts(pair):
    _, model, _ = pair
    prompts = prompts_of(model)
    r, tokens, end = readout(model, prompts), prompts.tokens, prompts.pos("END")
    assert len(set(end.tolist())) > 1
    with torch.no_grad():
        logits = model(tokens)
    close(logits[torch.arange(len(end)), end], r.logits)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_ablation_equals_plain_hooks(pair, how):
    _, model, plain = pair
    prompts = prompts_of(model, 12)
    before = readout(model, prompts)
    fill = {1: before.z[:, 1].mean(0), 0: before.z[:, 0].mean(0)}
    got = ablate(model, prompts, ["1.2", "0.0"], how=how)
    d = model.cfg.d_head

    def edit(l, z):
        for layer, h in ((1, 2), (0, 0)):
            if l == layer:
                z[:, -1, h * d : (h + 1) * d] = fill[l][h] if how == "mean" else 0
        return z

    for i in (0, 5, 11):
        logits, att, _ = run_plain(plain, torch.tensor([prompts[i].tokens]), edit)
        close(got.logits[i], logits[0, -1])
        close(got.attention[i, 2, :, 0], att[2][0, :, -1, prompts[i].roles["IO"]])
    assert torch.equal(readout(model, prompts).logits, before.logits)


def test_sweep_equals_one_by_one(pair):
    _, model, _ = pair
    prompts = prompts_of(model, 12)
    sweep = ablation_sweep(model, prompts, ["2.1", "2.3"], batch_size=5)
    for h in ("0.1", "1.3"):
        one = ablate(model, prompts, h).attention
        l, k = parse_head(h)
        close(sweep[:, l, k], one[:, 2, [1, 3]])


def test_prefix_cache_is_never_changed(pair):
    _, model, _ = pair
    prompts = prompts_of(model, 30)
    group = prompts[prompts.groups()[0]]
    runs, want = Reruns(model, group), readout(model, group).logits
    for n in (1, 3):
        close(runs.run(n=n).view(len(group), n, -1)[:, -1], want)

    def boom(x, hook):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run([("blocks.1.attn.hook_z", boom)])
    close(runs.run(), want)


def test_runs_that_start_late(pair):
    """A run from layer l is the whole run, also with variants;
    gradients through it match differences; parameters stay as they were"""
    _, model, _ = pair
    prompts = prompts_of(model, 30)
    group = prompts[prompts.groups(4)[0]]
    runs, want = Reruns(model, group), readout(model, group).logits
    before = {n: (p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()}
    x = torch.zeros(model.cfg.d_head, requires_grad=True)

    def add(z, hook):
        z = z.clone()
        z[:, 0, 1] = z[:, 0, 1] + x
        return z

    hook = [("blocks.2.attn.hook_z", add)]
    for start in (1, 2):
        close(runs.run(start_at_layer=start), want)
        close(runs.run(n=3, start_at_layer=start)[1::3], want)
        close(runs.run(start_at_layer=start, stop_at_layer=2), runs.entering(2))
        f = lambda: runs.run(hook, start_at_layer=start, grad=True)[:, 5].sum()
        (g,) = torch.autograd.grad(f(), x)
    with torch.no_grad():
        x[0] = 1e-2
        up = f()
        x[0] = -1e-2
        down = f()
    assert torch.isclose((up - down) / 2e-2, g[0], rtol=0.05, atol=2e-3)
    assert all(
        p.requires_grad == r and p.grad is None and torch.equal(p, q)
        for (n, p), (r, q) in zip(model.named_parameters(), before.values())
    )
    close(readout(model, group).logits, want, 1e-6)


def test_a_failing_late_run_leaves_the_layers(pair):
    _, model, _ = pair
    prompts = prompts_of(model, 30)
    group = prompts[prompts.groups(4)[0]]
    runs, want = Reruns(model, group), readout(model, group).logits

    def fails(z, hook):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        runs.run([("blocks.2.attn.hook_z", fails)], start_at_layer=2)
    close(readout(model, group).logits, want, 1e-6)


def test_attribution_adds_up(pair):
    "Heads' attributions equal the attention output's dot product, and the whole stream gives the logit difference"
    kind, model, plain = pair
    prompts = prompts_of(model, 8)
    r = readout(model, prompts)
    dla, g = direct_logit_attribution(model, r), None
    from talking_heads.hooks import _answer_direction

    g = _answer_direction(model, r)
    for i in (0, 3):
        got, handles = {}, []
        for l, layer in enumerate(layers(plain)):
            mod = getattr(layer, "post_attention_layernorm", None) if kind.startswith("gemma") else out_proj(layer)
            handles.append(mod.register_forward_hook(lambda m, a, o, l=l: got.__setitem__(l, o[0, -1])))
        handles.append(final_norm(plain).register_forward_pre_hook(lambda m, a: got.__setitem__("resid", a[0][0, -1])))
        with torch.no_grad():
            plain(torch.tensor([prompts[i].tokens]))
        [h.remove() for h in handles]
        for l, layer in enumerate(layers(plain)):
            b = getattr(out_proj(layer), "bias", None)
            write = got[l] if b is None else got[l] - b.detach()
            close(dla[i, l].sum(), write @ g[i], 1e-3)
        const = (
            0.0
            if getattr(final_norm(plain), "bias", None) is None
            else final_norm(plain).bias.detach()
            @ (model.W_U[:, prompts[i].answer_id] - model.W_U[:, prompts[i].distractor_ids[0]])
        )
        if kind != "gemma2":
            close(got["resid"] @ g[i] + const, logit_diff(r)[i], 1e-3)  # Gemma 2 caps its logits afterwards


@pytest.mark.parametrize("mode,role", [("Q", "END"), ("K", "S2"), ("V", "S1"), ("Q", "S2")])
def test_path_patch_equals_a_recomputed_input(pair, mode, role):
    "The receiver's query, key or value is recomputed from its norm and weight, for one sender"
    kind, model, _ = pair
    if kind.startswith("gemma"):
        with pytest.raises(ModelError, match="not defined for this architecture"):
            path_patch(model, prompts_of(model, 4), corrupt(prompts_of(model, 4)), ["0.1"], ["2.1"], mode, role)
        return
    prompts = prompts_of(model, 6)
    dirty, sender, (l, h) = corrupt(prompts, "abc"), Head(0, 1), (2, 1)
    clean_z, dirty_z = (readout(model, p, (), role).z for p in (prompts, dirty))
    delta = (dirty_z - clean_z)[:, 0, 1] @ model.blocks[0].attn.W_O[1].detach()
    att, logits = path_patch(model, prompts, dirty, [sender], [Head(l, h)], mode, role, observers=["2.0"])
    block, i = model.blocks[l], 4
    for i in (0, 4):
        tokens, pos = torch.tensor([prompts[i].tokens]), prompts[i].roles[role]
        _, cache = model.run_with_cache(tokens, names_filter=f"blocks.{l}.hook_resid_pre")
        resid = cache[f"blocks.{l}.hook_resid_pre"][0, pos] + delta[i]
        bridge = getattr(block.attn, mode.lower())
        with torch.no_grad():
            new = bridge(block.ln1(resid[None, None]))[0, 0]
        model.reset_hooks()
        d = model.cfg.d_head
        new = new.reshape(-1, d)[h] if new.ndim < 3 else new[h]

        def put(x, hook):
            x[:, pos, h] = new
            return x

        base = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{l}.attn.hook_{mode.lower()}", put)])
        ids = torch.tensor([prompts[i].answer_id, prompts[i].distractor_ids[0]])
        close(logits[i, 0], base[0, -1, ids].detach(), 1e-3)


def test_stripes_equal_transformer_lens(pair):
    "Same stripes as TransformerLens' detector, which divides by all attention instead of by rows"
    _, model, _ = pair
    text = " ".join(["Mary", "John", "book", "lamp", "Tom", "ring"] * 2)
    tokens = model.to_tokens(text)
    ours = stripe_scores(model, tokens)["previous_token"][0]
    theirs = detect_head(model, text, "previous_token_head")
    n = tokens.shape[1]
    close(ours * (n - 1) / n, theirs, 1e-3)


def test_models_are_left_as_found(pair):
    _, model, _ = pair
    prompts = prompts_of(model, 6)
    hooks = lambda: sum(len(h.fwd_hooks) for h in model.hook_dict.values())
    weights = {k: v.clone() for k, v in model.original_model.state_dict().items()}

    def boom(*a, **k):
        raise RuntimeError

    n = hooks()
    with pytest.raises(RuntimeError):
        with model.hooks([("blocks.1.attn.hook_z", boom)]):
            readout(model, prompts)
    with pytest.raises(HeadError):
        ablate(model, prompts, "9.9")
    ablate(model, prompts, "1.1")
    assert hooks() == n and model.cfg.use_split_qkv_input is False
    assert all(torch.equal(v, weights[k]) for k, v in model.original_model.state_dict().items())


def test_bad_requests(pair):
    kind, model, _ = pair
    prompts = prompts_of(model, 4)
    other = ioi(model.tokenizer, n=4, bos=not prompts.bos)
    with pytest.raises(TaskError, match="bos="):
        readout(model, other)
    with pytest.raises(TaskError, match="role 'item1'"):
        readout(model, prompts, to=("item1",))
    with pytest.raises(HeadError, match="Q, K or V"):
        path_patch(model, prompts, prompts, ["0.0"], ["1.0"], "X")
    with pytest.raises(HeadError, match="earlier layer"):
        path_patch(model, prompts, prompts, ["2.0"], ["1.0"])
    if not kind.startswith("gemma"):  # there path patching is refused before anything else
        with pytest.raises(TaskError, match="differ in length"):
            path_patch(model, prompts, prompts_of(model, 30)[10:14], ["0.0"], ["1.0"])
        if (model.cfg.n_key_value_heads or 4) != 4:
            with pytest.raises(HeadError, match="KV heads here"):
                path_patch(model, prompts, prompts, ["0.0"], ["1.0"], "K", "S2", observers=None)
    with pytest.raises(HeadError, match="mean or zero"):
        ablate(model, prompts, "0.0", how="noise")
    with pytest.raises(TaskError, match="needs what heads write at END"):
        direct_logit_attribution(model, readout(model, prompts, query="S2"))
    with pytest.raises(TaskError, match="one length"):
        Reruns(model, prompts_of(model, 30))


def test_a_planted_mover_is_found(tmp_path):
    "A head that attends to IO and copies it is called a mover; the rule needs no name"
    model = load_model(str(tiny.save("gpt2", tmp_path)), device="cpu")
    prompts = prompts_of(model, 60)
    r = readout(model, prompts)
    for p, l in zip(prompts, r.logits):
        l[p.answer_id] = l[p.distractor_ids[0]] + 4.0 + l[0] * 0.01  # a model that can do the task
    att, dla = r.attention.clone() * 0, torch.randn(60, 3, 4, generator=torch.Generator().manual_seed(0)) * 0.05
    att[:, 2, 1, 0], dla[:, 2, 1], dla[:, 1, 3], att[:, 1, 3, 0] = 0.8, dla[:, 2, 1] + 5, dla[:, 1, 3] - 5, 0.8
    import talking_heads.circuits.finding as H

    rows = {}
    orig = H.direct_logit_attribution
    try:
        H.direct_logit_attribution = lambda m, r: dla
        writers = [c for c in ioi_classes if c.how == "writes"]
        made = Readout(prompts, r.query, r.logits, att, r.roles, r.z, r.scales)
        rows = pd.concat(H._writer_rows(model, made, writers, 0))
    finally:
        H.direct_logit_attribution = orig
    assert rows[(rows.cls == "mover") & rows.called].name.tolist() == ["2.1"]
    assert rows[(rows.cls == "negative_mover") & rows.called].name.tolist() == ["1.3"]


def test_no_movers_in_a_model_that_cannot_do_the_task(pair):
    _, model, _ = pair
    heads = find_heads(model, prompts_of(model, 60), n_ablate=12, n_random=4)
    if float(logit_diff(readout(model, prompts_of(model, 60))).mean()) < 0.05:
        assert not heads[heads.cls.isin(["mover", "inhibition"])].called.any()
    assert set(heads.cls) >= {"mover", "negative_mover", "previous_token", "duplicate_token", "induction"}


def test_prompts_longer_than_the_model_reads():
    "A short context shortens random tokens, and refuses prompts that do not fit"
    m = load_model("toy-position")
    assert repeated_tokens(m, 2).shape[1] <= m.cfg.n_ctx < 49
    stripe_scores(m, repeated_tokens(m, 2))
    p = ioi(**task_args(m), n=2)
    long = replace(p, prompts=tuple(replace(x, tokens=x.tokens * 9) for x in p))
    with pytest.raises(TaskError, match="reads at most 48"):
        readout(m, long, ())
