"Verdict rules: yes to what was planted, never yes to noise, shuffled heads or random weights"
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import tiny
from talking_heads.core import *
from talking_heads.data import *
from talking_heads.composition import compose
from talking_heads.detection import *
from talking_heads.runs import read_results
from talking_heads.svd import *
from talking_heads.verdicts import *
from talking_heads.verdicts import _dealt, _isotropic_shares, _place, _shares

def said(results): return {v.claim: v.verdict for v in judge_claims(results)}

def effect():
    "A run in which everything holds"
    r = noise_results()
    r["removal"].update(fall=.2, ci=[.18, .22], relative=.8, largest_other=.1)
    r["removal"]["everywhere"] = {k: dict(score=s, ci=[s, s], logit_diff=1., accuracy=.9) for k, s in
                                  (("intact", .25), ("without 1.0.0", .05), ("random, components 0", .25), ("random, other heads 0", .24))}
    r["signal"].update(order=.95, names=.01, transfer=.99, transfer_ci=[.97, 1.])
    r["steering"] = {"3": dict(n=200, components=["1.0.0"], named=.95, ci=[.93, .97], top1=.9, looked=.9, random=.4, random_ci=[.37, .43])}
    r["crowding"] = dict(lengths=[dict(n_items=2, skill=.9, low=.85, high=.95, n=360), dict(n_items=10, skill=.2, low=.1, high=.3, n=360)], order=[], p_order=.001, p_position=.001)
    up = [dict(split=s, n_items=n, before=.4, after=.6, change=.2, low=.15, high=.25, n=200) for s in ("train", "held-out") for n in (5, 8)]
    r["lifting"]["learned"]["lists"] = up
    r["lifting"]["scaling"] = [dict(alpha=2., n_items=5, split="test", change=.05, low=.01, high=.09, n=200, chosen=True)]
    weights = dict(n_edges=10, component=.3, component_ci=[.2, .4], head=.1, lift=.2, lift_ci=[.1, .3], chance=.01, p=.001, median_component=2., median_head=9.)
    narrow = dict(n=10, share=.5, ci=[.4, .6], random=.1, random_ci=[.1, .1], excess=.2, excess_ci=[.1, .3])
    return r | dict(weights=dict(board={m: weights for m in "QKV"}, concentration={m: narrow for m in "QKV"}))

def test_everything_holds():
    assert set(said(effect()).values()) == {yes} and len(claims) == 9

@pytest.mark.parametrize("section,change,claim,verdict", [
    ("removal", dict(largest_other=.7), "removal", partly), ("removal", dict(relative=.2, everywhere={k: dict(score=.2) for k in ("intact", "without 1.0.0")}), "removal", no),
    ("signal", dict(names=.5), "signal", no), ("signal", dict(names=.2), "signal", partly), ("signal", dict(transfer_ci=[.4, 1.]), "signal", no),
    ("crowding", dict(p_order=.5, p_position=.5), "crowding", partly),
    ("audit", dict(unsure=["kl"]), "side_effects", partly), ("audit", dict(passed=False, failed=["wrong"]), "side_effects", no)])
def test_what_is_missing_costs_the_verdict(section, change, claim, verdict):
    r = effect()
    r[section] = r[section] | change
    assert said(r)[claim] == verdict

def test_controls_matter():
    for change in (dict(others=.95), dict(shuffled=.99)): # other components know the order as well; shuffled orders are sorted as well
        r = effect()
        r["signal"] |= change
        assert said(r)["signal"] != yes
    r = effect()
    r["removal"]["everywhere"]["random, other heads 0"]["score"] = .4 # a control that raises the score by 60%
    v = next(v for v in judge_claims(r) if v.claim=="removal")
    assert v.verdict == partly and "change it by 60%" in v.reason
    r = effect()
    r["lifting"]["learned"]["random"] = [x | dict(change=.19) for x in r["lifting"]["learned"]["lists"]]
    assert said(r)["lift"] == partly # only the scaling is left
    r["steering"]["3"] |= dict(random=.95, random_ci=[.93, .97])
    assert said(r)["index"] == no
    r["removal"]["everywhere"]["random, components 0"]["score"] = .1
    assert said(r)["removal"] == partly
    r["weights"]["board"]["K"] = r["weights"]["board"]["K"] | dict(lift=-.1, lift_ci=[-.2, 0.], p=.4)
    assert said(r)["components"] == partly and said(r)["weights_predict"] == partly

@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_noise_never_replicates(seed):
    assert yes not in said(noise_results(seed)).values()

def test_lists_of_one_order_only():
    r = effect()
    r["crowding"] |= dict(p_order=None, p_position=None)
    assert said(r)["crowding"] == partly

def test_missing_sections_are_untested():
    assert set(said({}).values()) == {untested}
    why = {c.section: "No forward pass." for c in claims.values()}
    assert {v.reason for v in judge_claims(dict(untested=why))} == {"No forward pass."}

def random_weights(seed=0, L=6, H=4, d=32, k=8):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)
    z = torch.zeros
    return weights_in_memory([LayerWeights(r(H, d, k), r(H, d, k), r(H, d, k), r(H, k, d), z(H, k), z(H, k), z(H, k), z(d)) for _ in range(L)])

pairs = {m: [(Head(a, h), Head(b, j)) for a, b in ((0, 3), (1, 4), (2, 5)) for h, j in ((0, 1), (1, 2))] for m in "QKV"}

@pytest.mark.parametrize("seed", range(4))
def test_random_weights_never_replicate(seed):
    r = dict(weights=weights_evidence(random_weights(seed), pairs, "made up", seed))
    assert yes not in said(r).values()

def test_planted_channels_replicate():
    "One component of each known writer is what its reader reads: all three claims about weights hold"
    w = random_weights()
    layers = [w[l] for l in range(6)]
    for m in "QKV":
        for a, b in pairs[m]:
            v = torch.linalg.svd(layers[a.layer].W_V[a.head]@layers[a.layer].W_O[a.head])[2][0]
            M = {"Q": layers[b.layer].W_Q, "K": layers[b.layer].W_K, "V": layers[b.layer].W_V}[m]
            M[b.head] += 60*torch.outer(v, torch.eye(8)[0])
    r = dict(weights=weights_evidence(weights_in_memory(layers), pairs, "planted"))
    got = said(r)
    assert got["low_rank"] == yes and got["weights_predict"] == yes
    mixed = dict(weights=weights_evidence(shuffled_heads(weights_in_memory(layers), 1), pairs, "shuffled"))
    assert yes not in said(mixed).values()

def test_shuffled_heads_are_the_same_heads():
    w = random_weights()
    s = shuffled_heads(w, 3)
    norms = lambda x: sorted(round(float(n), 4) for l in range(6) for n in (x[l].W_V@x[l].W_O).flatten(1).norm(dim=1))
    assert norms(w) == norms(s) and not torch.equal(w[0].W_Q, s[0].W_Q) and s.processing == w.processing

@pytest.mark.slow
def test_gpt2_weights(shared):
    w = attention_weights(str(shared/"gpt2-small-attention"), "raw")
    got = said(dict(weights=weights_evidence(w, known_edges["gpt2"], "literature")))
    assert got["weights_predict"] == partly and no in (got["low_rank"], got["components"])
    assert yes not in said(dict(weights=weights_evidence(shuffled_heads(w, 1), known_edges["gpt2"], "literature"))).values()

def test_dealt_p_against_average_precision():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 5, 3, generator=g)
    e = [(Head(0, 1), Head(2, 0)), (Head(1, 2), Head(2, 0)), (Head(0, 0), Head(4, 1))]
    place = _place(x)
    at = sorted(int(place[a.layer, a.head, b.layer, b.head]) for a, b in e)
    assert np.mean([(i+1)/p for i, p in enumerate(at)]) == pytest.approx(float(precision_and_roc(x, e)[0]), abs=1e-6)
    for a, b in e: x[a.layer, a.head, b.layer, b.head] = 9.
    assert dealt_p(x, e, 199) == pytest.approx(1/200, abs=.011)
    d = _dealt(e, 3, g)
    assert all(a.layer < b.layer for a, b in d) and sorted(b for _, b in d) == sorted(b for _, b in e)

def test_isotropic_shares_against_sampling():
    rng, g, d = np.random.default_rng(0), torch.Generator().manual_seed(0), 40
    S, spectrum = torch.tensor([3., 2., 1.]), torch.tensor([.6, .3, .1])
    V = torch.linalg.qr(torch.randn(4000, d, 3, generator=g))[0].mT
    direct = _shares((V[..., :3].square()*spectrum).sum(-1).T, S).mean()
    assert float(_isotropic_shares(spectrum, S, d, rng, 4000).mean()) == pytest.approx(float(direct), abs=.01)

def test_carried_over_and_spread():
    rng = np.random.default_rng(0)
    order, group = ["A", "B"]*60, [str(i//30) for i in range(120)]
    x = torch.tensor([-1. if o == "A" else 1. for o in order])+torch.tensor(rng.normal(0, .1, 120)).float()
    assert carried_over(x, order, group).all() and carried_over(-x, order, group).all()
    assert not carried_over(torch.cat([x[:30], -x[30:]]), order, group)[:30].any()
    df = pd.DataFrame(dict(n_items=[3]*100+[5]*100, order=["x", "y"]*100, correct=[True, False]*100))
    assert spread_p(df, "order", 199) <= .01 and spread_p(df.assign(order=rng.permutation(df.order)), "order", 199) > .01
    assert math.isnan(spread_p(df.assign(order="x"), "order")) and skill(.5, 2) == 0 and skill(1., 7) == 1

def test_class_edges():
    heads = pd.DataFrame([dict(cls=c, name=n, score=s, called=k) for c, n, s, k in (
        ("mover", "5.1", 1., True), ("inhibition", "3.0", .2, True), ("inhibition", "6.0", .3, True), ("previous_token", "1.1", .5, True), ("induction", "2.2", .4, False))])
    e = class_edges(heads)
    assert e["Q"] == [(Head(3, 0), Head(5, 1))] and e["K"] == [] and e["V"] == []

def test_verdict_table_escapes():
    v = judge_claims({})[0]
    assert "&lt;b&gt;" in verdict_table([v.__class__(v.claim, "<b>", v.verdict, v.reason, v.rule, v.control, {})])

@pytest.mark.slow
def test_toy_with_shuffled_heads(tmp_path):
    "The whole rerun on a trained model whose heads write in each other's places: nothing replicates"
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from talking_heads.checkpoints import find_checkpoint
    path = find_checkpoint("toy").path
    model = AutoModelForCausalLM.from_pretrained(path)
    blocks = model.transformer.h
    with torch.no_grad():
        H, (n, d) = model.config.n_head, blocks[0].attn.c_proj.weight.shape
        W = torch.cat([b.attn.c_proj.weight.view(H, n//H, d) for b in blocks])
        W = W[torch.randperm(len(W), generator=torch.Generator().manual_seed(0))].view(len(blocks), n, d)
        for b, w in zip(blocks, W): b.attn.c_proj.weight.copy_(w)
    model.save_pretrained(tmp_path/"shuffled")
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path/"shuffled")
    args = ["--model", str(tmp_path/"shuffled"), "--out", str(tmp_path/"run"), "-p", "how", "quick", "-p", "list_lengths", "[3,5,8]", "-p", "n_prompts", "60"]
    r = subprocess.run([str(Path(sys.executable).parent/"th_paper"), *args], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert yes not in {v["verdict"] for v in read_results(tmp_path/"run")["verdicts"]}
