"Learned gains: exact gradients, exact caches, exact weights, and a study that goes on where it stopped"

import json
import math
import shutil

import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import tiny
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.hooks import load_model, readout, task_args
from talking_heads.interventions import edited
from talking_heads.base.store import stored_study
from talking_heads.edits.lifting import *
from talking_heads.edits.proposals import *
from talking_heads.edits import lifting as lib
from talking_heads.tasks.contrasts import preference
from talking_heads.edits.parametrisations import *
from talking_heads.edits.upper_layers import *
from talking_heads.edits.training_data import *
from talking_heads.edits.training import *
from talking_heads.edits.evaluation_sets import *
from talking_heads.edits.mediation import *

quick = dict(n_items=(7, 8), per=6, windows=8, length=16, window=None)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "GPT-2- and Llama-shaped random models in float64, and one that caps its logits"
    return {
        k: load_model(str(tiny.save(k, tmp_path_factory.mktemp(k))), dtype=torch.float64)
        for k in ("gpt2", "llama", "gemma2")
    }


@pytest.fixture(scope="module")
def toy():
    return load_model("toy")


@pytest.fixture(scope="module")
def taught(toy):
    return training_data(toy, 1, **quick)


def weights(model):
    return {k: v.clone() for k, v in model.original_model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def n_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.original_model.modules())


def tokens(model, n=4, length=11, seed=0):
    return torch.randint(5, 150, (n, length), generator=torch.Generator().manual_seed(seed)).to(model.cfg.device)


# transformers computes RMS norms and the softmax of Llama's and Gemma's attention in float32, whatever the model's
# numbers are, and how such a sum is rounded depends on the shape of the batch and on the processor
EXACT = dict(gpt2=1e-10, llama=1e-5, gemma2=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_cached_upper_layers_is_the_model(models, kind):
    "Upper layers on cached input give the model's own logits, for all positions, a window, and some rows"
    m, T = models[kind], tokens(models[kind])
    ref = m(T)
    for layer in (0, 1, 2):
        s = UpperLayers(m, layer)
        for window in (None, 1, 4, 99):
            e = s.enter(T, window)
            got = s.logits(s.run(e))
            assert torch.allclose(got, ref[:, -got.shape[1] :], atol=EXACT[kind])
            assert torch.allclose(s.logits(s.run(e, rows=[2, 0])), got[[2, 0]], atol=EXACT[kind])
            assert torch.equal(s.run(e), s.run(e))  # a run leaves the cache as it was


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_updates_are_edits(models, kind):
    "What is added in training is what the edited weights do: gains, a matrix, rotated directions, rank 1"
    m, T, g = models[kind], tokens(models[kind]), torch.Generator().manual_seed(1)
    s = UpperLayers(m, 1)
    e, gains = s.enter(T), head_updates(m, ["1.0", "1.3", "2.1"])
    assert len(gains) == 3 * m.cfg.d_head
    for updates in (gains, matrix_updates(gains[range(3)]), rotated_updates(gains[range(20)], m, 5)):
        x = 0.5 * torch.randn(len(updates), generator=g)
        with edited(m, updates_edit(m, updates, x)):
            want = m(T)
        assert torch.allclose(s.logits(s.run(e, added_output(m, updates)(x.double()))), want, atol=1e-4)
        assert (want - m(T)).abs().max() > 0.01
    a, b = 0.5 * torch.randn(m.cfg.n_heads * m.cfg.d_head, generator=g), 0.5 * torch.randn(m.cfg.d_model, generator=g)
    r = Rank1(1, torch.zeros_like(a).double(), b.double(), 1.0)
    with edited(m, rank1_edit(m, 1, a, b)):
        want = m(T)
    assert torch.allclose(s.logits(s.run(e, r.added(m, torch.cat([a, b]).double()))), want, atol=1e-4)


def test_window_edits_the_last_positions_only(models):
    "With a window, the added change is that of a hook restricted to these positions"
    m, T, W = models["llama"], tokens(models["llama"]), 3
    s, updates = UpperLayers(m, 1), head_updates(m, ["1.0", "2.2"])
    x = 0.5 * torch.randn(len(updates), generator=torch.Generator().manual_seed(2)).double()
    add = added_output(m, updates)(x)
    late = {l: (lambda z, f=f: torch.cat([torch.zeros_like(f(z)[:, :-W]), f(z)[:, -W:]], 1)) for l, f in add.items()}
    full = s.logits(s.run(s.enter(T), late))[:, -W:]
    assert torch.allclose(s.logits(s.run(s.enter(T, W), add)), full, atol=EXACT["llama"])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("window", [None, 5])
def test_gradients(models, kind, window):
    """Gradients of gains against central differences;
    exact in float64, but Llama's norms compute in float32 whatever the dtype"""
    h, off = (1e-5, 1e-7) if kind == "gpt2" else (1e-2, 2e-3)
    m, T = models[kind], tokens(models[kind])
    s, updates = UpperLayers(m, 1), head_updates(m, ["1.0", "2.1"])[range(0, 24, 5)]
    e, f, y = s.enter(T, window), added_output(m, updates), torch.tensor([5, 6, 7, 8], device=T.device)
    loss = lambda x: torch.nn.functional.cross_entropy(s.logits(s.run(e, f(x))[:, -1]), y)
    x = 0.3 * torch.randn(len(updates), generator=torch.Generator().manual_seed(3)).double()
    x.requires_grad_(True)
    (g,) = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        for i in range(len(updates)):
            d = torch.zeros_like(x)
            d[i] = h
            assert abs(float((loss(x + d) - loss(x - d)) / 2 / h - g[i])) < off


def test_fisher_is_the_curvature_of_kl(toy):
    "Drawn labels average to the exact Fisher information, which is the curvature of the KL divergence"
    s = UpperLayers(toy, 1)
    T = ioi(**task_args(toy), n=1).tokens[:, :6].repeat(240, 1)
    updates, e = head_updates(toy, ["1.1", "2.0"])[[0, 3]], s.enter(T)
    f, les = added_output(toy, updates), TrainingData(s, (), (), TrainingBatch(e, s.run(e).detach(), 0), 0)
    log = lambda x: s.logits(s.run(e, f(x), [0]))[0].log_softmax(-1).cpu()
    J = torch.autograd.functional.jacobian(log, torch.zeros(len(updates)))  # (pos vocab knob)
    p = log(torch.zeros(len(updates))).exp()
    exact = (p[..., None] * J.square()).sum((0, 1)).detach() / T.shape[1]
    got = fisher(les, updates, n=240, seed=1)
    assert ((got - exact).abs() < 0.5 * exact + 1e-6).all()
    for i in range(len(updates)):
        h = 0.02 / float(exact[i].sqrt().clamp_min(1e-3))
        kl = [
            float((p * (p.log() - log(d))).sum() / T.shape[1])
            for d in (h * torch.eye(len(updates))[i], -h * torch.eye(len(updates))[i])
        ]
        assert sum(kl) / 2 == pytest.approx(0.5 * float(exact[i]) * h**2, rel=0.1, abs=1e-6)


def test_choose_ranks_by_gradient_over_root_fisher(taught, toy):
    updates = head_updates(toy, [(1, 0), (1, 1), (2, 0)])
    c = choose_updates(taught, updates, 5)
    assert c.table.score.is_monotonic_decreasing and list(c.updates.names) == c.table.name.tolist()
    assert torch.allclose(
        torch.tensor(c.table.gradient.abs() / c.table.fisher**0.5), torch.tensor(c.table.score), rtol=1e-4
    )
    assert c.table.score.min() >= choose_updates(taught, updates, len(updates)).table.score.iloc[5]
    assert torch.allclose(c.step, torch.tensor(c.table.fisher.to_numpy()).rsqrt())


def test_pruning_keeps_what_training_moves_furthest(taught, toy):
    """Against the definition, in units of each knob's step;
    kept whole, in falling order, same seed same choice, and the model as it was"""
    before, s = weights(toy), Settings(steps=6, rate=0.03, kl=0.2, windows=8)
    c = choose_updates(taught, head_updates(toy, [(l, h) for l in (1, 2) for h in range(8)]), 24)
    turned = dict(zip(c.updates.names, (train_edit(taught, c, s).x / c.step).abs().tolist()))
    kept = pruned_choice(taught, c, 7, s)
    assert list(kept.updates.names) == sorted(turned, key=lambda n: -turned[n])[
        :7
    ] and kept.table.name.tolist() == list(kept.updates.names)
    at = [c.updates.names.index(n) for n in kept.updates.names]
    assert torch.equal(kept.step, c.step[at]) and torch.equal(kept.updates.write, c.updates.write[at])
    assert pruned_choice(taught, c, 7, s).updates.names == kept.updates.names and same(before, weights(toy))


def test_training_lowers_the_loss_and_leaves_the_model(taught, toy):
    """Loss on the batches falls, train text stays within the budget,
    same seed same gains, not a bit of the model differs"""
    before, hooks = weights(toy), n_hooks(toy)
    c = choose_updates(taught, head_updates(toy, [(l, h) for l in (1, 2) for h in range(8)]), 24)
    a, b, other = (train_edit(taught, c, Settings(steps=25, rate=0.03, kl=0.2, windows=8, seed=s)) for s in (0, 0, 1))
    assert same(before, weights(toy)) and n_hooks(toy) == hooks
    assert torch.equal(a.x, b.x) and a.edit == b.edit and not torch.equal(a.x, other.x)
    loss = lambda add: float(
        torch.stack(
            [answer_loss(taught.upper, taught.upper.run(l.entry, add), l.answers).mean() for l in taught.lists]
        ).mean()
    )
    with torch.no_grad():
        assert loss(added_output(toy, c.updates)(a.x * a.shrunk)) < loss({}) - 0.1
        kl = token_kl(
            taught.upper,
            taught.text.ref,
            taught.upper.run(taught.text.entry, added_output(toy, c.updates)(a.x * a.shrunk)),
        ).mean()
    assert float(kl) <= 0.2 * 1.05


def test_fit_shrinks_to_the_budget(taught, toy):
    c = choose_updates(taught, head_updates(toy, ["1.0", "1.1", "2.0"]), 6)
    u = torch.ones(6)
    t = shrink_to_budget(taught, c, u, 0.01)
    with torch.no_grad():
        kl = lambda t: float(
            token_kl(taught.upper, taught.text.ref, taught.upper.run(taught.text.entry, c.added(toy, u, t))).mean()
        )
    with torch.no_grad():
        assert 0 < t < 1 and kl(1.0) > 0.01 and kl(t) < 0.5 * kl(1.0) and kl(t) < 0.02
    assert shrink_to_budget(taught, c, u * 0, 0.01) == 1


def test_interrupted_training_leaves_the_model(taught, toy):
    "Ctrl-C in the middle of a step"
    before, hooks = weights(toy), n_hooks(toy)

    def stop(les, add, s, rng):
        if rng.random() < 0.5:
            raise KeyboardInterrupt
        return training_losses(les, add, s, rng)

    def inside(z):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_edit(taught, choose_updates(taught, head_updates(toy, ["1.0"]), 2), Settings(steps=50), also=stop)
    with pytest.raises(KeyboardInterrupt):
        taught.upper.run(taught.text.entry, {1: inside})
    assert same(before, weights(toy)) and n_hooks(toy) == hooks


def test_evaluation_is_a_whole_weight_run(toy):
    "The evaluation's numbers are those of plain readouts of the edited model; edits below its layer are refused"
    j = evaluation_sets(toy, 1, n_items=(8,), n=30, n_others=30, windows=6)
    updates = head_updates(toy, ["1.2", "2.0"])
    edit = updates_edit(toy, updates, torch.full((len(updates),), 1.5))
    before, rows = weights(toy), j.evaluate(edit)
    assert same(before, weights(toy))
    for split, ts in (("train", ["things", "shop", "bag"]), ("held-out", list(held_out))):
        p = [laundry_list(**task_args(toy), n_items=8, n=30 // len(ts), template=t, seed=7) for t in ts]
        with edited(toy, edit):
            hit = torch.cat([readout(toy, q, ()).logits.argmax(-1) == q.answer_ids for q in p])
        row = rows[(rows.area == "lists") & (rows.split == split) & (rows.measure == "top1")].iloc[0]
        assert (
            row.after == pytest.approx(float(hit.double().mean()))
            and row.n == len(hit)
            and row.low <= row.change <= row.high
        )
    kl = rows[rows.measure == "kl"].iloc[0]
    assert kl.before == 0 and kl.change > 0 and not any(rows.area == "contrast")  # the toy lacks the contrasts' words
    low = head_updates(toy, ["0.1"])
    with pytest.raises(EditError, match="below layer 1"):
        j.evaluate(updates_edit(toy, low, torch.ones(len(low))))


def test_share_agrees_with_probes(models):
    "The share that training penalises is the one that `preference` reports"
    m = models["llama"]
    p = laundry_list(**task_args(m), n_items=4, n=6)
    s = UpperLayers(m, 1)
    final = s.run(s.enter(p.tokens))
    p = type(p)(
        tuple(type(q)(**{**q.__dict__, "info": q.info | dict(right="", unmentioned=q.answer)}) for q in p),
        p.task,
        p.bos,
        p.pad_id,
    )
    from talking_heads.tasks.contrasts import item_ids, left_over

    want = torch.tensor(preference(p, s.logits(final[:, -1]).detach()).share.to_numpy())
    assert torch.allclose(left_over_share(s, final, item_ids(p), left_over(p)).double().cpu(), want, atol=1e-5)


def test_frozen_parts(toy):
    """With every write frozen no lift is left;
    with the only edited head frozen none either; with an idle part frozen all of it"""
    p = laundry_list(**task_args(toy), n_items=8, n=40)
    own = head_updates(toy, ["1.2"])
    edit = updates_edit(toy, own, torch.full((len(own),), 4.0))
    f = mediated(toy, edit, 1, "1.2", ["2.0", "2.1"], p).set_index("frozen")
    assert f.loc["nothing", "lift"] != 0  # the edit does something, up or down
    assert f.loc["head 1.2", "lift"] == 0 and f.loc["all that heads write from there up", "lift"] == 0
    idle = updates_edit(toy, head_updates(toy, ["2.7"]), torch.full((len(head_updates(toy, ["2.7"])),), 3.0))
    f = mediated(toy, idle, 1, "1.2", ["2.0", "2.1"], p).set_index("frozen")
    assert f.loc["head 1.2", "lift"] == f.loc["nothing", "lift"] == f.loc["all attention of the movers' layers", "lift"]


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_pareto(points):
    "Against the definition, pair by pair"
    df = pd.DataFrame(points, columns=["lift", "kl", "n_learned"]).astype(float)
    beats = lambda a, b: a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2] and a != b
    assert pareto_front(df).tolist() == [not any(beats(q, p) for q in points) for p in points]


def test_study_goes_on_where_it_stopped(toy, tmp_path, monkeypatch):
    """Arms that are there are left alone;
    the collected file holds them with the model's hash; another model's are refused"""
    w = Study(toy, 1, ["1.2", "1.1"], ["2.1"], 0, Settings(steps=3, rate=0.03, kl=0.5), n=9, **quick)
    j = evaluation_sets(toy, 1, n_items=(8,), n=12, n_others=12, windows=4)
    for a in arms:
        if a not in ("rank-1 LoRA", "only five items"):
            evaluate_arm(j, train_arm(w, a, tmp_path))  # the toy's heads have low rank; no batch has five items

    def never(*args, **kw):
        raise AssertionError("trained again")

    monkeypatch.setattr(lib, "train_edit", never)
    folder = train_arm(w, "learned gains", tmp_path)
    at = (folder / "judged.json").stat().st_mtime_ns
    assert (evaluate_arm(j, folder)).stat().st_mtime_ns == at
    out = collect_lifting(tmp_path, tmp_path / "all.json")
    got = json.loads(out.read_text())
    assert got["sha256"] == toy.checkpoint.sha256 and len(got["arms"]) == len(arms) - 2
    assert {a["matmul"] for a in got["arms"]} == {torch.get_float32_matmul_precision()} and {
        a["arm"]: a for a in got["arms"]
    }["pruned, longer, double contrasts"]["settings"][
        "steps"
    ] == 9  # three times as many as asked for, once it is pruned
    one = tmp_path / "one" / folder.name
    shutil.copytree(folder, one)
    (one / "judged.json").write_text((one / "judged.json").read_text().replace("top1", "top one"))
    again = json.loads(collect_lifting(one.parent, tmp_path / "all.json", keep=True).read_text())["arms"]
    changed = [x["arm"] for x, y in zip(again, got["arms"]) if x != y]
    assert len(again) == len(got["arms"]) and changed == ["learned gains"]  # only the arm of that folder was replaced
    a = json.loads((folder / "arm.json").read_text())
    a["provenance"]["sha256"] = "0" * 64
    (folder / "arm.json").write_text(json.dumps(a))
    with pytest.raises(OutputError, match="2 different models"):
        collect_lifting(tmp_path, tmp_path / "all.json")
    with pytest.raises(OutputError, match="No judged arm"):
        collect_lifting(tmp_path / "none", tmp_path / "all.json")


def test_permuted_gains_are_the_same_gains(toy):
    w = Study(toy, 1, ["1.2"], ["2.1"], 0, Settings(steps=3, rate=0.03, kl=0.5), n=9, **quick)
    a, b = (arms[k](w).edit.components for k in ("learned gains", "permuted gains"))
    assert (
        sorted(a.gain) == sorted(b.gain) and a.name.tolist() == b.name.tolist() and a.gain.tolist() != b.gain.tolist()
    )
    other = set(arms["other heads"](w).edit.heads)
    assert not other & {parse_head(f"{r.layer}.{r['head']}") for _, r in a.iterrows()}


@pytest.mark.slow
def test_toy_end_to_end(toy):
    """Heads found, the training loss lowered, the edit applies and leaves no trace;
    fresh lists gain nothing on the toy, as the notebook says"""
    before = weights(toy)
    p = propose_edit(toy, "tiny", kl=0.3)
    assert (
        same(before, weights(toy))
        and p.record["loss"][1] < p.record["loss"][0]
        and p.record["provenance"]["sha256"] == toy.checkpoint.sha256
    )
    assert {"1.0", "1.1"} <= set(p.record["inhibition"]) and set(p.record["movers"]) <= {"2.0", "2.1", "2.2", "2.3"}
    with edited(toy, p.edit):
        assert not same(before, weights(toy))
    assert same(before, weights(toy))


def test_bad_requests(toy):
    for kw, why in (
        (dict(how="slow"), "Unknown effort"),
        (dict(kl=0.0), "KL budget"),
        (dict(kl=math.nan), "KL budget"),
        (dict(n=0), "0 gains"),
    ):
        with pytest.raises(TalkingHeadsError, match=why):
            propose_edit(toy, **kw)
    updates = head_updates(toy, ["1.2"])
    with edited(toy, updates_edit(toy, updates, torch.ones(len(updates)))):
        with pytest.raises(EditError, match="already carries"):
            propose_edit(toy, "tiny")
    with pytest.raises(HeadError):
        UpperLayers(toy, 3)
    with pytest.raises(HeadError, match="one head"):
        matrix_updates(head_updates(toy, ["1.0", "1.1"]))


def test_search_returns_none_when_nothing_meets_the_budget(toy):
    w = Study(toy, 1, ["1.2"], ["2.1"], 0, Settings(steps=3, rate=0.03, kl=0.5), n=9, **quick)
    j = evaluation_sets(toy, 1, n_items=(8,), n=12, n_others=0, windows=4)
    df, none = search_edits(w, j, (4,), (1.0,), dict(kl=0.0))
    assert none is None and not df.within.any() and df.front.all()


def test_stored_study_is_of_this_model():
    """The table in the package was made with the embedded SmolLM2,
    by whole-weight runs of at least 200 prompts per point"""
    from talking_heads.base.checkpoints import find_checkpoint

    stored = stored_study("smollm2_lifting.json")
    assert stored["sha256"] == find_checkpoint("smollm2").sha256
    for a in stored["arms"]:
        assert (
            a["provenance"]["sha256"] == stored["sha256"]
            and len(a["code"]) == 64
            and a["settings"]["seed"] == a["seed"]
        )
    rows = stored_lifting()
    assert (rows[rows.area == "lists"].n >= 200).all() and "learned gains" in set(rows.arm)


def test_what_the_chapter_says_of_longer_training():
    """More than 20 points at five items of train templates for a wrong preference of at most .05,
    in three seeds; random gains stay 15 points behind; on held-out templates plain gains do better"""
    rows = stored_lifting()
    at = lambda arm, **kw: (
        rows[(rows.arm == arm) & (rows[list(kw)] == pd.Series(kw)).all(axis=1)].set_index("seed").change
    )
    lift = at("pruned, longer, double contrasts", area="lists", measure="top1", split="train", n_items=5)
    assert sorted(lift.index) == [0, 1, 2] and (lift > 0.2).all()
    assert (at("pruned, longer, double contrasts", area="contrast", measure="share") <= 0.05).all() and (
        at("pruned, longer, double contrasts", area="text", measure="kl") <= 0.0155
    ).all()
    assert (lift - at("random gains", area="lists", measure="top1", split="train", n_items=5)[0] >= 0.15).all()
    for n in (5, 8):
        new = [
            at(a, area="lists", measure="top1", split="held-out", n_items=n)
            for a in ("learned gains", "pruned, longer, double contrasts")
        ]
        assert (new[0] > new[1]).all()
