"Intervals against closed forms and in simulation, pairs and families against brute force, summaries against pandas"

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

from talking_heads.base.core import *
from talking_heads.evaluation import *
from talking_heads.hooks import Readout, choice_logits, load_model, logit_diff, readout, task_args
from talking_heads.circuits.finding import inhibition_score
from talking_heads.data import laundry_list
import tiny


@pytest.mark.parametrize("n", [1, 7, 60, 400])
def test_exact_interval_at_the_ends(n):
    "All right: the lower bound solves p^n = .025; all wrong is its mirror"
    ones, zeros = (interval(torch.full((n,), v)) for v in (True, False))
    assert ones["high"] == 1.0 and ones["low"] == pytest.approx(0.025 ** (1 / n), abs=1e-6)
    assert zeros["low"] == 0.0 and zeros["high"] == pytest.approx(1 - 0.025 ** (1 / n), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 80), seed=st.integers(0, 1000))
def test_bootstrap_is_seeded_and_holds_the_mean(n, seed):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    i = interval(x, seed)
    assert i == interval(x, seed) and i["low"] <= i["mean"] <= i["high"] and i["n"] == n


def test_bootstrap_width_is_the_standard_error():
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    i = interval(x)
    assert (i["high"] - i["low"]) / 2 == pytest.approx(1.96 * float(x.std()) / 2000**0.5, rel=0.1)


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
    for i, p in enumerate(prompts):  # right and on top; right among the items only; wrong
        logits[i, p.answer_id], logits[i, p.distractor_ids[0]] = [(3.0, 1.0), (2.0, 1.0), (1.0, 4.0)][i]
    logits[1, 0] = 9.0
    r = Readout(prompts, "END", logits, torch.zeros(3, 1, 1, 0), (), torch.zeros(3, 1, 1, 1), {})
    df = prompt_scores(r)
    assert (
        df.correct.tolist() == [True, True, False]
        and df.top1.tolist() == [True, False, False]
        and df.logit_diff.tolist() == [2.0, 1.0, -3.0]
    )
    assert torch.equal(choice_logits(r)[0, :2], torch.tensor([3.0, 1.0])) and torch.equal(
        logit_diff(r), torch.tensor([2.0, 1.0, -3.0])
    )
    t = list_scores(df).set_index("measure")
    assert t.loc["among the items", "mean"] == pytest.approx(2 / 3) and t.loc[
        "over the vocabulary", "mean"
    ] == pytest.approx(1 / 3)
    assert t.loc["among the items", "chance"] == pytest.approx(1 / 3)


def test_inhibition_score_by_hand():
    a = torch.tensor([[[0.6, 0.1, 0.2], [0.4, 0.3, 0.1]]])
    assert inhibition_score(a).item() == pytest.approx(0.15)


def test_attention_rows_add_up():
    prompts = laundry_list(tiny.tokenizer(), 3, 5)
    a = torch.rand(5, 2, 2, 2) / 2
    r = Readout(prompts, "END", torch.zeros(5, 1), a, ("item1", "item2"), torch.zeros(5, 2, 2, 1), {})
    rows = attention_rows(r, ["1.0"])
    assert rows["mean"].sum() == pytest.approx(1.0, abs=1e-6) and rows.role.tolist() == ["item1", "item2", "other"]
    assert rows["mean"][0] == pytest.approx(float(a[:, 1, 0, 0].mean()), abs=1e-6)


# intervals of several kinds


@pytest.mark.parametrize("n", [1, 7, 60, 333])
def test_percentile_is_transformer_lens_bootstrap(n):
    "Stored numbers were made by TransformerLens' function; counts must not change them"
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)).double()
    low, high = bootstrap_ci(x, generator=derive_generator(3, "interval"))
    i = interval(x, 3)
    assert i["low"] == pytest.approx(float(low), abs=1e-12) and i["high"] == pytest.approx(float(high), abs=1e-12)


def test_wilson_solves_its_equation():
    "Its ends are the rates at which the share seen is 1.96 standard errors away"
    x = torch.tensor([True] * 13 + [False] * 27)
    i = interval(x, how="wilson")
    for p in (i["low"], i["high"]):
        assert abs(13 / 40 - p) / math.sqrt(p * (1 - p) / 40) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 30, 59, 999])
def test_t_quantile_by_integration(df):
    "95% of the density lies inside"
    t = torch.linspace(-1, 1, 400001).double() * t_quantile(df)
    density = (
        (1 + t * t / df) ** (-(df + 1) / 2)
        * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2))
        / math.sqrt(df * math.pi)
    )
    assert float(torch.trapezoid(density, t)) == pytest.approx(0.95, abs=1e-6)


def test_t_quantile_meets_its_limit():
    assert t_quantile(1001) == pytest.approx(t_quantile(1000), abs=1e-5) and t_quantile(10**9) == pytest.approx(
        1.959964, abs=1e-6
    )


def test_studentised_by_hand():
    "The same draws, one resample at a time"
    x = torch.tensor([0.0, 1.0, 1.0, 4.0, 9.0, 16.0]).double()
    g, n, T = derive_generator(5, "interval"), 6, []
    for i in range(10):
        for row in torch.randint(0, n, (100, n), generator=g):
            y = x[row]
            T.append(
                float((y.mean() - x.mean()) / max(float(y.std()) / math.sqrt(n), 0.05 * float(x.std()) / math.sqrt(n)))
            )
    q = np.quantile(T, [0.025, 0.975])
    i, se = interval(x, 5, how="studentised"), float(x.std()) / math.sqrt(n)
    assert i["low"] == pytest.approx(float(x.mean()) - q[1] * se) and i["high"] == pytest.approx(
        float(x.mean()) - q[0] * se
    )


def test_batches_are_single_samples():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 20, generator=g)
    for how, y, c in (
        ("percentile", x, None),
        ("studentised", x, None),
        ("t", x, None),
        ("exact", x > 0, None),
        ("wilson", x > 0, None),
        ("t", x, [0, 1] * 10),
        ("percentile", x, [0, 1] * 10),
        ("t", x > 0, [0, 1, 2, 3] * 5),
    ):
        low, high = bounds(y, how, 1, c)
        for j in range(4):
            i = interval(y[j], 1, c, how)
            assert (i["low"], i["high"]) == pytest.approx((float(low[j]), float(high[j])), abs=1e-12), (how, c)


# over templates


def test_clusters_of_one_are_plain_t():
    x = torch.randn(17, generator=torch.Generator().manual_seed(1))
    a, b = interval(x, how="t"), interval(x, clusters=range(17))
    assert b.pop("clusters") == 17 and a == pytest.approx(b)


def test_balanced_clusters_are_t_of_their_means():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(2)).double()
    i, m = interval(x.flatten(), clusters=[c for c in "abcde" for _ in range(8)]), x.mean(1)
    half = t_quantile(4) * float(m.std()) / math.sqrt(5)
    assert i["clusters"] == 5 and (i["low"], i["high"]) == pytest.approx(
        (float(m.mean()) - half, float(m.mean()) + half)
    )


def test_resampled_clusters_stay_between_the_extremes():
    x = torch.cat([torch.full((10,), v) for v in (0.0, 1.0, 5.0)])
    i = interval(x, clusters=[0] * 10 + [1] * 10 + [2] * 10, how="percentile")
    assert i["low"] == 0.0 and i["high"] == 5.0


def test_rates_over_clusters_stay_rates():
    right = torch.tensor([True] * 30 + [False] * 2 + [True] * 32)
    i = interval(right, clusters=[0] * 16 + [1] * 16 + [2] * 16 + [3] * 16)
    assert 0 <= i["low"] < i["mean"] <= i["high"] == 1.0
    all_right = interval(
        torch.ones(40, dtype=torch.bool), clusters=[0, 1] * 20
    )  # no spread between clusters: the prompts' own uncertainty
    assert (
        all_right["low"] == pytest.approx(interval(torch.ones(40, dtype=torch.bool))["low"])
        and all_right["high"] == 1.0
    )


def test_summaries_over_templates():
    df = pd.DataFrame(dict(template=list("aabbcc"), x=[1.0, 2, 3, 4, 5, 9]))
    s = summarise(df, "x", clusters="template")
    assert (
        s.clusters[0] == 3
        and s["mean"][0] == 4
        and s.low[0] == pytest.approx(interval(torch.tensor(df.x.to_numpy()), clusters=df.template)["low"])
    )


@pytest.mark.parametrize(
    "x,kw,says",
    [
        (torch.randn(4), dict(clusters=["a"] * 4), "one cluster"),
        (torch.randn(4), dict(clusters=["a", "b"]), "2 cluster labels"),
        (torch.randn(4), dict(clusters=["a", None, "b", "b"]), "missing"),
        (torch.randn(4), dict(how="exact"), "for booleans"),
        (torch.randn(4), dict(how="guess"), "No interval"),
        (torch.randn(4), dict(how="studentised", clusters=[0, 0, 1, 1]), "over clusters"),
        (torch.zeros(0), {}, "too few"),
        (torch.randn(1), dict(how="t"), "too few"),
    ],
)
def test_intervals_that_make_no_sense(x, kw, says):
    with pytest.raises(TaskError, match=says):
        interval(x, **kw)


# pairs


def brute_p(d):
    "All sign patterns"
    seen, means = (
        abs(np.mean(d)),
        [abs(np.mean([s * x for s, x in zip(signs, d)])) for signs in itertools.product((1, -1), repeat=len(d))],
    )
    return np.mean([m >= seen - 1e-12 for m in means])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_p_equals_all_sign_flips(d):
    d = torch.tensor(d).double()
    assert paired(torch.zeros(len(d)).double(), d)["p"] == pytest.approx(brute_p(d.tolist()))


def test_p_of_accuracy_is_mcnemars():
    a, b = torch.tensor([True] * 5 + [False] * 15 + [True] * 20), torch.tensor([False] * 5 + [True] * 15 + [True] * 20)
    r = paired(a, b)
    assert (
        r["mean"] == pytest.approx(0.25)
        and r["p"] == pytest.approx(2 * sum(math.comb(20, k) for k in range(6)) / 2**20)
        and r["n"] == 40
    )
    assert r["low"] > 0


def test_random_flips_are_near_the_exact_p():
    "Fourteen differences of different sizes: random flips against all 16,384"
    d = torch.randn(14, generator=torch.Generator().manual_seed(4)).double() + 0.3
    assert paired(torch.zeros(14).double(), d)["p"] == pytest.approx(brute_p(d.tolist()), abs=0.02)


def test_no_difference():
    x = torch.randn(9).double()
    same = paired(x, x)
    assert same["p"] == 1.0 and same["low"] == same["mean"] == same["high"] == 0.0
    ok = x > 0
    assert (
        paired(ok, ok)["low"] < 0 < paired(ok, ok)["high"]
    )  # that nothing moved in nine prompts does not mean that nothing can


def test_few_templates_cannot_prove_anything():
    d, labels = torch.ones(30) + 0.1 * torch.randn(30, generator=torch.Generator().manual_seed(0)), [0, 1, 2] * 10
    assert paired(torch.zeros(30), d)["p"] < 0.001 and paired(torch.zeros(30), d, clusters=labels)[
        "p"
    ] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "a,b",
    [(torch.zeros(3), torch.zeros(4)), (torch.zeros(3), torch.zeros(3).bool()), (torch.zeros(2, 2), torch.zeros(2, 2))],
)
def test_pairs_that_are_none(a, b):
    with pytest.raises(TaskError, match="one value each"):
        paired(a, b)


# many tests


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.03, 0.05, 0.2, 0.5, 1.0]), min_size=1, max_size=7))
def test_holm_is_closed_testing(p):
    """A hypothesis is called if every set that contains it is called by Bonferroni;
    its adjusted p is the largest over these sets"""
    idx = range(len(p))
    sets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(idx, k)]
    brute = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in idx]
    assert holm(p) == pytest.approx(brute)


def test_holm_of_nothing_and_of_nonsense():
    assert holm([]) == []
    for p in ([0.1, 1.2], [float("nan")]):
        with pytest.raises(TaskError, match="between 0 and 1"):
            holm(p)


# do the intervals keep their word?


@pytest.fixture(scope="module")
def study():
    return coverage_study(times=400, seed=7)


def test_intervals_cover_93_to_97(study):
    "All that the notebook says is calibrated; nothing is outside by more than chance in 400 samples"
    s = study[
        ~study.how.isin(["exact", "over prompts", "percentile over templates"])
        & ((study.data != "rare changes") | (study.how == "studentised"))
    ]
    assert len(s) == 48 and (s.low <= 0.97).all() and (s.high >= 0.93).all() and s["mean"].between(0.92, 0.98).all()
    assert s["mean"].mean() == pytest.approx(0.95, abs=0.01)


def test_cautious_and_overconfident_intervals_are_as_the_notebook_says(study):
    c = study.set_index(["data", "how", "size"])["mean"]
    assert (study[study.how == "exact"].high >= 0.95).all() and c["rate 0.03", "exact", 60] > 0.97
    assert c["rare changes", "percentile", 60] < 0.93 and c["5 templates", "percentile over templates", 200] < 0.9
    assert c["2 templates", "over prompts", 200] < c["2 templates", "over prompts", 60] < 0.5


def test_explained():
    g = torch.Generator().manual_seed(0)
    labels = [i % 3 for i in range(300)]
    x = torch.tensor(labels).double()
    assert explained(x, labels) == 1
    noise = torch.stack([torch.tensor(explained(torch.randn(300, generator=g), labels)) for _ in range(200)])
    assert abs(float(noise.mean())) < 0.005
    half = x + torch.randn(300, generator=g).double() * x.std()
    assert 0.4 < explained(half, labels) < 0.6
    assert explained(torch.zeros(300), labels) == 0
    assert explained(half, torch.tensor(labels)) == explained(half, labels)


def test_clusters_may_be_a_tensor():
    x, codes = torch.randn(60, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 5
    assert (
        interval(x, clusters=codes) == interval(x, clusters=codes.tolist())
        and interval(x, clusters=codes)["clusters"] == 5
    )
    assert paired(x, x + 1, clusters=codes) == paired(x, x + 1, clusters=codes.tolist())


def test_prompts_of_mixed_numbers_of_choices():
    "Each prompt is judged among its own choices, alone and in a batch of several list lengths"
    model = load_model("toy", device="cpu")
    parts = [laundry_list(**task_args(model), n_items=n, n=6) for n in (7, 2, 9)]
    mixed = parts[0] + parts[1] + parts[2]
    r = readout(model, mixed, ())
    rows = prompt_scores(r)
    for p, row, logits, c in zip(mixed, rows.itertuples(), r.logits.double(), choice_logits(r)):
        rest = max(float(logits[i]) for i in p.distractor_ids)
        assert row.logit_diff == pytest.approx(float(logits[p.answer_id]) - rest, abs=1e-5) and row.correct == (
            row.logit_diff > 0
        )
        assert c.isfinite().sum() == row.n_items and torch.equal(
            c[: row.n_items].double(), logits[[p.answer_id, *p.distractor_ids]]
        )
    alone = pd.concat([prompt_scores(readout(model, p, ())) for p in parts], ignore_index=True)
    assert alone.correct.tolist() == rows.correct.tolist() and set(list_scores(rows).n_items) == {2, 7, 9}
    from dataclasses import replace

    without = replace(mixed, prompts=tuple(replace(p, distractors=(), distractor_ids=()) for p in mixed))
    with pytest.raises(TaskError, match="no distractors"):
        prompt_scores(replace(r, prompts=without))
