"Every fast pass is the plain one: whole prompts, one at a time, with plain hooks; or it is refused"

import contextlib
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from transformers import AutoModelForCausalLM

import tiny
from talking_heads.circuits import patching as H
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.circuits.forecast import auroc, fit_forecaster, forecast_frame
from talking_heads.hooks import *
from talking_heads.interventions import component_edit, edited, readout_with_edit, set_coordinates_hooks
from talking_heads.edits.upper_layers import UpperLayers
from talking_heads.edits.training import choose_updates
from talking_heads.edits.parametrisations import component_updates
from talking_heads.edits.evaluation_sets import evaluation_sets
from talking_heads.edits.training_data import training_data
from talking_heads.tasks.contrasts import preference
from talking_heads.circuits.removal import *
from talking_heads.circuits.steering import Subspace, _setting, fit_attention, fit_gradient, natural
from talking_heads.svd import attention_weights, components
from talking_heads.circuits.patching import *
from talking_heads.circuits.finding import *
from talking_heads.tasks.repeats import *

L, N = 5, 4  # layers, heads
slid = {
    "mistral": None,
    "gemma2": [1, 0, 1, 0, 1],
    "gemma3": [1, 1, 0, 1, 0],
}  # which layers have a window; None for all
few = lambda n: settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
heads = st.builds(Head, st.integers(0, L - 1), st.integers(0, N - 1))
some = lambda k: st.lists(heads, min_size=1, max_size=k, unique=True)


def build(kind, folder, dtype=torch.float64):
    "A random model of five layers, in double precision so that equal means equal"
    config = tiny.config(kind, len(tiny.tokenizer()))
    for k in ("num_hidden_layers", "n_layer"):
        if hasattr(config, k):
            setattr(config, k, L)
    if kind in slid:
        config.sliding_window = 8
    if slid.get(kind):
        config.layer_types = [("full_attention", "sliding_attention")[x] for x in slid[kind]]
    torch.manual_seed(3)
    hf = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in hf.parameters():
            if p.ndim == 2:
                p.copy_(torch.randn_like(p) * 0.2)
            else:
                p.add_(torch.randn_like(p) * 0.1)
    hf.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load_model(str(folder), device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {k: build(k, tmp_path_factory.mktemp(k)) for k in ("gpt2", "neox", "llama", "mistral", "gemma2", "gemma3")}


@pytest.fixture(scope="module")
def model(models):
    return models["llama"]


def prompts_of(model, n=5, seed=0, task=ioi, **kw):
    return task(**task_args(model), n=n, seed=seed, **kw)


def put(model, bos, window):
    "Choose BOS and the sliding window; transformers reads the window from the config in every pass"
    model.cfg.default_prepend_bos = bos
    if getattr(model.original_model.config, "sliding_window", None):
        model.original_model.config.sliding_window = window


cases = st.fixed_dictionaries(
    dict(
        kind=st.sampled_from(["gpt2", "neox", "llama", "mistral", "mistral", "gemma2", "gemma3"]),
        bos=st.booleans(),
        window=st.integers(1, 26),
        seed=st.integers(0, 99),
        n=st.integers(2, 6),
        size=st.integers(1, 7),
    )
)


def plain(model, prompt, hooks, observers, to, split=False):
    "Attention (observer role) from END and logits of one whole prompt, one pass"
    seen = {}

    def keep(l):
        def hook(x, hook):
            seen[l] = x[0].clone()

        return f"blocks.{l}.attn.hook_pattern", hook

    with torch.no_grad(), split_inputs(model) if split else contextlib.nullcontext():
        logits = model.run_with_hooks(torch.tensor([prompt.tokens]), fwd_hooks=[*hooks, *(keep(l) for l in range(L))])[
            0, -1
        ]
    keys = [prompt.roles[r] for r in to]
    return torch.stack([seen[o.layer][o.head, -1, keys] for o in observers]), logits


def choices(p, logits):
    return logits[[p.answer_id, *p.distractor_ids]]


def close(a, b, eps=1e-7):
    torch.testing.assert_close(a.double(), b.double(), atol=eps, rtol=1e-6)


def at_end(l, change):
    "A plain hook on the values at the last position"

    def hook(z, hook):
        z = z.clone()
        z[:, -1] = change(z[:, -1])
        return z

    return f"blocks.{l}.attn.hook_z", hook


# ---------------------------------------------------------------- fast passes are plain ones
@few(14)
@given(
    case=cases,
    observers=some(3),
    silenced=some(3),
    to=st.sampled_from([("IO", "S1", "S2"), ("S2",), "S1", ("END", "IO")]),
)
def test_sweep(models, case, observers, silenced, to):
    "Observers above, in and below the silenced layer; those that cannot notice keep their attention to the last bit"
    m = models[case["kind"]]
    put(m, case["bos"], case["window"])
    p = prompts_of(m, case["n"], case["seed"])
    sweep, r = ablation_sweep(m, p, observers, to, case["size"]), readout(m, p, to)
    for h in silenced:

        def change(z):
            return torch.cat([z[:, : h.head], r.z[:, h.layer, h.head].mean(0)[None, None], z[:, h.head + 1 :]], 1)

        for i, q in enumerate(p):
            att, _ = plain(m, q, [at_end(h.layer, change)], observers, r.roles)
            close(sweep[i, h.layer, h.head], att)
        for j, o in enumerate(observers):
            if o.layer <= h.layer:
                assert torch.equal(sweep[:, h.layer, h.head, j], r.attention[:, o.layer, o.head])


@few(14)
@given(
    case=cases,
    observers=st.lists(heads, max_size=4, unique=True),
    where=st.lists(st.integers(0, L - 1), min_size=1, max_size=3, unique=True),
    n=st.integers(1, 4),
    logits=st.booleans(),
    cached=st.booleans(),
)
def test_variants(models, case, observers, where, n, logits, cached):
    "Changes in several layers that differ from variant to variant and from prompt to prompt"
    m = models[case["kind"]]
    put(m, case["bos"], case["window"])
    p = prompts_of(m, case["n"], case["seed"])
    factor = lambda l, j, i: 1.0 + 0.7 * j - 0.3 * l + 0.1 * i

    def change(l):
        def f(z, g):
            return z * torch.tensor([[factor(l, j, i) for j in range(n)] for i in g], dtype=z.dtype)[:, :, None, None]

        return f

    v = run_variants(
        m,
        p,
        {l: change(l) for l in where},
        n,
        observers,
        logits=logits,
        rows=case["size"] * n,
        runs=prefixes(m, p, case["size"]) if cached else None,
    )
    for i, q in enumerate(p):
        for j in range(n):
            hooks = [at_end(l, lambda z, l=l: z * factor(l, j, i)) for l in where]
            att, end = plain(m, q, hooks, observers or [Head(0, 0)], ("IO", "S1", "S2"))
            if observers:
                close(v.attention[i, j], att)
            if logits:
                close(v.choices[i, j], choices(q, end), 1e-5)
                assert v.top[i, j] == end.argmax()
    for k, o in enumerate(observers):
        if o.layer <= min(where):
            assert all(torch.equal(v.attention[:, j, k], v.attention[:, 0, k]) for j in range(n))


@few(16)
@given(
    case=cases.filter(lambda c: not c["kind"].startswith("gemma")),
    senders=some(2),
    receivers=some(3),
    observers=some(3),
    mode=st.sampled_from("QQQKV"),
    role=st.sampled_from(["END", "END", "IO", "S1", "S2"]),
)
def test_paths(models, case, senders, receivers, observers, mode, role):
    "Several receivers in different layers, senders between them, observers anywhere, each mode and role"
    m, to = models[case["kind"]], ("S2", "IO")
    put(m, case["bos"], case["window"])
    if mode != "Q":
        receivers = list({Head(r.layer, r.head % (getattr(m.cfg, "n_key_value_heads", None) or N)) for r in receivers})
    p = prompts_of(m, case["n"], case["seed"])
    dirty = corrupt(p, "exchange")
    args = (m, p, dirty, senders, receivers, mode, role, observers, to)
    if any(s.layer >= max(r.layer for r in receivers) for s in senders):
        with pytest.raises(HeadError, match="earlier layer"):
            path_patch(*args)
        return
    att, logits = path_patch(*args)
    zs = [readout(m, x, (), role).z for x in (p, dirty)]
    for i, q in enumerate(p):
        for j, s in enumerate(senders):
            message = (zs[1] - zs[0])[i, s.layer, s.head] @ m.blocks[s.layer].attn.W_O[s.head].detach()

            def add(r):
                def hook(x, hook):
                    x = x.clone()
                    x[:, q.roles[role], r.head] += message
                    return x

                return f"blocks.{r.layer}.attn.hook_{mode.lower()}_input", hook

            want, end = plain(m, q, [add(r) for r in receivers if s.layer < r.layer], observers, to, split=True)
            close(att[i, j], want)
            close(logits[i, j], choices(q, end), 1e-5)


@few(20)
@given(
    case=cases,
    first=st.integers(0, L - 1),
    stop=st.one_of(st.none(), st.integers(0, L)),
    at=st.lists(st.integers(0, L - 1), max_size=2, unique=True),
    point=st.sampled_from(["attn.hook_z", "hook_in", "mlp.hook_out", "hook_resid_pre"]),
    n=st.integers(1, 3),
    filters=st.booleans(),
)
def test_runs(models, case, first, stop, at, point, n, filters):
    "A run from some layer to some layer under hooks is the plain pass, or its hooks are refused"
    m = models[case["kind"]]
    put(m, case["bos"], case["window"])
    p = prompts_of(m, 6, case["seed"])
    p = p[p.groups()[0]][:2]
    runs = Reruns(m, p)

    def double(x, hook):  # END is the last position in both
        x = x.clone()
        x[:, -1] *= 1.5
        return x

    hooks = [
        ((lambda name, l=l: name == f"blocks.{l}.{point}") if filters else f"blocks.{l}.{point}", double) for l in at
    ]
    fits = (stop is None or stop >= first) and all(first <= l and (stop is None or l < stop) for l in at)
    if not fits:
        with pytest.raises(HeadError, match="does not pass|cannot stop"):
            runs.run(hooks, n, stop, first)
        return
    with torch.no_grad():
        want = m.run_with_hooks(p.tokens, fwd_hooks=hooks, stop_at_layer=stop if stop != L else None)[:, -1]
    got = runs.run(hooks, n, stop, first)
    close(got, want.repeat_interleave(n, 0), 1e-5)
    close(runs.entering(first), m.run_with_hooks(p.tokens, stop_at_layer=first)[:, -1].detach())


@few(14)
@given(
    case=cases,
    layer=st.integers(0, L - 1),
    T=st.integers(3, 24),
    window=st.one_of(st.none(), st.integers(1, 27)),
    head=heads,
)
def test_upper_layers(models, case, layer, T, window, head):
    "Training's and judging's upper layers, under an edit of the weights as well"
    m = models[case["kind"]]
    put(m, case["bos"], case["window"])
    tokens = torch.randint(5, 150, (case["n"], T), generator=torch.Generator().manual_seed(case["seed"]))
    s = UpperLayers(m, layer)
    with torch.no_grad():
        e, want = s.enter(tokens, window), m(tokens)
        got = s.logits(s.run(e))
        close(got, want[:, -got.shape[1] :], 1e-5)
        close(s.logits(s.run(e, rows=[1, 0])), want[[1, 0], -got.shape[1] :], 1e-5)
        edit = component_edit(m, f"{head}.1", "raw")
        if head.layer < layer:
            with edited(m, edit), pytest.raises(ModelError, match="Enter them anew"):
                s.run(e)
            with pytest.raises(HeadError, match="does not pass"):
                s.run(e, {head.layer: lambda z: 0})
        else:
            whole = s.enter(tokens)
            with edited(m, edit):
                close(s.logits(s.run(whole)), m(tokens), 1e-5)
        seen, name = [], f"blocks.{max(layer, head.layer)}.attn.hook_pattern"  # columns are positions

        def keep(x, hook):
            seen.append(x[:, head.head, -1])

        with m.hooks([(name, keep)]):
            s.run(e, stop=max(layer, head.layer) + 1)
        m.run_with_hooks(tokens, fwd_hooks=[(name, keep)])
        close(*seen)


@pytest.mark.parametrize("kind", slid)
def test_outside_the_window_is_zero(models, kind):
    "Attention to what a window hides is exactly 0, in fast and plain passes"
    m = models[kind]
    put(m, True, 3)
    p, hidden = prompts_of(m, 4), [Head(l, 1) for l in range(L) if slid[kind] is None or slid[kind][l]]
    r = readout(m, p)
    got = torch.cat([Reruns(m, p[[i]]).attention(hidden, r.roles) for i in range(len(p))])
    outside = torch.stack([p.pos("END") - p.pos(x) for x in r.roles], -1)[:, None] >= 3
    assert (
        outside.any()
        and (got[outside.expand_as(got)] == 0).all()
        and (ablation_sweep(m, p, hidden)[:, 0][outside[:, None].expand(-1, N, len(hidden), -1)] == 0).all()
    )


@few(6)
@given(case=cases, s=st.lists(heads, min_size=1, max_size=3, unique=True), observers=some(3))
def test_steering_is_setting_coordinates(models, case, s, observers):
    """Coordinates of several heads in several layers, set at END of whole prompts;
    also their natural values from prefix caches"""
    m = models[case["kind"]]
    put(m, case["bos"], case["window"])
    p, w = prompts_of(m, 4, case["seed"], laundry_list, n_items=3), attention_weights(m, "raw")
    space = Subspace(
        tuple(sorted(s)),
        tuple(components(w, h.layer).Vh[h.head, :2] for h in sorted(s)),
        tuple(f"{h}.{i}" for h in sorted(s) for i in (0, 1)),
    )
    values = torch.randn(3, len(space), generator=torch.Generator().manual_seed(case["seed"]))
    close(natural(m, p, space, prefixes(m, p, case["size"])), natural(m, p, space), 1e-5)
    to = ("item1", "item2", "item3")
    v = run_variants(m, p, _setting(m, space, lambda g: values[None]), 3, observers, to)
    for i, q in enumerate(p):
        for t in range(3):
            hooks = [
                x
                for k, h in enumerate(space.heads)
                for x in set_coordinates_hooks(
                    m, h, space.V[k], values[t : t + 1, 2 * k : 2 * k + 2], torch.tensor([q.roles["END"]])
                )
            ]
            att, end = plain(m, q, hooks, observers, to)
            close(v.attention[i, t], att, 1e-4)
            close(v.choices[i, t], choices(q, end), 1e-3)


# ---------------------------------------------------------------- what a cache cannot know is refused
def test_stale_caches(model):
    """After an edit, a step of training or a change behind torch's back a cache is refused;
    when all is as before it serves again"""
    put(model, False, None)
    p = prompts_of(model, 6)
    p = p[p.groups()[0]]
    runs, s = Reruns(model, p), UpperLayers(model, 2)
    e, want = s.enter(p.tokens), runs.run()
    runs.entering(3)
    W = model.original_model.model.layers[0].mlp.up_proj.weight

    def refused():
        for f in (runs.run, lambda: runs.entering(3), lambda: runs.run(start_at_layer=3), lambda: s.run(e)):
            with pytest.raises(ModelError, match="changed since|anew"):
                f()

    with edited(model, component_edit(model, "1.2.0", "raw")):
        refused()
    for change in (lambda k: W.data[0, 0].mul_(k), lambda k: W.data.mul_(k)):
        change(2.0)
        refused()
        change(0.5)
        assert torch.equal(runs.run(), want) and s.run(e) is not None
    handle = model.original_model.model.layers[1].register_forward_hook(lambda m, a, o: o)
    with pytest.raises(ModelError, match="changed since"):
        runs.run()
    handle.remove()
    assert torch.equal(runs.run(start_at_layer=3), runs.run(start_at_layer=3))
    with edited(model, component_edit(model, "4.2.0", "raw")):  # above the first upper layer: that is what judging does
        assert not torch.equal(s.run(e), e.resid)
        inside = Reruns(model, p).run()
        close(inside, readout(model, p, ()).logits)


def test_references_of_another_model(single):
    "What was measured or learned from one model is not held against another, changed only in upper layers"
    put(single, False, None)
    j, les = (
        evaluation_sets(single, 3, (3,), 2, 0, 2, 2),
        training_data(single, 3, n_items=(3,), per=2, windows=4, length=8, contrasts=()),
    )
    edit, knobs = component_edit(single, "4.2.0", "raw"), component_updates(single, ["4.1.0"], "raw")
    with edited(single, component_edit(single, "3.1.0", "raw")):
        for f in (lambda: j.evaluate(edit), lambda: choose_updates(les, knobs, 1)):
            with pytest.raises(ModelError, match="changed since"):
                f()
    assert len(j.evaluate(edit)) and len(choose_updates(les, knobs, 1).updates) == 1


def test_active_hooks(model):
    "Under hooks that act on whole prompts, passes of END alone and of some layers alone are refused"
    put(model, False, None)
    p = prompts_of(model, 4)
    one = p[p.groups()[0]]
    runs, s = Reruns(model, one), UpperLayers(model, 3)
    e = s.enter(one.tokens)
    with model.hooks([("blocks.1.attn.hook_z", lambda z, hook: z * 0)]):
        for f in (
            lambda: Reruns(model, one),
            runs.run,
            lambda: ablation_sweep(model, p, "4.0"),
            lambda: path_patch(model, p, p, ["0.0"], ["2.0"]),
            lambda: s.enter(one.tokens),
        ):
            with pytest.raises(ModelError, match="carries hooks"):
                f()
        with pytest.raises(HeadError, match="does not pass"):
            s.run(e)
        readout(model, p)
    plainly = s.run(e)
    with model.hooks([("blocks.3.attn.hook_z", lambda z, hook: z * 0)]):
        assert not torch.equal(s.run(e), plainly)  # this one is passed


def test_foreign_prefixes(model):
    put(model, False, None)
    p, q = prompts_of(model, 4), prompts_of(model, 4, 9)
    change = {2: lambda z, g: z}
    for runs in (prefixes(model, q), prefixes(model, p)[:-1], prefixes(model, p) + prefixes(model, p)[:1]):
        with pytest.raises(TaskError, match="other prompts"):
            run_variants(model, p, change, 1, runs=runs)


def test_readouts_of_other_prompts(model):
    "Heads are found by a readout of the same prompts and roles, or not at all"
    put(model, False, None)
    p = prompts_of(model, 4)
    with pytest.raises(TaskError, match="at END"):
        forecast_frame(model, [readout(model, prompts_of(model, 3, 0, laundry_list, n_items=3), (), "item1")], [])
    for r in (
        readout(model, prompts_of(model, 4, 9)),
        readout(model, p, ("S1", "IO", "S2")),
        readout(model, p, query="S2"),
    ):
        with pytest.raises(TaskError, match="not one of these prompts"):
            find_heads(model, p, r=r)


def test_odd_architectures(tmp_path):
    """Wiring of the bridge's own is no hook of the user's;
    layers whose arguments belong to a batch, and logits that are scaled, run alone or are refused"""
    from transformers import BloomConfig, GraniteConfig, OPTConfig

    v, size = len(tiny.tokenizer()), dict(bos_token_id=1, eos_token_id=2)
    configs = [
        OPTConfig(
            vocab_size=v,
            hidden_size=48,
            ffn_dim=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=256,
            word_embed_proj_dim=48,
            pad_token_id=2,
            **size,
        ),
        BloomConfig(vocab_size=v, hidden_size=48, n_layer=3, n_head=4, **size),
        GraniteConfig(
            vocab_size=v,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            logits_scaling=3.0,
            **size,
        ),
    ]
    for i, config in enumerate(configs):
        torch.manual_seed(i)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / str(i))
        tiny.tokenizer().save_pretrained(tmp_path / str(i))
        m = load_model(str(tmp_path / str(i)), device="cpu", dtype=torch.float64)
        p = prompts_of(m, 30)
        p = p[p.groups()[0]]
        close(Reruns(m, p).run(start_at_layer=2), readout(m, p, ()).logits, 1e-5)
        try:
            s = UpperLayers(m, 1)
            got = s.logits(s.run(s.enter(p.tokens)))
        except ModelError as e:
            assert i > 0 and ("one batch" in str(e) or "own logits" in str(e))
        else:
            close(got[:, -1], readout(m, p, ()).logits, 1e-5)


def test_unread_is_an_error(model, monkeypatch):
    "An observer that a pass never reaches is an error, not a row of zeros"
    put(model, False, None)
    monkeypatch.setattr(H, "observe_hooks", lambda heads, keys, n, out: [])
    with pytest.raises(ModelError, match="never stored"):
        ablation_sweep(model, prompts_of(model, 3), "4.0")


# ---------------------------------------------------------------- numbers are finite, or the layer is named
def readers(model, p, lists):
    "Every way in which this package turns activations into numbers"
    w = lambda: Subspace((Head(3, 0),), (torch.eye(model.cfg.d_model)[:2],), ("3.0.a", "3.0.b"))
    zero = {3: lambda z, g: z}
    return dict(
        readout=lambda: readout(model, p),
        ablate=lambda: ablate(model, p, "1.1"),
        sweep=lambda: ablation_sweep(model, p, "4.1"),
        paths=lambda: path_patch(model, p, corrupt(p), ["0.1"], ["3.1"]),
        whole=lambda: path_patch(model, p, corrupt(p), ["0.1"], ["3.1"], role="S2"),
        stripes=lambda: stripe_scores(model, repeated_tokens(model, 2, 6)),
        find=lambda: find_heads(model, p, n_random=2),
        variants=lambda: run_variants(model, p, zero, 2, ["4.0"]),
        forecast=lambda: forecast_frame(model, [lists], []),
        judge=lambda: evaluation_sets(model, 3, (3,), 2, 0, 2, 2),
        upper=lambda: UpperLayers(model, 3).enter(p.tokens[:1]),
        rerun=lambda: Reruns(model, p[[0]]).run(),
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_overflow_names_the_layer(dtype, tmp_path):
    "Weights whose products leave float16 in layer 2 make every number an error there, and are fine in float32"
    build("llama", tmp_path, torch.float32)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight.mul_(4e4 / hf.model.layers[2].mlp.down_proj.weight.abs().max())
    hf.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu", dtype=dtype)
    for name, f in readers(model, prompts_of(model, 30)[:3], prompts_of(model, 3, 0, laundry_list, n_items=3)).items():
        if dtype == "float32":
            f()
        else:
            with pytest.raises(
                ModelError,
                match=r"in float16 .* first in layer 2\. Load it with dtype=\"bfloat16\" or dtype=\"float32\"",
            ):
                f()


@few(6)
@given(
    layer=st.integers(0, L - 1),
    value=st.sampled_from([float("inf"), float("-inf"), float("nan")]),
    point=st.sampled_from(["attn.hook_z", "hook_out", "mlp.hook_out"]),
)
def test_planted_values_are_found(model, layer, value, point):
    "Where hooks may be active, the layer of what they plant is named"
    put(model, False, None)
    p = prompts_of(model, 3)

    def plant(x, hook):
        x = x.clone()
        x[0, -1].view(-1)[0] = value
        return x

    hooks = [(f"blocks.{layer}.{point}", plant)]
    with model.hooks(hooks):
        for f in (
            lambda: readout(model, p),
            lambda: ablate(model, p, "0.1"),
            lambda: readout_with_edit(model, p, component_edit(model, "1.1.0", "raw"), "everywhere"),
        ):
            with pytest.raises(ModelError, match=f"first in layer {layer}"):
                f()
        if layer < L - 1:  # the last layer's patterns come before what is planted there
            with pytest.raises(ModelError, match=f"first in layer {layer}"):
                stripe_scores(model, repeated_tokens(model, 2, 6))
    with pytest.raises(ModelError, match=f"first in layer {layer}"):
        Reruns(model, p[[0]]).run(hooks)
    s = UpperLayers(model, layer)
    e = s.enter(p[[0]].tokens)
    with model.hooks(hooks), pytest.raises(ModelError, match=f"first in layer {layer}"):
        s.run(e)
    with pytest.raises(ModelError, match="NaN or infinite"):
        run_variants(model, p, {layer: lambda z, g: z * value}, 1, ["4.0"])


def test_no_comparison_with_nan(model):
    "What takes numbers from outside refuses those that are none"
    put(model, False, None)
    lists = prompts_of(model, 4, 0, laundry_list, n_items=3)
    r, nan = readout(model, lists, ()), float("nan")
    with pytest.raises(ModelError):
        replace(r, logits=r.logits * nan)
    with pytest.raises(TalkingHeadsError):
        auroc(torch.tensor([0.1, nan, 0.3]), torch.tensor([True, False, True]))
    with pytest.raises(TalkingHeadsError):
        preference(prompts_of(model, 2, 0, laundry_list, n_items=3), r.logits[:2] * nan)
    with pytest.raises(TaskError):
        place_decoding(torch.full((8, 2), nan), torch.arange(8) % 2)
    with pytest.raises(TalkingHeadsError):
        fit_forecaster(pd.DataFrame(dict(n_items=3, x=[0.0, 1.0, nan, 2.0], fail=[True, False, True, False])), ["x"])


# ---------------------------------------------------------------- roles
@pytest.mark.parametrize("bad", [["9.9"], "9.9", 3, None, ["S2", "S3"], [Head(1, 1)], Head(1, 1), [["S2"]], "s2"])
def test_roles_are_named_at_once(model, bad):
    put(model, False, None)
    p = prompts_of(model, 3)
    for f in (
        lambda: readout(model, p, bad),
        lambda: readout(model, p, query=bad),
        lambda: ablate(model, p, "1.1", to=bad),
        lambda: ablate(model, p, "1.1", bad),
        lambda: ablation_sweep(model, p, "1.1", bad),
        lambda: path_patch(model, p, p, "0.0", "1.1", role=bad),
        lambda: path_patch(model, p, p, "0.0", "1.1", to=bad),
        lambda: mean_z(model, p, bad),
        lambda: run_variants(model, p, {1: lambda z, g: z}, 1, ["2.0"], bad),
    ):
        with pytest.raises(TaskError, match="Roles of all of them: .*S1"):
            f()


def test_a_string_is_one_role(model):
    put(model, False, None)
    p = prompts_of(model, 3)
    assert readout(model, p, "S2").roles == ("S2",) and torch.equal(
        readout(model, p, "S2").attention, readout(model, p, ["S2"]).attention
    )
    assert list(mean_z(model, p, "S2")) == ["S2"] and torch.equal(
        ablate(model, p, "1.1", "S2").logits, ablate(model, p, "1.1", ("S2",)).logits
    )
    assert torch.equal(ablation_sweep(model, p, "4.1", "S2"), ablation_sweep(model, p, "4.1")[..., 2:])
    with pytest.raises(TaskError, match="One role"):
        readout(model, p, query=("S1", "S2"))
    with pytest.raises(TaskError, match="no prompts"):
        readout(model, p[:0])


# ---------------------------------------------------------------- modes of torch
def numbers(model, size=64):
    "Some of everything, as tensors"
    p = prompts_of(model, 5)
    att, logits = path_patch(model, p, corrupt(p), ["0.1", "2.2"], ["1.1", "3.1"], observers=["0.2", "2.2", "4.1"])
    v = run_variants(model, p, {2: lambda z, g: z * 0.5}, 2, ["1.1", "4.0"], rows=2 * size)
    r = readout(model, p, batch_size=size)
    return dict(
        logits=r.logits,
        attention=r.attention,
        z=r.z,
        dla=direct_logit_attribution(model, r),
        sweep=ablation_sweep(model, p, ["4.1", "2.0"], batch_size=size),
        att=att,
        paths=logits,
        variants=v.attention,
        choices=v.choices,
        stripes=stripe_scores(model, repeated_tokens(model, 2, 6))["induction"],
    )


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("single"), torch.float32)


def test_modes_move_nothing(single):
    "Batch sizes, gradients and torch's default dtype"
    want = numbers(single)
    for size in (1, 3):
        for k, x in numbers(single, size).items():
            close(x, want[k], 1e-4)
    for mode in (lambda: torch.set_grad_enabled(True), lambda: torch.set_grad_enabled(False), torch.inference_mode):
        with mode():
            for k, x in numbers(single).items():
                assert torch.equal(x, want[k]) and not x.requires_grad
    try:
        torch.set_default_dtype(torch.float64)
        got = numbers(single)
    finally:
        torch.set_default_dtype(torch.float32)
    for k, x in got.items():
        assert x.dtype == want[k].dtype, k
        close(x, want[k], 1e-4)


def test_autocast_and_dropout_are_refused(single, models):
    p, lists = prompts_of(single, 3), prompts_of(single, 3, 0, laundry_list, n_items=3)
    runs, r = Reruns(single, p[[0]]), readout(single, p)
    with torch.autocast("cpu", torch.bfloat16):
        for f in [
            *readers(single, p, lists).values(),
            runs.run,
            lambda: runs.entering(1),
            lambda: direct_logit_attribution(single, r),
        ]:
            with pytest.raises(ModelError, match="autocast"):
                f()
    gpt2 = models["gpt2"]  # dropout .1 by default
    put(gpt2, False, None)
    try:
        gpt2.train()
        with pytest.raises(ModelError, match="training mode"):
            readout(gpt2, prompts_of(gpt2, 2))
    finally:
        gpt2.eval()
    readout(gpt2, prompts_of(gpt2, 2))


# ---------------------------------------------------------------- a failure leaves the model as it was
def state(model):
    "All that a pass could leave behind"
    mods = list(model.original_model.modules())
    flags = [
        (
            m.training,
            m.__dict__.get("forward"),
            m.__dict__.get("_stop_at_layer_idx"),
            getattr(m, "_use_hook_mlp_in", None),
        )
        for m in mods
    ]
    flags += [
        getattr(getattr(m, "config", None), k, None)
        for m in mods
        for k in ("use_split_qkv_input", "use_attn_result", "use_attn_in")
    ]
    hooks = [h.name for h in model.hook_points() for _ in (*h.fwd_hooks, *h.bwd_hooks)]
    torch_hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in mods]
    return (
        flags,
        hooks,
        torch_hooks,
        model.cfg.use_split_qkv_input,
        model.context_level if hasattr(model, "context_level") else 0,
        {k: (p.requires_grad, p.grad, p.detach().clone()) for k, p in model.original_model.named_parameters()},
    )


def same_state(a, b):
    same = lambda x, y: x[0] == y[0] and x[1] is y[1] and torch.equal(x[2], y[2])
    return a[:5] == b[:5] and all(same(v, b[5][k]) for k, v in a[5].items())


class Planned(Exception):
    pass


@few(24)
@given(
    which=st.sampled_from(
        sorted(
            [
                "readout",
                "ablate",
                "sweep",
                "paths",
                "whole",
                "stripes",
                "find",
                "variants",
                "forecast",
                "upper",
                "rerun",
                "grad",
                "fit",
                "edited",
            ]
        )
    ),
    k=st.integers(0, 400),
    error=st.sampled_from([Planned, KeyboardInterrupt]),
)
def test_failures_leave_no_trace(single, which, k, error):
    "Wherever in a call something fails, hooks, methods, flags and weights are as before"
    p, lists = prompts_of(single, 3), prompts_of(single, 6, 0, laundry_list, n_items=3)
    space = Subspace(
        (Head(2, 0),), (torch.linalg.svd(single.blocks[2].attn.W_O[0].detach())[2][:2],), ("2.0.0", "2.0.1")
    )
    calls = readers(single, p, lists) | dict(
        grad=lambda: Reruns(single, p[[0]]).run(start_at_layer=2, grad=True),
        fit=lambda: fit_gradient(single, lists, space, 2, 3),
        edited=lambda: readout_with_edit(single, p, component_edit(single, "1.1.0", "raw"), "everywhere"),
    )
    readout(single, p)  # the bridge wires itself in the first pass
    path_patch(single, p, p, ["0.0"], ["1.1"])
    before, forward, n = state(single), torch.nn.Linear.forward, [0]

    def failing(self, *args, **kw):
        n[0] += 1
        if n[0] > k:
            raise error()
        return forward(self, *args, **kw)

    try:
        torch.nn.Linear.forward = failing
        with contextlib.suppress(error):
            calls[which]()
    finally:
        torch.nn.Linear.forward = forward
    assert same_state(before, state(single))
