"Edits against brute force in float64 on every family; 1,000 random histories; files; refusals"

import json
import random
import signal
import sys
import threading

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from transformers import AutoModelForCausalLM

import tiny
from talking_heads import interventions as I
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.hooks import *
from talking_heads.interventions import *
from talking_heads.svd import attention_weights
from talking_heads.circuits.patching import *
from talking_heads.circuits.finding import *

after_norm = ("gemma2", "gemma3", "olmo2")
close = lambda a, b, eps=1e-4: torch.testing.assert_close(a.double(), b.double(), atol=eps, rtol=1e-4)


@pytest.fixture(scope="module", params=tiny.families)
def pair(request, tmp_path_factory):
    "Our model and plain transformers' on the same folder"
    folder = tiny.save(request.param, tmp_path_factory.mktemp(request.param))
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return request.param, load_model(str(folder), device="cpu"), plain


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(autouse=True)
def left_as_found(request):
    "Every test that uses a shared model must leave it without edits"
    yield
    for name in ("toy", "pair"):
        if name in request.fixturenames:
            model = request.getfixturevalue(name)
            assert active_edits(model if name == "toy" else model[1]) == ()


def processing(kind):
    return "raw" if kind in after_norm else "folded"


def out_proj(plain, l):
    layer = (
        plain.gpt_neox.layers
        if hasattr(plain, "gpt_neox")
        else plain.transformer.h
        if hasattr(plain, "transformer")
        else plain.model.layers
    )[l]
    a = getattr(layer, "self_attn", None) or getattr(layer, "attention", None) or layer.attn
    return getattr(a, "o_proj", None) or getattr(a, "dense", None) or a.c_proj


def dense_W_O(plain, l, h, d_head):
    "W_O of a head by its definition: push unit vectors through the output projection"
    m = out_proj(plain, l)
    size = m.weight.numel() // plain.config.hidden_size
    x = torch.zeros(d_head, size)
    x[torch.arange(d_head), h * d_head + torch.arange(d_head)] = 1
    with torch.no_grad():
        return (m(x) - m(torch.zeros(1, size))).double()


def action(c):
    "What a change does to a row vector of the residual stream, as a dense float64 matrix"
    V, G = c.V.double(), c.G.double()
    return torch.eye(V.shape[1]).double() + V.T @ (G - torch.eye(len(G)).double()) @ V


def snapshot(model):
    "All parameters and buffers as bytes, their flags, and all hooks"
    hf = model.original_model
    tensors = {
        n: (
            p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
            p.requires_grad,
            p.grad is None,
        )
        for n, p in [*hf.named_parameters(remove_duplicate=False), *hf.named_buffers(remove_duplicate=False)]
    }
    hooks = {
        n: (
            len(getattr(m, "fwd_hooks", ())),
            len(getattr(m, "bwd_hooks", ())),
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
        )
        for n, m in model.named_modules()
    }
    return tensors, hooks, signal.getsignal(signal.SIGINT), "_edit_state" in model.__dict__


def some_edit(model, kind):
    return component_edit(model, {"1.0.0": 0, "1.0.3": 2.0, "1.3.1": -1, "2.1.0": 0, "0.2.1": 0.3}, processing(kind))


# ---- weights


def test_weights_are_the_dense_product_and_nothing_else_moves(pair):
    kind, model, plain = pair
    edit, d, before = some_edit(model, kind), model.cfg.d_head, snapshot(model)
    by = {c.where: c for c in edit.changes}
    with edited(model, edit):
        after = snapshot(model)
        for l in range(3):
            for h in range(4):
                W = dense_W_O(plain, l, h, d)
                close(model.blocks[l].attn.W_O[h].detach(), W @ action(by[l, h]) if (l, h) in by else W, 1e-6)
    changed = {n for n in before[0] if before[0][n] != after[0][n]}
    names = ("o_proj", "attention.dense", "attn.dense", "attn.c_proj", "attn.o.", "attention.o.", "self_attn.o.")
    assert changed and not [n for n in changed if not any(s in n.replace("_original_component.", "") for s in names)]
    assert snapshot(model) == before


@torch.no_grad()
def test_bridge_plain_forward_and_hooks_agree(pair):
    kind, model, _ = pair
    edit, tokens = some_edit(model, kind), torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    clean = model(tokens)
    with edited(model, edit):
        ours, inner = model(tokens), model.original_model(tokens).logits
    with model.hooks(edit_hooks(model, edit)):
        hooked = model(tokens)
    close(inner, ours, 1e-6)
    close(hooked, ours, 5e-5)
    assert (ours - clean).abs().max() > 0.1
    assert torch.equal(model(tokens), clean)


@torch.no_grad()
def test_hooks_at_positions_equal_plain_hooks(pair):
    "At one position per prompt, against forward hooks on plain transformers' output projections"
    kind, model, plain = pair
    edit, pos = some_edit(model, kind), torch.tensor([8, 2, 5])
    tokens = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    d, handles = model.cfg.d_head, []
    for c, W in [(c, dense_W_O(plain, c.layer, c.head, d)) for c in edit.changes]:

        def hook(mod, args, out, c=c, W=W):
            z = args[0][torch.arange(3), pos, c.head * d : (c.head + 1) * d].double()
            out[torch.arange(3), pos] += (z @ W @ (action(c) - torch.eye(out.shape[-1]).double())).float()
            return out

        handles.append(out_proj(plain, c.layer).register_forward_hook(hook))
    try:
        want = plain(tokens).logits
    finally:
        [h.remove() for h in handles]
    with model.hooks(edit_hooks(model, edit, pos)):
        close(model(tokens), want, 2e-4)


def test_components_are_those_of_a_dense_svd(pair):
    kind, model, _ = pair
    edit, w = some_edit(model, kind), attention_weights(model, processing(kind))
    share = w.shape.n_heads // w.shape.n_kv_heads
    for c in edit.changes:
        layer = w[c.layer]
        _, S, Vh = np.linalg.svd((layer.W_V[c.head // share].double() @ layer.W_O[c.head].double()).numpy())
        for v, name in zip(c.V, c.names):
            assert abs(float(v.double() @ torch.tensor(Vh[int(name.split(".")[-1])]))) > 1 - 1e-4


def test_components_are_what_is_read_through_the_norm_and_written_by_w_o(pair):
    "One rule for every family: a norm after attention is not folded into what an edit changes"
    kind, model, _ = pair
    v = component_edit(model, "1.0.0").changes[0].V[0]
    folded, raw = attention_weights(model, "folded")[1], attention_weights(model, "raw")[1]
    Vh = np.linalg.svd((folded.W_V[0].double() @ raw.W_O[0].double()).numpy())[2]
    assert abs(float(v.double() @ torch.tensor(Vh[0]))) > 1 - 1e-4


def test_components_do_not_depend_on_active_edits(toy):
    want = component_edit(toy, {"1.0.0": 0.0, "1.0.1": 2.0})
    with edited(toy, component_edit(toy, {"1.0.0": 0.1, "1.1.0": 0})):
        assert component_edit(toy, {"1.0.0": 0.0, "1.0.1": 2.0}) == want


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once_and_comes_back(dtype):
    model = load_model("toy", device="cpu", dtype=dtype)
    before, edit = snapshot(model), component_edit(model, {"1.0.0": 0.0, "1.0.1": 0.5})
    W = model.blocks[1].attn.W_O[0].detach().double()
    with edited(model, edit):
        assert torch.equal(
            model.blocks[1].attn.W_O[0].detach(), (W @ action(edit.changes[0])).to(getattr(torch, dtype))
        )
    assert snapshot(model) == before
    with pytest.raises(EditError, match="dtype"):
        component_edit(load_model("toy", device="cpu"), "1.0.0").apply(model)


def test_gradients_and_flags_are_left_alone(toy):
    toy(torch.tensor([[1, 5, 6]]))  # the bridge sets up some of its own hooks on its first pass
    before, edit = snapshot(toy), component_edit(toy, "1.0.0")
    weight = dict(toy.original_model.named_parameters())[
        "transformer.h.1._original_component.attn.o._original_component.weight"
    ]
    toy(torch.tensor([[1, 5, 6]])).sum().backward()
    grad, version = weight.grad.clone(), weight._version
    with edited(toy, edit):
        assert torch.equal(weight.grad, grad) and weight.requires_grad and weight.is_leaf
    assert torch.equal(weight.grad, grad) and weight._version > version  # autograd knows that it was written to
    toy.original_model.zero_grad(set_to_none=True)
    assert snapshot(toy) == before


def test_shared_weights_are_refused(tmp_path):
    model = load_model(str(tiny.save("llama", tmp_path / "m")), device="cpu")
    edit, layers = component_edit(model, "1.0.0"), model.original_model.model.layers
    inner = lambda l: getattr(layers[l], "_original_component", layers[l]).self_attn
    inner = lambda l, f=inner: getattr(f(l), "_original_component", f(l)).o_proj
    proj = lambda l: getattr(inner(l), "_original_component", inner(l))
    proj(2).weight = proj(1).weight
    before = snapshot(model)
    with pytest.raises(EditError, match="shared with"):
        edit.apply(model)
    assert snapshot(model) == before


# ---- algebra


def changes(seed, k, d=6, head=0):
    g = torch.Generator().manual_seed(seed)
    V = torch.linalg.qr(torch.randn(d, k, generator=g).double())[0].T
    return Change(0, head, V, torch.randn(k, k, generator=g), tuple(f"{seed}.{i}" for i in range(k)))


def made(*cs):
    return Edit(
        cs, dict(model_type="x", n_layers=1, n_heads=2, d_model=6, d_head=3, heads={str(c.where): "0" for c in cs})
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_then_is_the_matrix_product_and_associates(i, j, l, m, n):
    a, b, c = made(changes(i, m)), made(changes(j, n)), made(changes(l, 2))
    A, B, C = (action(e.changes[0]) for e in (a, b, c))
    close(action(a.then(b).changes[0]), A @ B, 1e-4)
    close(action(a.then(b).then(c).changes[0]), A @ B @ C, 1e-3)
    close(action(a.then(b.then(c)).changes[0]), A @ B @ C, 1e-3)
    assert len(a.then(a).changes[0].names) == m


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_sums_of_orthogonal_changes_commute(seed, k):
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(6, 6, generator=g).double())[0].T
    a, b = (
        made(Change(0, 0, Q[:k], torch.randn(k, k, generator=g))),
        made(Change(0, 0, Q[k:], torch.randn(6 - k, generator=g))),
    )
    A, B = action(a.changes[0]), action(b.changes[0])
    close(A @ B, B @ A, 1e-5)
    for e in (a + b, b + a, a.then(b)):
        close(action(e.changes[0]), A @ B, 1e-5)


def test_sums_that_have_an_order_are_refused():
    a, b = made(changes(0, 2)), made(changes(1, 2))
    with pytest.raises(EditError, match="then"):
        a + b
    assert a + a == a and hash(a + a) == hash(a)
    with pytest.raises(EditError, match="then"):
        a + a.scaled(0.5)
    assert (a + made(changes(3, 1, head=1))).heads == [(0, 0), (0, 1)]
    other = Edit(a.changes, a.target | dict(heads={"0.0": "another"}))
    with pytest.raises(EditError, match="different models"):
        a.then(other)


def test_scaled_goes_from_nothing_to_all():
    a = made(changes(0, 3))
    close(action(a.scaled(0).changes[0]), torch.eye(6))
    close(action(a.scaled(1).changes[0]), action(a.changes[0]))
    close(action(a.scaled(0.5).changes[0]) * 2, action(a.changes[0]) + torch.eye(6))


# ---- 1,000 histories


class Interrupts:
    "Ctrl-C at the n-th line of interventions.py that runs inside the block"

    def __init__(self, n):
        self.left = n

    def __enter__(self):
        self.old = sys.gettrace()
        sys.settrace(self.frame)

    def __exit__(self, *exc):
        sys.settrace(self.old)

    def frame(self, frame, event, arg):
        return self.line if frame.f_code.co_filename == I.__file__ else None

    def line(self, frame, event, arg):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self.line


def flaky(rng, monkeypatch):
    "Let one of the next few writes fail"
    real, left = torch.Tensor.copy_, [rng.randrange(1, 4)]

    def copy_(self, *a, **kw):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("disk on fire")
        return real(self, *a, **kw)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)


def expected(model, originals, h):
    "W_O of a head from its original and the active edits"
    W = originals[h].double()
    for e in active_edits(model):
        for c in e.changes:
            W = W @ action(c) if c.where == h else W
    return W


class Stop(Exception):
    pass


def nest(model, edits, rng, depth):
    "Blocks inside blocks, some of which end badly"
    with edited(model, rng.choice(edits)):
        if depth and rng.random() < 0.6:
            nest(model, edits, rng, depth - 1)
        if rng.random() < 0.2:
            rng.choice(edits).apply(model)
        if rng.random() < 0.3:
            raise Stop


def step(model, edits, rng, monkeypatch):
    "One random thing that happens to a model"
    what, active = rng.choice(["apply", "apply", "undo", "undo", "nest", "hooks", "flaky"]), active_edits(model)
    if what == "apply":
        rng.choice(edits).apply(model)
    elif what == "undo" and active:
        rng.choice(active).undo(model)
    elif what == "undo":
        with pytest.raises(EditError):
            edits[0].undo(model)
    elif what == "nest":
        nest(model, edits, rng, 2)
    elif what == "hooks":
        try:
            hooks = edit_hooks(model, edits[0])
        except EditError:
            hooks = []  # an active edit may have turned the head's row space away
        with model.hooks(hooks):
            raise Stop
    else:
        before = snapshot(model)  # here alone: under `Interrupts` every call is slow
        with monkeypatch.context() as m:
            flaky(rng, m)
            try:
                rng.choice(edits).apply(model)
            except RuntimeError:
                assert snapshot(model) == before and active_edits(model) == active


@pytest.mark.slow
def test_a_thousand_histories_leave_the_model_bit_for_bit(toy, monkeypatch):
    edits = [
        component_edit(toy, g)
        for g in ({"1.0.0": 0}, {"1.0.0": 3.0, "1.0.1": -0.5}, {"1.1.0": 0.5, "2.3.4": 0}, {"0.0.0": 2.0, "1.1.1": 0})
    ]
    edits += [edits[0].then(edits[1]), edits[0] + edits[2], random_like(edits[1], toy, 0, "residual")]
    start, originals, happened = (
        snapshot(toy),
        {Head(l, h): toy.blocks[l].attn.W_O[h].detach().clone() for l in range(3) for h in range(8)},
        0,
    )
    for seed in range(1000):
        rng = random.Random(seed)
        for _ in range(rng.randrange(1, 5)):
            try:
                if rng.random() < 0.5:
                    step(toy, edits, rng, monkeypatch)
                else:
                    with Interrupts(rng.randrange(1, 200)):
                        step(toy, edits, rng, monkeypatch)
            except (KeyboardInterrupt, Stop) as e:
                happened += isinstance(e, KeyboardInterrupt)
        h = rng.choice(list(originals))
        close(toy.blocks[h.layer].attn.W_O[h.head].detach(), expected(toy, originals, h), 1e-4)
        left = list(active_edits(toy))
        rng.shuffle(left)
        for e in left:
            e.undo(toy)
        assert snapshot(toy) == start, seed
    assert happened > 100


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_interrupts_at_any_instant(toy):
    "A timer presses Ctrl-C while two nested blocks are entered and left again and again"
    a, b, start, rng = (
        component_edit(toy, ["1.0.0", "1.1.0"]),
        component_edit(toy, {"1.0.0": 2.0}),
        snapshot(toy),
        random.Random(0),
    )
    old = signal.signal(signal.SIGALRM, lambda *x: signal.raise_signal(signal.SIGINT))
    try:
        for _ in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + rng.random() * 2e-2)
                while True:
                    with edited(toy, a):
                        with edited(toy, b):
                            pass
            except KeyboardInterrupt:
                pass
            assert active_edits(toy) == () and torch.is_grad_enabled()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert snapshot(toy) == start


def test_an_interrupt_waits_until_the_weights_are_whole(toy, monkeypatch):
    before, edit, real = snapshot(toy), component_edit(toy, ["1.0.0", "2.0.0"]), I._write

    def write(o, new):
        signal.raise_signal(signal.SIGINT)
        real(o, new)

    monkeypatch.setattr(I, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        edit.apply(toy)
    assert active_edits(toy) == ()
    monkeypatch.undo()
    assert snapshot(toy) == before


def test_an_ignored_interrupt_stays_ignored(toy):
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with edited(toy, component_edit(toy, "1.0.0")):
            pass
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)


def test_other_threads_can_edit(toy):
    toy(torch.tensor([[1, 5, 6]]))  # some releases of transformers leave a hook of their own at the first pass
    before, errors = snapshot(toy), []

    def work():
        try:
            with edited(toy, component_edit(toy, "1.0.0")):
                toy(torch.tensor([[1, 5, 6]]))
        except BaseException as e:
            errors.append(e)

    t = threading.Thread(target=work)
    t.start()
    t.join()
    assert not errors and snapshot(toy) == before


def test_undo_in_any_order_and_twice_is_twice(toy):
    start, a, b = snapshot(toy), component_edit(toy, {"1.0.0": 0.5}), component_edit(toy, {"1.0.0": 3.0, "1.0.1": 0})
    a.apply(toy)
    b.apply(toy)
    a.apply(toy)
    assert active_edits(toy) == (a, b, a)
    thrice = toy.blocks[1].attn.W_O[0].detach().clone()
    with edited(toy, a.scaled(0)):
        assert torch.equal(toy.blocks[1].attn.W_O[0], thrice)  # an edit that does nothing changes no byte
    b.undo(toy)
    quarter = toy.blocks[1].attn.W_O[0].detach().clone()
    a.undo(toy)
    with edited(toy, a):
        assert torch.equal(toy.blocks[1].attn.W_O[0], quarter)
    a.undo(toy)
    assert snapshot(toy) == start
    for e in (a, b, b):
        e.apply(toy)
    undo_all(toy)
    assert snapshot(toy) == start
    with pytest.raises(EditError, match="not active"):
        a.undo(toy)


def test_undoing_inside_the_block_is_no_error(toy):
    start, a = snapshot(toy), component_edit(toy, "1.0.0")
    with edited(toy, a):
        a.undo(toy)
    assert snapshot(toy) == start


# ---- activations


def the_prompts(model):
    return ioi(**task_args(model), n=24, seed=3)


def test_removal_does_what_the_circuit_says(toy):
    prompts, known = the_prompts(toy), component_edit(toy, ["1.0.0", "1.0.1", "1.1.0", "1.1.1"])
    score = lambda r: float(inhibition_score(r.attention[:, 2, :4]).mean())
    assert score(readout(toy, prompts)) > 0.9
    assert (
        score(readout_with_edit(toy, prompts, known, "END")) < 0.15
        and score(readout_with_edit(toy, prompts, known, "everywhere")) < 0.15
    )
    for seed in range(3):
        assert score(readout_with_edit(toy, prompts, random_like(known, toy, seed, "other heads"), "END")) > 0.9


def test_readout_at_end_is_the_reruns(toy):
    prompts, edit = the_prompts(toy), component_edit(toy, {"1.0.0": 0, "1.1.1": 2.0})
    r = readout_with_edit(toy, prompts, edit, "END")
    for g in prompts.groups():
        close(Reruns(toy, prompts[g]).run(edit_hooks(toy, edit)), r.logits[g], 1e-4)
    assert r.prompts is prompts


def test_end_only_leaves_earlier_positions(toy):
    prompts = the_prompts(toy)
    p = prompts[prompts.groups()[0]]
    with torch.no_grad():
        clean = toy(p.tokens)
        with toy.hooks(edit_hooks(toy, component_edit(toy, ["1.0.0", "1.0.1", "0.3.0"]), p.pos("END"))):
            got = toy(p.tokens)
    assert torch.equal(got[:, :-1], clean[:, :-1]) and not torch.equal(got[:, -1], clean[:, -1])


def test_coordinates_are_read_and_replaced(pair):
    kind, model, plain = pair
    V, pos = some_edit(model, kind).changes[1].V, torch.tensor([4, 8, 1])
    tokens, want = (
        torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(2)),
        torch.tensor([[1.0, -2.0], [0.0, 3.0], [0.5, 0.5]]),
    )
    z, W = {}, dense_W_O(plain, 1, 0, model.cfg.d_head)
    keep = lambda x, hook: z.__setitem__(0, x[torch.arange(3), pos, 0].detach().clone())
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", keep)])
        old = z[0].double()
        close(coordinates(z[0], model, V, "1.0"), old @ W @ V.double().T)
        with model.hooks(set_coordinates_hooks(model, "1.0", V, want, pos)):
            model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", keep)])
    close(z[0].double() @ W, old @ W + (want.double() - old @ W @ V.double().T) @ V.double(), 1e-3)


def test_maps_read_coordinates_and_write_them():
    "For any head: what `backs` makes of coordinates is written along V and nowhere else, and `reads` gives them again"
    g = torch.Generator().manual_seed(0)
    W = torch.randn(4, 9, generator=g)
    V = torch.linalg.qr((torch.randn(2, 4, generator=g) @ W).T)[0].T  # in the row space of W
    z, c = torch.randn(5, 4, generator=g).double(), torch.randn(5, 2, generator=g).double()
    reads, backs = coordinate_maps(W, V)
    close(z @ reads, z @ W.double() @ V.double().T)
    close(c @ backs @ W.double(), c @ V.double())
    close(c @ backs @ reads, c)


def test_own_coordinates_change_nothing_and_zero_removes(toy):
    prompts, edit = the_prompts(toy), component_edit(toy, ["1.0.0", "1.0.1"])
    p, V = prompts[prompts.groups()[0]], edit.changes[0].V
    r = readout(toy, p)
    with toy.hooks(set_coordinates_hooks(toy, "1.0", V, coordinates(r, toy, V, "1.0"), p.pos("END"))):
        close(readout(toy, p).logits, r.logits)
    with toy.hooks(set_coordinates_hooks(toy, "1.0", V, torch.zeros(2), p.pos("END"))):
        zero = readout(toy, p).logits
    close(zero, readout_with_edit(toy, p, edit, "END").logits)
    close(Reruns(toy, p).run(set_coordinates_hooks(toy, "1.0", V, [0.0, 0.0])), zero)


def test_what_a_head_cannot_write_is_refused_in_activations(toy):
    edit = random_like(component_edit(toy, "1.0.0"), toy, 0, "residual")
    with pytest.raises(EditError, match="cannot write"):
        edit_hooks(toy, edit)
    with pytest.raises(EditError, match="cannot write"):
        set_coordinates_hooks(toy, "1.0", edit.changes[0].V, [1.0])
    with edited(toy, edit):
        pass


@pytest.mark.parametrize("pos", [torch.tensor([99] * 24), torch.tensor([-1] * 24), torch.tensor([3])])
def test_positions_outside_the_prompt(toy, pos):
    tokens = torch.ones(24, 9, dtype=torch.long)
    with pytest.raises(HeadError), torch.no_grad(), toy.hooks(edit_hooks(toy, component_edit(toy, "1.0.0"), pos)):
        toy(tokens)


# ---- controls


@pytest.mark.parametrize("within", ["components", "head", "other heads", "residual"])
def test_controls_are_of_the_same_size_and_elsewhere(pair, within):
    kind, model, _ = pair
    edit = component_edit(model, {"1.0.0": 0, "1.0.1": 2.0, "2.1.0": 0.5}, processing(kind))
    one, same, other = (random_like(edit, model, s, within) for s in (0, 0, 1))
    assert one == same and one != other
    assert sorted(one.components.gain) == sorted(edit.components.gain) and set(one.components.layer) == {1, 2}
    names = {n for c in edit.changes for n in c.names}
    assert not names & {n for c in one.changes for n in c.names}
    assert (set(one.heads) & set(edit.heads) == set()) == (within == "other heads")
    with edited(model, one):
        pass
    if within == "head":
        edit_hooks(model, one)


def test_other_heads_need_another_head(toy):
    with pytest.raises(EditError, match="every head"):
        random_like(component_edit(toy, [f"1.{h}.0" for h in range(8)]), toy, 0, "other heads")
    with pytest.raises(EditError, match="components left"):
        random_like(component_edit(toy, ["1.0.0", "1.0.1"]), toy, 0)
    with pytest.raises(EditError, match="Unknown"):
        random_like(component_edit(toy, "1.0.0"), toy, 0, "dreams")


def test_permuted_gains(toy):
    edit = component_edit(toy, {f"2.{h}.{i}": h + i / 10 for h in range(4) for i in range(4)})
    p = edit.permuted(0)
    assert sorted(p.components.gain) == sorted(edit.components.gain) and list(p.components.gain) != list(
        edit.components.gain
    )
    assert list(p.components.name) == list(edit.components.name) and p == edit.permuted(0)
    with pytest.raises(EditError, match="mixes"):
        made(changes(0, 2)).permuted()


# ---- files


def test_a_saved_edit_comes_back_and_bytes_repeat(toy, tmp_path):
    edit = component_edit(toy, {"1.0.0": 0, "2.3.1": 0.25}, name="first") + subspace_edit(
        toy, "0.2", torch.eye(64)[:2], [[0, 1.0], [1.0, 0]]
    )
    edit.save(tmp_path / "a")
    load_edit(tmp_path / "a", toy).save(tmp_path / "b")
    for n in ("edit.safetensors", "edit.json"):
        assert (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes()
    back = load_edit(tmp_path / "b")
    assert (
        back == edit and hash(back) == hash(edit) and back.info == edit.info and back.components.equals(edit.components)
    )
    assert sum(f.stat().st_size for f in (tmp_path / "a").iterdir()) < 10000
    with edited(toy, edit):
        want = snapshot(toy)[0]
    with edited(toy, back):
        assert snapshot(toy)[0] == want


def damage(folder, how):
    f, j = folder / "edit.safetensors", folder / "edit.json"
    about, data = json.loads(j.read_text()), bytearray(f.read_bytes())
    if how == "gone":
        f.unlink()
    if how == "cut":
        f.write_bytes(data[:-7])
    if how == "bit":
        data[-1] ^= 1
        f.write_bytes(data)
    if how == "text":
        j.write_text("{")
    if how == "foreign":
        j.write_text(json.dumps({"kind": "recipe"}))
    if how == "list":
        j.write_text("[]")
    if how == "target":
        about["target"]["n_layers"] = 4
        j.write_text(json.dumps(about))
    if how == "heads":
        about["changes"] = 3
        j.write_text(json.dumps(about))
    if how == "names":
        about["changes"][0]["names"] = ["1.0.7"]
        j.write_text(json.dumps(about))


@pytest.mark.parametrize("how", "gone cut bit text foreign list target heads names".split())
def test_broken_files_are_refused(toy, tmp_path, how):
    component_edit(toy, "1.0.0").save(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(CheckpointError):
        load_edit(tmp_path)


def test_made_for_another_model(toy, tmp_path):
    edit = component_edit(toy, "1.0.0").save(tmp_path / "e")
    gpt2, llama = (load_model(str(tiny.save(k, tmp_path / k)), device="cpu") for k in ("gpt2", "llama"))
    for model in (gpt2, llama):
        before = snapshot(model)
        with pytest.raises(EditError, match="another model"):
            load_edit(edit, model)
        with pytest.raises(EditError, match="another model"):
            load_edit(edit).apply(model)
        assert snapshot(model) == before
    twin = load_model(str(tiny.save("llama", tmp_path / "twin", seed=1)), device="cpu")
    with pytest.raises(EditError, match="not those this edit was made for"):
        component_edit(llama, "1.0.0").apply(twin)


def test_altered_weights_are_refused(tmp_path):
    model = load_model("toy", device="cpu")
    edit, other = component_edit(model, "1.0.0"), component_edit(model, "1.1.0")
    weight = model.blocks[1].attn.W_O
    with torch.no_grad():
        weight[0, 0, 0] += 1e-3
    with pytest.raises(EditError, match="altered"):
        edit.apply(model)
    other.apply(model)  # this head was not touched
    with torch.no_grad():
        model.blocks[1].attn.W_O[1, 0, 0] += 1e-3
    with pytest.raises(EditError, match="something else"):
        other.apply(model)
    undo_all(model)
    other.apply(model).undo(model)


# ---- bad input


@pytest.mark.parametrize(
    "gains, error",
    [
        ("1.0.2", EditError),
        ("1.0.99", EditError),
        ("1.9.0", HeadError),
        ("7.0.0", HeadError),
        ("1.0", HeadError),
        ("one", HeadError),
        ({"1.0.0": float("inf")}, EditError),
        ({"1.0.0": float("nan")}, EditError),
        ({}, EditError),
        ([], EditError),
        ({"1.0.0": "loud"}, EditError),
        ({"1.0.0": 0.0, "L1H0.0": 1.0}, EditError),
    ],
)
def test_bad_components(toy, gains, error):
    before = snapshot(toy)
    with pytest.raises(error):
        component_edit(toy, gains)
    assert snapshot(toy) == before


@pytest.mark.parametrize(
    "V, G",
    [
        (torch.ones(2, 64), 0),
        (torch.eye(64)[:2], [1, 2, 3]),
        (torch.eye(64)[:2] * float("nan"), 0),
        (torch.eye(32)[:1], 0),
        (torch.eye(64)[:1], float("inf")),
        (torch.zeros(0, 64), 0),
        ("north", 0),
        (torch.eye(64)[[0, 0]], 0),
    ],
)
def test_bad_directions(toy, V, G):
    with pytest.raises(EditError):
        subspace_edit(toy, "1.0", V, G)


def test_gains_beyond_the_dtype():
    model = load_model("toy", device="cpu", dtype="float16")
    before, edit = snapshot(model), component_edit(model, {"1.0.0": 1e30})
    with pytest.raises(EditError, match="infinite"):
        edit.apply(model)
    assert snapshot(model) == before


def test_names_are_read_in_every_form(toy):
    assert component_edit(toy, "L1H0.1") == component_edit(toy, {"1.0.1": 0}) == component_edit(toy, ["l1h0.1"])


def test_what_is_shown(toy):
    e = component_edit(toy, {"1.0.0": 0, "1.1.1": 2.0}, name="two & more")
    assert "two & more" in repr(e) and "two &amp; more" in e._repr_html_() and "1.1.1" in e._repr_html_()
    assert list(e.components.columns) == ["layer", "head", "name", "gain", "mixes"] and e.n_params == 2
    assert e.info["processing"] == "folded" and e.info["model"] == "toy" and e.target["model_type"] == "gpt2"


@pytest.mark.parametrize("gains", [5, None, 1.5])
def test_gains_of_no_component(toy, gains):
    with pytest.raises(EditError, match="a dict of component to number"):
        component_edit(toy, gains)


def test_directions_that_follow_from_each_other(toy):
    "An orthonormal basis has a gain for each row only where the rows are independent"
    V = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for W in (V[[0, 0]], torch.cat([V, V.sum(0)[None]]), torch.randn(70, 64), torch.zeros(1, 64)):
        with pytest.raises(EditError, match="span"):
            subspace_edit(toy, "1.0", W, 0.0, orthonormal=True)
    Q = subspace_edit(toy, "1.0", V, 0.0, orthonormal=True).changes[0].V.double()
    close(V.double() @ Q.T @ Q, V, 1e-5)
    with pytest.raises(EditError):
        subspace_edit(toy, "1.0", 3.0, 0.0)
    with pytest.raises(EditError, match="then the model"):
        random_like(toy, component_edit(toy, "1.0.0"))


def test_where_an_edit_acts_has_to_be_said(toy):
    prompts, edit = the_prompts(toy), component_edit(toy, ["1.0.0", "1.0.1"])
    with pytest.raises(TypeError):
        readout_with_edit(toy, prompts, edit)
    with pytest.raises(TaskError, match="Where shall the edit act"):
        readout_with_edit(toy, prompts, edit, None)
    with pytest.raises(TaskError, match="has the role 'item1'"):
        readout_with_edit(toy, prompts, edit, "item1")
    with edited(toy, edit):
        want = readout(toy, prompts).logits
    assert torch.equal(readout_with_edit(toy, prompts, edit, "everywhere").logits, want)
    assert not torch.equal(readout_with_edit(toy, prompts, edit, "END").logits, want)
    with pytest.warns(FutureWarning, match="readout_with_edit.*at='END'"):
        old = edited_readout(toy, prompts, edit)
    assert torch.equal(old.logits, readout_with_edit(toy, prompts, edit, "END").logits)


@pytest.fixture(params=["medium", "autocast", "float64", "bfloat16"])
def setting(request):
    "Switches of the process that must not reach an edit"
    old = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    if request.param == "medium":
        torch.set_float32_matmul_precision("medium")
    if request.param in ("float64", "bfloat16"):
        torch.set_default_dtype(getattr(torch, request.param))
    with torch.autocast("cpu", torch.bfloat16, enabled=request.param == "autocast"):
        yield request.param
    torch.set_float32_matmul_precision(old[0])
    torch.set_default_dtype(old[1])


def made_of(toy):
    "Edits, their weights and coordinates, made in every way that takes no SVD of the model"
    g = torch.Generator().manual_seed(0)
    V = torch.linalg.qr(torch.randn(64, 3, generator=g, dtype=torch.float32).double())[0].T
    a = subspace_edit(toy, "1.0", V.float(), [0.3, 1.7, 0.0])
    b = subspace_edit(toy, "1.0", torch.randn(2, 64, generator=g, dtype=torch.float32), 0.1, orthonormal=True)
    all_ = [
        a,
        b,
        a.then(b),
        a.scaled(0.3),
        a + subspace_edit(toy, "1.1", V, 2.0),
        random_like(a, toy, 0, "residual"),
        a.permuted(1),
    ]
    z, out = torch.randn(5, 8, generator=g, dtype=torch.float32), []
    for e in all_:
        with edited(toy, e):
            out += [toy.blocks[1].attn.W_O.detach().clone(), coordinates(z, toy, e.changes[0].V, "1.0")]
    return all_, out


def test_edits_do_not_depend_on_switches(toy, setting, request):
    got, weights = made_of(toy)
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", enabled=False):
        want, same = made_of(toy)
    assert got == want and all(torch.equal(a, b) for a, b in zip(weights, same))


def plain_llama(tmp_path, **change):
    return load_model(str(tiny.save("llama", tmp_path / "m", **change)), device="cpu")


def test_a_head_that_writes_nothing(tmp_path):
    model = plain_llama(tmp_path)
    o = I.OutputProjections(model)
    with torch.no_grad():
        o(Head(1, 2)).zero_()
    with pytest.raises(EditError, match="1.2 writes nothing"):
        component_edit(model, "1.2.0", "raw")
    silent = subspace_edit(model, "1.2", torch.eye(48)[:2], 3.0)
    tokens = torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        want = model(tokens)
        with edited(model, silent):
            assert torch.equal(model(tokens), want)
        with model.hooks(edit_hooks(model, silent)):
            close(model(tokens), want)
    with pytest.raises(EditError, match="writes 0 directions"):
        random_like(silent, model, 0, "head")
    with pytest.raises(EditError, match="cannot write"):
        set_coordinates_hooks(model, "1.2", torch.eye(48)[:1], [1.0])
    assert len(random_like(component_edit(model, "1.1.0", "raw"), model, 0, "residual").changes) == 1


def test_heads_wider_than_the_residual_stream(tmp_path):
    model = load_model(str(tiny.save("qwen3", tmp_path / "m", head_dim=64)), device="cpu")
    edit = component_edit(model, {"1.0.0": 0.0, "1.0.40": 2.0}, "raw")
    with pytest.raises(EditError, match="components 0 to 47"):
        component_edit(model, "1.0.48", "raw")
    tokens = torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        with edited(model, edit):
            want = model(tokens)
        with model.hooks(edit_hooks(model, edit)):
            close(model(tokens), want, 1e-3)
    for within in ("components", "head", "other heads", "residual"):
        with edited(model, random_like(edit, model, 0, within)):
            pass


def test_components_that_are_none_alone_are_warned_of(tmp_path):
    "Two equal singular values: one of the two is an arbitrary direction, both together are a plane"
    model = plain_llama(tmp_path, num_key_value_heads=4)
    o, d = I.OutputProjections(model), model.cfg.d_head
    q = torch.linalg.qr(torch.randn(48, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0].T
    v = next(p for n, p in o.params.items() if "layers.1." in n and "v_proj" in n)
    with torch.no_grad():
        v[:d] = torch.diag(torch.tensor([4.0, 4.0] + [2.0 * 0.9**i for i in range(d - 2)])) @ torch.eye(d, 48)
        o(Head(1, 0)).copy_(q)
    for gains in ("1.0.0", {"1.0.0": 0.0, "1.0.1": 2.0}):
        with pytest.warns(UserWarning, match="1.0.0 and 1.0.1 have all but the same singular value"):
            component_edit(model, gains, "raw")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for gains in (["1.0.0", "1.0.1"], "1.0.2", {"1.0.0": 1.0}):
            component_edit(model, gains, "raw")


@pytest.mark.parametrize(
    "kind, says",
    [("talking_heads edit 3", "another form"), ("somebody's", "does not describe"), (None, "does not describe")],
)
def test_edits_in_another_form(toy, tmp_path, kind, says):
    component_edit(toy, "1.0.0").save(tmp_path)
    about = json.loads((tmp_path / "edit.json").read_text()) | dict(kind=kind)
    (tmp_path / "edit.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=says):
        load_edit(tmp_path)
    with pytest.raises(CheckpointError, match="not a folder"):
        load_edit(tmp_path / "edit.json")
    with pytest.raises(CheckpointError, match="not a folder"):
        load_edit(tmp_path / "nowhere")


@pytest.mark.slow
def test_importing_changes_nothing_outside(tmp_path):
    "Warnings, variables, defaults and generators are as whoever imports us had set them"
    code = """
import os, random, signal, sys, warnings, numpy, torch, transformers, pandas, altair
import bleach, nbconvert, papermill, tqdm.auto, transformer_lens
from transformer_lens.model_bridge import TransformerBridge
def now():
    return (list(warnings.filters), dict(os.environ), torch.get_default_dtype(), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.get_rng_state().tolist(),
            random.getstate(), str(numpy.random.get_state()), altair.renderers.active, altair.theme.active,
            altair.data_transformers.active, signal.getsignal(signal.SIGINT), sys.excepthook, list(sys.path),
            os.getcwd(), transformers.logging.get_verbosity(),
            [(k, id(v)) for k, v in vars(TransformerBridge).items()])
was = now()
import importlib, pkgutil, talking_heads
for m in pkgutil.iter_modules(talking_heads.__path__):
    if m.name != "_modidx": importlib.import_module("talking_heads."+m.name)
assert [i for i, (a, b) in enumerate(zip(was, now())) if a != b] == []
"""
    import subprocess

    r = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
