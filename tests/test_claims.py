"Verdict rules: they say replicates to what was planted, and never to noise, shuffled heads or random weights"

import json
import math
import subprocess
import sys
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import tiny
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.composition import compose
from talking_heads.weights.detection import *
from talking_heads.paper.sections import read_results
from talking_heads.svd import *
from talking_heads.paper.claims import *
from talking_heads.weights.board import _causal_ranks, _permuted_writers
from talking_heads.weights.board import *
from talking_heads.circuits.signal import *
from talking_heads.circuits.crowding import *
from talking_heads.circuits.scaling import *

import made_results as made


def said(results):
    return {v.claim: v.verdict for v in judge_claims(results)}


def effect():
    "A run in which everything holds"
    r = noise_results()
    r["audit"] = dict(
        passed=True,
        first=None,
        failed=[],
        unsure=[],
        untested=[],
        verdicts=[dict(rule="kl", verdict="pass", value=0.001, limit=0.02)],
    )
    r["removal"].update(fall=0.2, ci=[0.18, 0.22], relative=0.8, largest_other=0.1)
    r["removal"]["everywhere"] = {
        k: dict(score=s, ci=[s, s], logit_diff=1.0, accuracy=0.9)
        for k, s in (
            ("intact", 0.25),
            ("without 1.0.0", 0.05),
            ("random, components 0", 0.25),
            ("random, other heads 0", 0.24),
        )
    }
    r["signal"].update(order=0.95, names=0.01, transfer=0.99, transfer_ci=[0.97, 1.0])
    r["steering"] = {
        "3": dict(
            n=200,
            components=["1.0.0"],
            named=0.95,
            ci=[0.93, 0.97],
            top1=0.9,
            looked=0.9,
            random=0.4,
            random_ci=[0.37, 0.43],
        )
    }
    r["crowding"] = dict(
        lengths=[
            dict(n_items=2, skill=0.9, low=0.85, high=0.95, n=360),
            dict(n_items=10, skill=0.2, low=0.1, high=0.3, n=360),
        ],
        order=[],
        p_order=0.001,
        p_position=0.001,
    )
    up = [
        dict(split=s, n_items=n, before=0.4, after=0.6, change=0.2, low=0.15, high=0.25, n=200)
        for s in ("train", "held-out")
        for n in (5, 8)
    ]
    r["lifting"]["learned"]["lists"] = up
    r["lifting"]["scaling"] = [
        dict(alpha=2.0, n_items=5, split="test", change=0.05, low=0.01, high=0.09, n=200, chosen=True)
    ]
    weights = dict(
        n_edges=10,
        component=0.3,
        component_ci=[0.2, 0.4],
        head=0.1,
        lift=0.2,
        lift_ci=[0.1, 0.3],
        chance=0.01,
        p=0.001,
        median_component=2.0,
        median_head=9.0,
    )
    narrow = dict(n=10, share=0.5, ci=[0.4, 0.6], random=0.1, random_ci=[0.1, 0.1], excess=0.2, excess_ci=[0.1, 0.3])
    r |= single()
    return further(r) | dict(weights=dict(board={m: weights for m in "QKV"}, concentration={m: narrow for m in "QKV"}))


def further(r):
    "`r` where the claims about other tasks, three senders, choices and scaling hold as well"
    for x in r["abstraction"]["tasks"].values():
        x.update(fall=1.0, ci=[0.8, 1.2], over=dict(change=0.8, low=0.5, high=1.1))
    for s in r["map"]["by_n"].values():
        s["arms"]["senders, gradient"] |= dict(named=0.95, ci=[0.93, 0.97])
    for k in ("over_rival", "over_uniform"):
        r["rivals"][k] = dict(change=0.05, low=0.03, high=0.07)
    for x in r["rescaling"]:
        if x["arm"] == "senders":
            x.update(change=0.3, low=0.2, high=0.4)
    return r


def single():
    "Sections about single readers, components and channels in which everything holds"

    def felt(**falls):
        return {k: dict(fall=x, ci=[x - 0.02, x + 0.02]) for k, x in falls.items()}

    def turned(**means):
        return {k: dict(mean=x, ci=[x - 0.05, x + 0.05]) for k, x in means.items()}

    row = dict(reader="2.0", n=4, of=108, component="1.0.0", by_component=2.0, as_head=14.0)
    row |= dict(p_component=0.001, p_head=0.06)
    part = dict(n=64, rho=0.5, ci=[0.4, 0.6], p=0.001, rank=1.0, elsewhere=0.1, excess=0.4, excess_ci=[0.2, 0.6])
    swaps = dict(other_order=felt(same=0.5, all=0.4), same_order=felt(names=0.01, all=0.02), random=0.01)
    flip = dict(preference=turned(intact=0.4, turned=-0.1, far=-0.3, random=0.4))
    both = felt(all=0.2, loud=0.15, random=0.01)
    channel = dict(writers=["0.0"], readers=["1.0"], n=60, intact=0.3, removed=both, interchanged=both)
    return dict(
        readers=dict(
            source="literature", modes=dict(Q=dict(n=8, lift=2.0, lift_ci=[1.0, 3.0], readers=[row, dict(row)]))
        ),
        prediction=dict(
            n=60,
            readers=["2.0"],
            senders=["1.0"],
            others=["1.1"],
            reach=dict(fall=0.2, ci=[0.1, 0.3]),
            parts=dict(senders=part, layers=dict(part)),
        ),
        pointer=dict(component="1.0.0", n=60, controls=["1.0.1"], flip=flip, interchange=swaps),
        values_and_keys=dict(modes=dict(V=channel, K=deepcopy(channel)), why={}),
    )


def test_everything_holds():
    assert set(said(effect()).values()) == {replicates}


@pytest.mark.parametrize(
    "section,change,claim,verdict",
    [
        ("removal", dict(largest_other=0.7), "removal", partly),
        (
            "removal",
            dict(relative=0.2, everywhere={k: dict(score=0.2) for k in ("intact", "without 1.0.0")}),
            "removal",
            not_replicated,
        ),
        ("signal", dict(names=0.5), "signal", not_replicated),
        ("signal", dict(names=0.2), "signal", partly),
        ("signal", dict(transfer_ci=[0.4, 1.0]), "signal", not_replicated),
        ("crowding", dict(p_order=0.5, p_position=0.5), "crowding", partly),
        ("audit", dict(unsure=["kl"]), "side_effects", partly),
        ("audit", dict(passed=False, failed=["wrong"]), "side_effects", not_replicated),
    ],
)
def test_what_is_missing_costs_the_verdict(section, change, claim, verdict):
    r = effect()
    r[section] = r[section] | change
    assert said(r)[claim] == verdict


def test_controls_matter():
    for change in (
        dict(others=0.95),
        dict(shuffled=0.99),
    ):  # other components know the order as well; shuffled orders are sorted as well
        r = effect()
        r["signal"] |= change
        assert said(r)["signal"] != replicates
    r = effect()
    r["removal"]["everywhere"]["random, other heads 0"]["score"] = 0.4  # a control that raises the score by 60%
    v = next(v for v in judge_claims(r) if v.claim == "removal")
    assert v.verdict == partly and "change it by 60%" in v.reason
    r = effect()
    r["lifting"]["learned"]["random"] = [x | dict(change=0.19) for x in r["lifting"]["learned"]["lists"]]
    assert said(r)["lift"] == partly  # only the scaling is left
    r["steering"]["3"] |= dict(random=0.95, random_ci=[0.93, 0.97])
    assert said(r)["index"] == not_replicated
    r["removal"]["everywhere"]["random, components 0"]["score"] = 0.1
    assert said(r)["removal"] == partly
    r["weights"]["board"]["K"] = r["weights"]["board"]["K"] | dict(lift=-0.1, lift_ci=[-0.2, 0.0], p=0.4)
    assert said(r)["components"] == partly and said(r)["weights_predict"] == partly


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_noise_never_replicates(seed):
    assert replicates not in said(noise_results(seed)).values()


def test_lists_of_one_order_only():
    r = effect()
    r["crowding"] |= dict(p_order=None)
    assert said(r)["crowding"] == replicates  # places of the answer alone
    r["crowding"] |= dict(p_position=None)
    assert said(r)["crowding"] == untested
    assert said(effect() | dict(crowding=effect()["crowding"] | dict(p_order=math.nan)))["crowding"] == untested


@pytest.mark.parametrize(
    "claim,path,value,verdict",
    [
        ("readers", ["modes", "Q", "lift_ci"], [-0.5, 3.0], partly),
        ("readers", ["modes", "Q", "readers", 1, "p_component"], 0.5, replicates),  # half of the readers are enough
        ("prediction", ["parts", "senders", "excess_ci"], [-0.1, 0.6], partly),  # loud for everybody
        ("prediction", ["parts", "layers", "p"], 0.2, partly),
        ("pointer", ["interchange", "same_order", "names", "fall"], 0.3, not_replicated),  # names count
        ("pointer", ["interchange", "random"], 0.15, partly),
        ("pointer", ["interchange", "other_order", "all", "ci"], [-0.1, 0.9], not_replicated),
        ("pointer", ["flip", "preference", "far", "ci"], [-0.9, 0.1], partly),
        ("pointer", ["flip", "preference", "random", "mean"], 0.1, partly),
        ("values_and_keys", ["modes", "V", "removed", "random", "fall"], 0.1, partly),
        ("values_and_keys", ["modes", "K", "interchanged", "loud", "fall"], 0.01, partly),
    ],
)
def test_single_components_and_their_controls(claim, path, value, verdict):
    assert said(effect() | {claim: put(effect()[claim], path, lambda _: value)})[claim] == verdict


def test_single_components_without_heads_or_room():
    r = effect()
    r["readers"]["modes"] = {}
    assert judged(r, "readers").why == "not_run" and judged(r | dict(heads=made.heads()), "readers").why == "no_heads"
    r = effect()
    for row in r["readers"]["modes"]["Q"]["readers"]:
        row |= dict(n=1, of=12)  # the first of twelve is nothing rare with two readers
    assert judged(r, "readers").why == "no_room"
    r["prediction"]["parts"].pop("senders")
    assert "not testable: senders" in judged(r, "prediction").reason and said(r)["prediction"] == replicates
    r["values_and_keys"] = dict(modes={}, why=dict(V="no such heads", K="no such heads"))
    assert judged(r, "values_and_keys").why == "no_heads"


# When there is nothing to measure


def judged(r, claim):
    return next(v for v in judge_claims(r) if v.claim == claim)


def test_noise_with_reach_fails_and_stillness_cannot_be_tested():
    "Both directions: something moved, but not as claimed; and nothing moved at all"
    assert set(list(said(noise_results()).values())[3:]) == {not_replicated}
    assert set(said(unmoved_results()).values()) == {untested}
    assert {v.why for v in judge_claims(unmoved_results())[3:]} == {"unmoved", "no_skill", "no_lift", "no_room"}


def numbers(x, at=()):
    "Paths of all numbers inside"
    if isinstance(x, bool) or not isinstance(x, (int, float, dict, list)):
        return []
    if isinstance(x, (int, float)):
        return [at]
    return [p for k, v in (x.items() if isinstance(x, dict) else enumerate(x)) for p in numbers(v, (*at, k))]


def put(r, path, f):
    "`r` with one number changed, in a copy"
    r = deepcopy(r)
    x = r
    for k in path[:-1]:
        x = x[k]
    x[path[-1]] = f(x[path[-1]])
    return r


@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([effect, noise_results]))
@settings(max_examples=40, deadline=None)
def test_no_effect_at_all_is_never_a_verdict(seed, scale, run):
    "Effects scaled to 0, intact ones among them, with intervals of any width around 0"
    r = deepcopy(run() if run is effect else run(seed))
    x = r["removal"]
    x |= dict(fall=0.0, ci=[-scale, scale], relative=0.0, largest_other=0.0)
    x.pop("head", None)
    x["everywhere"] = {k: dict(score=0.2, ci=[0.2 - scale, 0.2 + scale]) for k in x["everywhere"]}
    for n, s in r["steering"].items():
        around = [1 / int(n) - scale, 1 / int(n) + scale]
        s |= dict(named=1 / int(n), ci=around, random=1 / int(n), random_ci=around, moved=0.0)
    for row in r["lifting"]["scaling"]:
        row |= dict(change=0.0, low=0.0, high=0.0, moved=0.0)
    for row in r["lifting"]["learned"]["lists"]:
        row |= dict(change=0.0, low=0.0, high=0.0)
    r["audit"] = made.audit() | dict(failed=[], passed=True)
    for row in r["crowding"]["lengths"]:
        row |= dict(skill=0.0, low=-scale, high=scale)
    got = said(r)
    assert {got[k] for k in ("removal", "signal", "index", "crowding", "lift", "side_effects")} == {untested}


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_broken_number_is_never_a_verdict(data):
    "Whichever number a claim's section holds: NaN or infinite, it decides nothing"
    r = effect()
    section = data.draw(st.sampled_from(sorted(r)))
    path = data.draw(st.sampled_from(numbers(r[section])))
    broken = r | {section: put(r[section], path, lambda _: data.draw(st.sampled_from([math.nan, math.inf, -math.inf])))}
    got = said(broken)
    for c in claims.values():
        read = any(p.split(".")[0] in ("*", str(path[0])) for p in c.reads)
        assert not (c.section == section and read) or got[c.key] == untested, (c.key, path)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_missing_number_is_never_a_verdict(data):
    "Every number that a claim says it reads: taken out or null, the claim cannot be tested"
    r = effect()
    c = data.draw(st.sampled_from([c for c in claims.values() if c.reads]))
    path = [p for p in numbers(r[c.section]) if any(matches(p, q) for q in c.reads)]
    got = judged(r | {c.section: put(r[c.section], data.draw(st.sampled_from(path)), lambda _: None)}, c.key)
    assert got.verdict == untested and got.why == "no_numbers"


def matches(path, pattern):
    parts = pattern.split(".")
    return len(parts) == len(path) and all(q in ("*", str(p)) for p, q in zip(path, parts))


def test_the_intact_score_must_be_there():
    r = effect()
    r["removal"]["everywhere"]["intact"]["ci"] = [-0.01, 0.5]
    for k in ("removal", "signal"):
        assert judged(r, k).why == "no_effect" and "[-0.010, 0.500]" in judged(r, k).reason
    assert said(r)["low_rank"] == replicates  # pairs from the literature do not depend on it
    r["weights"]["board_edges"] = "found in this model by what heads do"
    v = judged(r, "weights_predict")
    assert v.verdict == partly and "not testable: The movers' inhibition score" in v.reason  # keys alone are left
    r.pop("removal")
    r["inhibition"] = dict(score=0.02, ci=[-0.03, 0.07], n=60)
    r["heads"] = made.heads()
    assert judged(r, "removal").why == judged(r, "signal").why == "no_effect"


def test_what_the_whole_head_says_bounds_its_components():
    r = effect()
    r["removal"] |= dict(fall=0.004, ci=[-0.01, 0.02], relative=0.02, head=dict(fall=0.2, ci=[0.18, 0.22]))
    r["removal"]["everywhere"] = {k: dict(score=0.25, ci=[0.2, 0.3]) for k in r["removal"]["everywhere"]}
    assert (
        said(r)["removal"] == not_replicated and judged(r, "signal").why == "unmoved"
    )  # the head speaks, this component does not
    r["removal"]["head"] = dict(fall=0.001, ci=[-0.01, 0.012])
    assert judged(r, "removal").why == "unmoved" and "Silencing all of head 1.0" in judged(r, "removal").reason


def test_steering_without_reach():
    r, still = effect(), dict(named=1 / 3, ci=[1 / 3, 1 / 3], random=1 / 3, random_ci=[1 / 3, 1 / 3])
    r["steering"]["3"] |= still
    assert judged(r, "index").why == "unmoved"
    r["steering"]["5"] = dict(effect()["steering"]["3"])
    v = judged(r, "index")
    assert v.verdict == replicates and "not testable: N=3" in v.reason
    r["steering"]["5"] |= dict(named=0.2, ci=[0.17, 0.23], random=0.21, random_ci=[0.18, 0.24], moved=0.6)
    assert said(r)["index"] == not_replicated  # it moved much, to no target
    r["steering"]["5"]["moved"] = 0.01
    assert judged(r, "index").why == "unmoved"
    r = effect() | dict(laundry_list=dict(by_n={"3": dict(accuracy=0.35, ci=[0.3, 0.4])}))
    assert judged(r, "index").why == "no_skill"


def test_a_ceiling_cannot_be_lifted():
    r = effect()
    for x in (*r["lifting"]["learned"]["lists"], *r["lifting"]["scaling"]):
        x |= dict(before=0.99, change=0.0, low=-0.01, high=0.01)
    v = judged(r, "lift")
    assert v.why == "no_room" and "0.99" in v.reason and "nothing to lift" in v.reason
    r["lifting"]["scaling"][0] |= dict(before=0.4, change=0.001)
    v = judged(r, "lift")  # representations fail, weights stay open
    assert v.verdict == untested and "this half fails" in v.reason
    r["lifting"]["scaling"][0] |= dict(change=0.1, low=0.05, high=0.15)
    assert said(r)["lift"] == partly
    narrow = r["weights"]["concentration"]
    for m in narrow:
        narrow[m] = narrow[m] | dict(random=0.9)
    assert judged(r, "low_rank").why == "no_room"
    same = r["weights"]["board"]["Q"] | dict(head=1.0, component=1.0, lift=0.0, lift_ci=[0.0, 0.0])
    r["weights"]["board"] = {m: same for m in "QKV"}
    assert judged(r, "components").why == "no_room"
    r["weights"]["board"] = {m: same | dict(component=0.5, lift=-0.5, lift_ci=[-0.7, -0.2]) for m in "QKV"}
    assert said(r)["components"] == not_replicated  # behind is an answer


def test_halves_that_were_not_run():
    r = effect()
    r["lifting"].pop("learned")
    assert said(r)["lift"] == partly and judged(r, "side_effects").why == "not_run"
    r["lifting"]["scaling"][0] |= dict(low=-0.01)
    assert said(r)["lift"] == untested


def test_an_edit_that_does_nothing_costs_nothing():
    r = effect()
    small = dict(change=0.01, low=-0.02, high=0.04)
    r["lifting"]["learned"]["lists"] = [x | small for x in r["lifting"]["learned"]["lists"]]
    assert judged(r, "side_effects").why == "no_lift"
    r["audit"] |= dict(passed=False, failed=["kl"])
    assert said(r)["side_effects"] == not_replicated  # a price without a gain is a price
    r["audit"]["verdicts"] = [x | dict(verdict="untested") for x in r["audit"]["verdicts"]]
    assert judged(r, "side_effects").why == "not_run"


def test_why_sections_are_missing():
    "No such heads is not the same as a model that cannot do the task, or a part that was left out"
    r = made.no_heads() | dict(untested={})
    assert {judged(r, k).why for k in ("removal", "signal", "index")} == {"no_heads"}
    r["ioi"] |= dict(accuracy=0.52, accuracy_ci=[0.45, 0.58])
    assert judged(r, "removal").why == "no_skill" and "0.52 [0.45, 0.58]" in judged(r, "removal").reason
    assert judged(made.without(made.complete(), "steering"), "index").why == "not_run"
    assert judged(made.weights_only(), "removal").reason == "It cannot run forward."


def test_counts_keep_the_untestable_apart():
    text = verdict_counts(judge_claims(unmoved_results()))
    assert text.startswith(f"none could be judged; {len(claims)} cannot be tested here (")
    assert "replicate" not in text.split("(")[0]
    v = judge_claims(noise_results())
    assert f"{len(claims) - 3} does not replicate; 3 cannot be tested here (3: " in verdict_counts(v)
    assert verdict_counts([asdict(x) for x in v]) == verdict_counts(v) and verdict_counts([]) == "not judged"
    assert all(x.why in lacks for x in judge_claims(unmoved_results()))
    assert {x.why for x in judge_claims(effect())} == {""}


def test_missing_sections_are_untested():
    assert set(said({}).values()) == {untested}
    why = {c.section: "No forward pass." for c in claims.values()}
    assert {v.reason for v in judge_claims(dict(untested=why))} == {"No forward pass."}


def random_weights(seed=0, L=6, H=4, d=32, k=8):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)
    z = torch.zeros
    return weights_in_memory(
        [
            LayerWeights(r(H, d, k), r(H, d, k), r(H, d, k), r(H, k, d), z(H, k), z(H, k), z(H, k), z(d))
            for _ in range(L)
        ]
    )


pairs = {m: [(Head(a, h), Head(b, j)) for a, b in ((0, 3), (1, 4), (2, 5)) for h, j in ((0, 1), (1, 2))] for m in "QKV"}


@pytest.mark.parametrize("seed", range(4))
def test_random_weights_never_replicate(seed):
    r = dict(weights=weights_evidence(random_weights(seed), pairs, "made up", seed=seed))
    assert replicates not in said(r).values()


def test_planted_channels_replicate():
    "One component of each known writer is what its reader reads: all three claims about weights hold"
    w = random_weights()
    layers = [w[l] for l in range(6)]
    for m in "QKV":
        for a, b in pairs[m]:
            v = torch.linalg.svd(layers[a.layer].W_V[a.head] @ layers[a.layer].W_O[a.head])[2][0]
            M = {"Q": layers[b.layer].W_Q, "K": layers[b.layer].W_K, "V": layers[b.layer].W_V}[m]
            M[b.head] += 60 * torch.outer(v, torch.eye(8)[0])
    r = dict(weights=weights_evidence(weights_in_memory(layers), pairs, "planted"))
    got = said(r)
    assert got["low_rank"] == replicates and got["weights_predict"] == replicates
    mixed = dict(weights=weights_evidence(shuffled_heads(weights_in_memory(layers), 1), pairs, "shuffled"))
    assert replicates not in said(mixed).values()


def test_shuffled_heads_are_the_same_heads():
    w = random_weights()
    s = shuffled_heads(w, 3)
    norms = lambda x: sorted(round(float(n), 4) for l in range(6) for n in (x[l].W_V @ x[l].W_O).flatten(1).norm(dim=1))
    assert norms(w) == norms(s) and not torch.equal(w[0].W_Q, s[0].W_Q) and s.processing == w.processing


@pytest.mark.slow
def test_gpt2_weights(shared):
    w = attention_weights(str(shared / "gpt2-small-attention"), "raw")
    got = said(dict(weights=weights_evidence(w, known_edges["gpt2"], "literature")))
    assert got["weights_predict"] == partly and not_replicated in (got["low_rank"], got["components"])
    assert (
        replicates
        not in said(dict(weights=weights_evidence(shuffled_heads(w, 1), known_edges["gpt2"], "literature"))).values()
    )


def test_permuted_p_against_average_precision():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 5, 3, generator=g)
    e = [(Head(0, 1), Head(2, 0)), (Head(1, 2), Head(2, 0)), (Head(0, 0), Head(4, 1))]
    place = _causal_ranks(x)
    at = sorted(int(place[a.layer, a.head, b.layer, b.head]) for a, b in e)
    assert np.mean([(i + 1) / p for i, p in enumerate(at)]) == pytest.approx(
        float(precision_and_roc(x, e)[0]), abs=1e-6
    )
    for a, b in e:
        x[a.layer, a.head, b.layer, b.head] = 9.0
    assert permuted_p(x, e, n=199) == pytest.approx(1 / 200, abs=0.011)
    d = _permuted_writers(e, 3, g)
    assert all(a.layer < b.layer for a, b in d) and sorted(b for _, b in d) == sorted(b for _, b in e)


def test_isotropic_shares_against_sampling():
    rng, g, d = np.random.default_rng(0), torch.Generator().manual_seed(0), 40
    S, spectrum = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.6, 0.3, 0.1])
    V = torch.linalg.qr(torch.randn(4000, d, 3, generator=g))[0].mT
    direct = loudest_share((V[..., :3].square() * spectrum).sum(-1).T, S).mean()
    assert float(isotropic_shares(spectrum, S, d, rng, n=4000).mean()) == pytest.approx(float(direct), abs=0.01)


def test_sorted_by_others_and_spread():
    rng = np.random.default_rng(0)
    order, group = ["A", "B"] * 60, [str(i // 30) for i in range(120)]
    x = torch.tensor([-1.0 if o == "A" else 1.0 for o in order]) + torch.tensor(rng.normal(0, 0.1, 120)).float()
    assert sorted_by_others(x, order, group).all() and sorted_by_others(-x, order, group).all()
    assert not sorted_by_others(torch.cat([x[:30], -x[30:]]), order, group)[:30].any()
    df = pd.DataFrame(dict(n_items=[3] * 100 + [5] * 100, order=["x", "y"] * 100, correct=[True, False] * 100))
    assert (
        spread_p(df, "order", 199) <= 0.01 and spread_p(df.assign(order=rng.permutation(df.order)), "order", 199) > 0.01
    )
    assert math.isnan(spread_p(df.assign(order="x"), "order")) and skill(0.5, 2) == 0 and skill(1.0, 7) == 1


def test_class_edges():
    heads = pd.DataFrame(
        [
            dict(cls=c, name=n, score=s, called=k)
            for c, n, s, k in (
                ("mover", "5.1", 1.0, True),
                ("inhibition", "3.0", 0.2, True),
                ("inhibition", "6.0", 0.3, True),
                ("previous_token", "1.1", 0.5, True),
                ("induction", "2.2", 0.4, False),
            )
        ]
    )
    e = class_edges(heads)
    assert e["Q"] == [(Head(3, 0), Head(5, 1))] and e["K"] == [] and e["V"] == []


def test_verdict_table_escapes():
    v = judge_claims({})[0]
    assert "&lt;b&gt;" in verdict_table([v.__class__(v.claim, "<b>", v.verdict, v.reason, v.rule, v.control, {})])


@pytest.mark.slow
def test_toy_with_shuffled_heads(tmp_path):
    "The whole rerun on a trained model whose heads write in each other's places: nothing replicates"
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from talking_heads.base.checkpoints import find_checkpoint

    path = find_checkpoint("toy").path
    model = AutoModelForCausalLM.from_pretrained(path)
    blocks = model.transformer.h
    with torch.no_grad():
        H, (n, d) = model.config.n_head, blocks[0].attn.c_proj.weight.shape
        W = torch.cat([b.attn.c_proj.weight.view(H, n // H, d) for b in blocks])
        W = W[torch.randperm(len(W), generator=torch.Generator().manual_seed(0))].view(len(blocks), n, d)
        for b, w in zip(blocks, W):
            b.attn.c_proj.weight.copy_(w)
    model.save_pretrained(tmp_path / "shuffled")
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path / "shuffled")
    args = [
        "--model",
        str(tmp_path / "shuffled"),
        "--out",
        str(tmp_path / "run"),
        "-p",
        "how",
        "quick",
        "-p",
        "list_lengths",
        "[3,5,8]",
        "-p",
        "n_prompts",
        "60",
    ]
    r = subprocess.run([str(Path(sys.executable).parent / "th_paper"), *args], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert replicates not in {v["verdict"] for v in read_results(tmp_path / "run")["verdicts"]}


# What an intervention moved, and what stands beside


def test_moved_is_the_share_of_prompts_that_depend_on_the_target():
    named = {0: [1, 1, 1], 1: [1, 2, 3], 2: [2, 2, 3], 3: [3, 3, 3]}
    frame = pd.DataFrame(
        [dict(prompt=b, target=t + 1, item=i) for b, items in named.items() for t, i in enumerate(items)]
    )
    assert moved_share(frame) == 0.5


def test_scores_beside_change_no_verdict():
    w = random_weights()
    alone = weights_evidence(w, pairs, "made up")
    both = weights_evidence(w, pairs, "made up", beside=random_weights(1))
    beside = both.pop("beside")
    assert both == alone and beside["board"]["Q"] != alone["board"]["Q"] and beside["processing"] == "raw"
    assert said(dict(weights=alone)) == said(dict(weights=both | dict(beside=beside)))


def test_no_inhibition_head_without_inhibition(tmp_path):
    "Where the untouched score's interval includes 0, a fall of it is noise and no head is called"
    from talking_heads.circuits.finding import _director_rows
    from talking_heads.data import ioi_task
    from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator
    from talking_heads.circuits.finding import inhibition_score
    from talking_heads.hooks import load_model, readout, task_args

    model = load_model(str(tiny.save("gpt2", tmp_path / "m")), device="cpu")
    prompts = ioi(**task_args(model), n=24)
    att, seen = readout(model, prompts).attention, set()
    for h in range(4):
        intact = inhibition_score(att[:, [2], [h]]).double()
        there = bool(bootstrap_ci(intact, generator=derive_generator(0, "intact"))[0] > 0)
        rows = _director_rows(model, prompts, ioi_task.roles, ioi_task.classes[2], [Head(2, h)], 0)
        assert there or not rows.called.any()
        seen.add(there)
    assert False in seen


def test_pairs_without_a_score_rank_last():
    "A head that writes nothing is no known pair's rival"
    x = torch.rand(3, 2, 3, 2, generator=torch.Generator().manual_seed(0))
    x[1, 1] = float("nan")
    ranks = _causal_ranks(x)
    causal = ranks[ranks > 0]
    assert sorted(causal.tolist()) == list(range(1, 13)) and sorted(ranks[1, 1, 2].tolist()) == [11, 12]
    ap, _ = precision_and_roc(x, [(Head(0, 0), Head(2, 1))])
    assert 1 / int(ranks[0, 0, 2, 1]) == pytest.approx(float(ap))
