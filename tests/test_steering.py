"Steering: what is set is what is written, the fits learn what can be learnt, and the stored table is of this model"

import pytest
import torch

import tiny
from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.svd import *
from talking_heads.hooks import *
from talking_heads.interventions import *
from talking_heads.evaluation import *
from talking_heads.circuits.removal import *
from talking_heads.circuits.steering import *
from talking_heads.circuits.steering import _in_list_order, _item_logits, _end_hooks, _setting

close = lambda a, b, eps=2e-4: torch.testing.assert_close(a.float(), b.float(), atol=eps, rtol=1e-4)
circuit = ["1.0.0", "1.0.1", "1.1.0", "1.1.1"]


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def weights():
    return attention_weights("toy", "folded")


def lists(model, n_items=3, n=18, seed=0, **kw):
    return laundry_list(**task_args(model), n_items=n_items, n=n, seed=seed, **kw)


def test_setting_what_is_there_changes_nothing(toy, weights):
    "Two heads of one layer and one of another at once"
    p = lists(toy)
    s = subspace(weights, circuit + ["0.3.2"])
    c = natural(toy, p, s)
    v = run_variants(toy, p, _setting(toy, s, lambda g: c[g][:, None]), 1)
    close(v.choices[:, 0], choice_logits(readout(toy, p, ())), 1e-3)


def test_kept_prefixes_change_nothing(toy, weights):
    p, s = lists(toy), subspace(weights, circuit + ["2.0.0"])
    runs = prefixes(toy, p, 5)
    close(natural(toy, p, s), natural(toy, p, s, runs))
    values = natural(toy, p, s)[:3]
    assert steer(toy, p, s, values, ["2.1"]).equals(steer(toy, p, s, values, ["2.1"], runs))


def test_setting_is_that_of_interventions(toy, weights):
    p, s = lists(toy), subspace(weights, ["1.0.0", "1.0.1"])
    values = torch.tensor([[3.0, -2.0]])
    v = run_variants(toy, p, _setting(toy, s, lambda g: values[None]), 1)
    for g in p.groups():
        with toy.hooks(set_coordinates_hooks(toy, "1.0", s.V[0], values[0], p[g].pos("END"))):
            r = readout(toy, p[g], ())
        close(v.choices[g, 0], choice_logits(r), 1e-3)


def test_items_in_list_order(toy):
    p = lists(toy, 5, 30)
    logits = readout(toy, p, ()).logits
    v = run_variants(toy, p, {1: lambda z, g: z}, 1)
    for b, q in enumerate(p):
        ids = dict(zip((q.answer,) + q.distractors, (q.answer_id,) + q.distractor_ids))
        close(_in_list_order(v.choices, p)[b, 0], logits[b, [ids[w] for w in q.info["items"].split(",")]], 1e-3)


@pytest.mark.parametrize("kind", tiny.kinds)
def test_item_logits_are_the_models(kind, tmp_path):
    "On every family, soft-capped logits included; gradients reach the values and no parameter"
    model = load_model(str(tiny.save(kind, tmp_path)), device="cpu")
    p = lists(model, 3, 12)
    s = subspace(attention_weights(model), ["1.0.0", "1.2.1"])
    (g, r), *_ = prefixes(model, p, 4)
    ids = torch.tensor(
        [
            [
                dict(zip((q.answer,) + q.distractors, (q.answer_id,) + q.distractor_ids))[w]
                for w in q.info["items"].split(",")
            ]
            for q in p[g]
        ]
    )
    x = natural(model, p, s)[g][:, None].requires_grad_()
    out = _item_logits(model, r, _end_hooks(_setting(model, s, lambda g: x), g, 1), 1, ids, s.first)
    (grad,) = torch.autograd.grad(out.sum(), x)
    close(out[:, 0].detach(), readout(model, p[g], ()).logits.gather(1, ids), 2e-3)
    assert grad.abs().sum() > 0 and all(q.grad is None for q in model.parameters())


def test_steering_by_place_fails_where_the_channel_carries_words(toy, weights):
    "The toy's channel says which word, so values shared by place cannot work: the procedure can lose"
    s = subspace(weights, circuit)
    score = steering_scores(
        steer(toy, lists(toy, n=90, seed=1), s, fit_gradient(toy, lists(toy, n=90, seed=100), s, steps=40))
    )
    assert score["named_low"] < 0.5 and score["n"] == 90


def test_per_prompt_values_prove_nothing_and_are_not_offered(toy, weights):
    s = subspace(weights, circuit)
    with pytest.raises(EditError, match="shape"):
        steer(toy, lists(toy), s, torch.zeros(18, len(s)))


def test_same_seed_same_fit_and_nothing_is_left_behind(toy, weights):
    s, before = (
        subspace(weights, circuit[:2]),
        {n: (p.requires_grad, p.detach().clone()) for n, p in toy.named_parameters()},
    )
    a, b = (fit_gradient(toy, lists(toy), s, steps=5, seed=3) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, fit_gradient(toy, lists(toy), s, steps=5, seed=4))
    assert all(
        p.requires_grad == r and torch.equal(p, q) and p.grad is None
        for (_, p), (r, q) in zip(toy.named_parameters(), before.values())
    )


def test_response_is_a_difference(toy, weights):
    "The mean reaction to one unit, against set_coordinates_hooks on every prompt"
    p, s = lists(toy), subspace(weights, ["1.0.0"])
    J, unit = attention_response(toy, p, s, ["2.0", "2.1"])
    roles, c = ("item1", "item2", "item3"), natural(toy, p, s)

    def score(values):
        out = torch.zeros(len(p), 2, 3)
        for g in p.groups():
            with toy.hooks(set_coordinates_hooks(toy, "1.0", s.V[0], values[g], p[g].pos("END"))):
                out[g] = readout(toy, p[g], roles).attention[:, 2, :2]
        x = out.clamp_min(1e-9).log()
        return x - x.mean(-1, keepdim=True)

    at = lambda x: (c.mean(0) + x).expand(len(p), -1)
    close(J[0], (score(at(unit / 2)) - score(at(-unit / 2))).mean(0), 1e-3)


def test_maps_and_grid(toy, weights):
    p, s = lists(toy), subspace(weights, ["1.0.0", "1.0.1"])
    m = subspace_map(toy, p, s, 3)
    assert len(m) == 27 and torch.allclose(
        torch.tensor(m.groupby(["x0", "x1"]).share.sum().to_numpy()).double(), torch.ones(9).double(), atol=1e-5
    )
    best = fit_grid(m)
    for t in (1, 2, 3):
        f = m[m.place == t]
        at = f[(f.x0 - float(best[t - 1, 0])).abs().lt(1e-4) & (f.x1 - float(best[t - 1, 1])).abs().lt(1e-4)]
        assert float(at.share.iloc[0]) == f.share.max()
    with pytest.raises(EditError, match="one to three"):
        subspace_map(toy, p, subspace(weights, circuit), 3)


def test_random_subspaces_are_as_large_and_others(weights):
    s = subspace(weights, circuit[:3])
    r = random_subspace(attention_weights("toy"), subspace(attention_weights("toy"), ["0.1.0", "0.1.1"]), 1)
    assert len(r) == 2 and not set(r.names) & {"0.1.0", "0.1.1"} and r.heads == (Head(0, 1),)
    assert (
        random_subspace(attention_weights("toy"), subspace(attention_weights("toy"), ["0.1.0"]), 1).names
        == random_subspace(attention_weights("toy"), subspace(attention_weights("toy"), ["0.1.0"]), 1).names
    )
    assert len(s) == 3 and s.first == 1


def test_bad_input_is_named(toy, weights):
    with pytest.raises(HeadError, match="no component|No component"):
        subspace(weights, [])
    with pytest.raises(HeadError, match="does not exist"):
        subspace(weights, ["1.0.9"])
    with pytest.raises(HeadError, match="named twice"):
        subspace(weights, ["1.0.0", "1.0.0"])
    with pytest.raises(TaskError, match="one length"):
        steer(toy, lists(toy, 3) + lists(toy, 4), subspace(weights, circuit), torch.zeros(3, 4))
    with pytest.raises(TaskError, match="Laundry"):
        steer(toy, ioi(**task_args(toy), n=6), subspace(weights, circuit), torch.zeros(3, 4))


def test_the_stored_table_is_whole_and_of_this_model():
    t = stored_steering()
    assert t["sha256"] == find_checkpoint("smollm2").sha256 and t["n"] >= 200
    rows = [(r["n_items"], r["arm"], r["fit"], r["template"]) for r in t["rows"]]
    assert len(rows) == len(set(rows)) and {r[0] for r in rows} >= {2, 3, 4, 5, 6, 8, 10}
    for r in t["rows"]:
        assert r["n"] == t["n"] and all(r[f"{k}_low"] <= r[k] <= r[f"{k}_high"] for k in ("named", "top1", "looked"))
        assert len(r["values"]) == r["n_items"] and len(r["values"][0]) == len(r["names"])


@pytest.mark.slow
def test_stored_values_steer_again():
    "The stored numbers, on prompts that neither the fit nor the table saw"
    model, t = load_model("smollm2", device="cpu"), stored_steering()
    row = next(
        r
        for r in t["rows"]
        if (r["n_items"], r["arm"], r["fit"], r["template"]) == (3, "3 chosen", "gradient", "things")
    )
    s = subspace(attention_weights(model, "folded"), row["names"])
    again = steering_scores(steer(model, lists(model, 3, 60, seed=7), s, torch.tensor(row["values"]), t["movers"]))
    assert again["named"] > row["named"] - 0.08
