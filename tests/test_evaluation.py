"Intervals against closed forms, summaries against pandas"
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.evaluation import *
from talking_heads.hooks import Readout, choice_logits, inhibition_score, logit_diff
from talking_heads.data import laundry_list
import tiny

@pytest.mark.parametrize("n", [1, 7, 60, 400])
def test_exact_interval_at_the_ends(n):
    "All right: the lower bound solves p^n = .025; all wrong is its mirror"
    ones, zeros = (interval(torch.full((n,), v)) for v in (True, False))
    assert ones["high"] == 1. and ones["low"] == pytest.approx(.025**(1/n), abs=1e-6)
    assert zeros["low"] == 0. and zeros["high"] == pytest.approx(1-.025**(1/n), abs=1e-6)

@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 80), seed=st.integers(0, 1000))
def test_bootstrap_is_seeded_and_holds_the_mean(n, seed):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    i = interval(x, seed)
    assert i == interval(x, seed) and i["low"] <= i["mean"] <= i["high"] and i["n"] == n

def test_bootstrap_width_is_the_standard_error():
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    i = interval(x)
    assert (i["high"]-i["low"])/2 == pytest.approx(1.96*float(x.std())/2000**.5, rel=.1)

@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(-5, 5)), min_size=1, max_size=40))
def test_summaries_equal_pandas(rows):
    df = pd.DataFrame(rows, columns=["g", "ok", "x"])
    for v in ("ok", "x"):
        s = summarise(df, v, "g").set_index("g")
        np.testing.assert_allclose(s["mean"], df.groupby("g")[v].mean(), atol=1e-9)
        assert s.n.tolist() == df.groupby("g").size().tolist()

def test_scores_by_hand():
    prompts = laundry_list(tiny.tokenizer(), 3, 3)
    logits = torch.zeros(3, 600)
    for i, p in enumerate(prompts): # right and on top; right among the items only; wrong
        logits[i, p.answer_id], logits[i, p.distractor_ids[0]] = [(3., 1.), (2., 1.), (1., 4.)][i]
    logits[1, 0] = 9.
    r = Readout(prompts, "END", logits, torch.zeros(3, 1, 1, 0), (), torch.zeros(3, 1, 1, 1), {})
    df = prompt_scores(r)
    assert df.correct.tolist() == [True, True, False] and df.top1.tolist() == [True, False, False] and df.logit_diff.tolist() == [2., 1., -3.]
    assert torch.equal(choice_logits(r)[0, :2], torch.tensor([3., 1.])) and torch.equal(logit_diff(r), torch.tensor([2., 1., -3.]))
    t = list_scores(df).set_index("measure")
    assert t.loc["among the items", "mean"] == pytest.approx(2/3) and t.loc["over the vocabulary", "mean"] == pytest.approx(1/3)
    assert t.loc["among the items", "chance"] == pytest.approx(1/3)

def test_inhibition_score_by_hand():
    a = torch.tensor([[[.6, .1, .2], [.4, .3, .1]]])
    assert inhibition_score(a).item() == pytest.approx(.15)

def test_attention_rows_add_up():
    prompts = laundry_list(tiny.tokenizer(), 3, 5)
    a = torch.rand(5, 2, 2, 2)/2
    r = Readout(prompts, "END", torch.zeros(5, 1), a, ("item1", "item2"), torch.zeros(5, 2, 2, 1), {})
    rows = attention_rows(r, ["1.0"])
    assert rows["mean"].sum() == pytest.approx(1., abs=1e-6) and rows.role.tolist() == ["item1", "item2", "other"]
    assert rows["mean"][0] == pytest.approx(float(a[:, 1, 0, 0].mean()), abs=1e-6)
