"The audit: exact on an edit that does nothing, and each planted fault fails by its own rule before any other"
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads import audit as A
from talking_heads.audit import *
from talking_heads.core import *
from talking_heads.data import *
from talking_heads.hooks import *
from talking_heads.interventions import *
from talking_heads.probes import *

small = Plan(ioi=60, lists=(5,), per_template=10, induction=4)

@pytest.fixture(scope="module")
def toy(): return load_model("toy", device="cpu")

@pytest.fixture(scope="module")
def before(toy): return measure(toy, small)

def weights(model): return [p.detach().clone() for p in model.original_model.parameters()]

def frame(text=0., kl=.001, ioi=0, train=0, held=0, wrong=0., seed=0):
    "Two made-up measurements: how far each area moves is given, prompts vary at random"
    g = np.random.default_rng(seed)
    rows = []
    def add(area, measure, b, a, rate=False, **kw):
        rows.append(pd.DataFrame(dict(area=area, measure=measure)|dict(split="", template="", n_items=0)|kw|
                                 dict(prompt=range(len(b)), rate=rate, before=np.asarray(b, float), after=np.asarray(a, float))))
    def flips(n, base, change): # of n prompts, `base` right, `change` more (or fewer) after
        b = np.arange(n) < base
        return b, np.arange(n) < base+change
    loss = g.normal(3, .3, 200)
    add("text", "loss", loss, loss*(1+text)+g.normal(0, 1e-4, 200), split="test", template="prose")
    add("text", "kl", np.zeros(200), kl*g.uniform(.5, 1.5, 200), split="test", template="prose")
    b, a = flips(600, 590, ioi)
    add("ioi", "correct", b, a, True)
    d = g.normal(4, 1, 600)
    add("ioi", "logit_diff", d, d+.01*g.normal(size=600))
    x = g.normal(3, .2, 32)
    add("induction", "first loss", x+10, x+10)
    add("induction", "loss", x, x+g.normal(0, .005, 32))
    for split, t, change in (("train", "things", train), ("held-out", "table", held)):
        b, a = flips(300, 140, change)
        add("lists", "top1", b, a, True, split=split, template=t, n_items=5)
        add("lists", "logit_diff", x[:30], x[:30]+.01, split=split, template=t, n_items=5)
    for t, split in (("found", "train"), ("carried", "held-out"), ("last", "held-out")):
        s = g.uniform(.1, .3, 100)
        add("contrast", "share", s, s+wrong+g.normal(0, .01, 100), split=split, template=t, n_items=5)
        add("contrast", "chosen", *flips(100, 20, round(100*wrong)), True, split=split, template=t, n_items=5)
    df = pd.concat(rows, ignore_index=True)
    make = lambda c: Measures(df.drop(columns=["before", "after"]).assign(value=df[c]), (), {}, None, dict(source="made up"), 0.)
    return make("before"), make("after")

@pytest.mark.parametrize("moved,first", [(dict(text=.03, kl=.05), "loss"), (dict(kl=.2), "kl"), (dict(ioi=-60), "ioi"), (dict(train=120, held=0), "lag"),
                                         (dict(train=120, held=110, wrong=.3), "wrong"), (dict(held=-60), "lists")])
def test_each_made_up_fault_fails_by_its_own_rule_first(moved, first):
    a = compare(*frame(**moved))
    assert not a.passed and a.first == first and a.failed[0] == first
    assert set(a.failed) <= {first, "kl"} # a rise of the loss comes with a change of the distribution

def test_worse_lists_only_what_is_certainly_worse():
    w = compare(*frame(ioi=-60, train=120, held=100)).worse
    assert ("ioi", "correct") in set(zip(w.area, w.measure)) and not (w.area == "lists").any() and w.worse.all()
    assert w.clear.is_monotonic_decreasing and not len(compare(*[frame()[0]]*2).worse)

def test_a_good_edit_passes():
    a = compare(*frame(train=120, held=100, wrong=.01, kl=.01))
    assert a.passed and not a.failed and a.untested == [] and compare(*frame()).untested == ["lag"]

def test_the_lag_by_hand():
    v = compare(*frame(train=120, held=30)).verdicts.set_index("rule").loc["lag"]
    assert v.value == pytest.approx(.75) and v.verdict == "fail" and v.low < .75 < v.high
    v = compare(*frame(train=120, held=90)).verdicts.set_index("rule").loc["lag"]
    assert v.value == pytest.approx(.25) and v.verdict in ("pass", "unsure")

def test_an_interval_that_reaches_beyond_its_limit_is_unsure_and_strict_refuses_it():
    pair = frame(ioi=-5) # .0083 lost, limit .01
    a, s = compare(*pair), compare(*pair, budget=Budget(strict=True))
    assert a.unsure == ["ioi"] and a.passed and not s.passed
    assert compare(*pair, budget=Budget(ioi=None)).verdicts.rule.tolist().count("ioi") == 0

@settings(max_examples=25, deadline=None)
@given(n=st.integers(20, 200), lost=st.integers(0, 10), won=st.integers(0, 10))
def test_paired_shares_count_prompts(n, lost, won):
    b = torch.arange(n) < n-10
    a = b.clone(); a[:lost] = False; a[n-10:n-10+won] = True
    i = paired_interval(b, a)
    assert i["change"] == pytest.approx((won-lost)/n) and i["low"] <= i["change"] <= i["high"]
    assert (i["low"] == i["high"] == 0) == (lost+won == 0)
    j = paired_interval(b, b, moved=True)
    assert j["high"] == -j["low"] == pytest.approx(1-.0125**(1/n), abs=1e-6) # Clopper-Pearson of 0 out of n

def test_one_prompt_says_nothing_of_others():
    "A group of one keeps its change, and its interval is everything"
    i = paired_interval(torch.tensor([3.1]), torch.tensor([3.2]))
    assert i["change"]==pytest.approx(.1, abs=1e-6) and i["low"]==-float("inf") and i["high"]==float("inf")


def test_paired_intervals_of_shares_hold_the_truth():
    g = torch.Generator().manual_seed(0)
    def holds():
        u = torch.rand(80, generator=g)
        b, a = u < .5, (u < .42)|(u > .97) # 8 points lost, 3 won
        i = paired_interval(b, a)
        return i["low"] <= -.05 <= i["high"]
    assert sum(holds() for _ in range(300)) >= .95*300

def test_nothing_changes_exactly_nothing(toy, before):
    was = weights(toy)
    a = audit(toy, component_edit(toy, {"1.0.0": 1.}, name="nothing"), plan=small, before=before)
    assert (a.changes[["change", "low", "high"]] == 0).all().all() and a.passed and a.first is None and not a.failed and not a.unsure
    assert set(a.untested) == {"kl", "loss", "wrong", "induction", "lag"}
    assert all("lacks" in r for r in a.verdicts.set_index("rule").loc[["kl", "loss", "wrong"]].reason)
    assert all(torch.equal(x, y) for x, y in zip(was, weights(toy)))

def test_removing_the_circuit_breaks_ioi_first_and_leaves_the_model_whole(toy, before):
    was = weights(toy)
    a = audit(toy, component_edit(toy, dict.fromkeys(["1.0.0", "1.0.1", "1.1.0", "1.1.1"], 0.)), plan=small, before=before)
    assert a.first == "ioi" and not a.passed and {"ioi", "lists"} == set(a.failed)
    assert all(torch.equal(x, y) for x, y in zip(was, weights(toy)))

def test_other_components_of_the_same_layer_do_not(toy, before):
    a = audit(toy, component_edit(toy, dict.fromkeys(["1.5.0", "1.5.1", "1.6.0", "1.6.1"], 0.)), plan=small, before=before)
    assert a.passed and not a.failed

def test_any_context_is_an_edit_and_an_error_in_it_is_not_swallowed(toy, before):
    from contextlib import contextmanager
    @contextmanager
    def silent_heads(model):
        with model.hooks([("blocks.1.attn.hook_z", lambda z, hook: z*0)]): yield
    a = audit(toy, silent_heads, plan=small, before=before)
    assert a.info["edit"]["name"] == "silent heads" and "ioi" in a.failed
    def broken(model): raise RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"): audit(toy, broken, plan=small, before=before)

def test_what_was_measured_differently_is_refused(toy, before):
    with pytest.raises(TalkingHeadsError, match="plan"): measure(toy, replace(small, ioi=30), against=before)
    with pytest.raises(TalkingHeadsError, match="seed|plan"): compare(before, measure(toy, replace(small, seed=7)))
    e = component_edit(toy, {"1.0.0": 0.})
    with edited(toy, e):
        with pytest.raises(EditError, match="already"): audit(toy, e, plan=small)
    for bad in (-1., float("nan"), float("inf")):
        with pytest.raises(TalkingHeadsError, match="Limits"): Budget(kl=bad)

def test_the_file_says_what_the_object_says(tmp_path):
    a = compare(*frame(ioi=-60))
    d = json.loads(a.save(tmp_path).read_text())
    assert (tmp_path/"audit.json").is_file() and d["passed"] is False and d["first"] == "ioi" and len(d["changes"]) == len(a.to_frame())
    assert [v["rule"] for v in d["verdicts"]] == a.verdicts.rule.tolist() and d["budget"]["kl"] == .02
    assert [v for v in d["verdicts"] if v["rule"] == "lag"][0]["value"] is None # untested, and JSON has no NaN
    assert "ioi" in a._repr_html_() and "nan" not in a._repr_html_()

def test_generations_equal_a_loop_without_cache(toy):
    "What `generate` gives is what repeated full passes give"
    toks = list(toy.tokenizer("Then , Mary and John went to the store .")["input_ids"])
    new = toy.original_model.generate(torch.tensor([toks]), max_new_tokens=6, do_sample=False, pad_token_id=2)[0, len(toks):].tolist()
    with torch.no_grad():
        for t in new:
            assert int(toy(torch.tensor([toks]))[0, -1].argmax()) == t
            toks.append(t)

@pytest.mark.slow
def test_planted_faults_on_smollm2():
    "Each fault in a real model fails by its own rule first; an edit that does nothing changes nothing at all"
    model = load_model("smollm2", device="cpu")
    plan = Plan(text=3, ioi=20, lists=(5,), per_template=8, per_form=4, induction=2, new_tokens=2)
    base = measure(model, plan)
    check = lambda e: audit(model, e, plan=plan, before=base)
    assert (check(component_edit(model, {"20.0.0": 1.})).changes.change == 0).all()
    assert check(component_edit(model, {"20.0.0": -4.})).first == "ioi"
    assert check(component_edit(model, {f"{l}.{h}.0": -6. for l in range(8, 24) for h in range(0, 9, 3)})).first in ("kl", "loss")
    trap = check(lambda m: planted_trap(m, 6.))
    assert trap.failed == ["wrong"] and trap.first == "wrong"
    only = check(lambda m: planted_trap(m, 6., [" still had the", " left in the shop was the", " bag held only the"]))
    assert only.failed == ["lag"] and only.first == "lag"
