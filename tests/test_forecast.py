"""Forecasts: the score against all pairs, the fit against other optimisers,
planted and absent signals, and the stored rows"""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import tiny
from talking_heads.base.core import *
from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.data import *
from talking_heads.evaluation import interval
from talking_heads.circuits.forecast import *
from talking_heads.circuits.forecast import _cells, _spaces, _write_rows
from talking_heads.hooks import *
from talking_heads.interventions import coordinates, parse_component
from talking_heads.circuits.steering import *
from talking_heads.svd import *


def frame(n=600, signal=0.0, seed=0, sizes=(3, 5), names=("a", "b")):
    "Prompts whose failure depends on the length, and by `signal` on column a; column b and confidence are noise"
    g = np.random.default_rng(seed)
    df = pd.DataFrame(
        dict(template=np.tile(["x", "y"], n // 2), n_items=np.repeat(sizes, n // len(sizes)), order="forward")
    )
    df["position"] = g.integers(1, df.n_items + 1)
    for c in (*names, *confidence):
        df[c] = g.normal(size=n)
    logit = signal * df[names[0]] + np.where(df.n_items == sizes[0], -1, 1)
    return df.assign(fail=g.random(n) < 1 / (1 + np.exp(-logit)))


# the score


def brute(score, fail, group):
    pairs = [
        (1.0 if a > b else 0.5 if a == b else 0.0)
        for (a, x, i), (b, y, j) in itertools.product(zip(score, fail, group), repeat=2)
        if x and not y and i == j
    ]
    return np.mean(pairs)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from("ab")), min_size=4, max_size=25), st.booleans()
)
def test_auroc_is_the_share_of_pairs(rows, grouped):
    "With many ties, with and without groups"
    score, fail, group = (
        torch.tensor([r[0] for r in rows]).double(),
        torch.tensor([r[1] for r in rows]),
        [r[2] if grouped else "" for r in rows],
    )
    if not any(x and not y and i == j for (x, i), (y, j) in itertools.product(zip(fail.tolist(), group), repeat=2)):
        with pytest.raises(TaskError):
            auroc(score, fail, group)
        return
    assert auroc(score, fail, group) == pytest.approx(brute(score.tolist(), fail.tolist(), group))
    assert auroc(-score, fail, group) == pytest.approx(1 - auroc(score, fail, group))
    assert auroc(torch.zeros(len(rows)), fail, group) == 0.5


def test_draws_are_auroc_of_resampled_prompts():
    "Each resample's AUROC, recomputed from the prompts it holds; groups keep their sizes"
    g = torch.Generator().manual_seed(0)
    score, fail, group = (
        torch.randint(0, 5, (30,), generator=g).double(),
        torch.rand(30, generator=g) < 0.5,
        [i % 3 for i in range(30)],
    )
    from talking_heads.circuits.forecast import _resampled

    draws, count = auroc_draws([score], fail, group, 4, 20)[0], _resampled(30, group, 20, 4)
    for d, c in zip(draws, count.long()):
        rows = torch.arange(30).repeat_interleave(c)
        assert float(d) == pytest.approx(brute(score[rows].tolist(), fail[rows].tolist(), [group[i] for i in rows]))
        assert [sum(int(c[i]) for i in range(30) if group[i] == k) for k in range(3)] == [10, 10, 10]


def test_interval_covers_chance_for_noise_and_narrows():
    widths = []
    for n in (80, 800):
        g = torch.Generator().manual_seed(1)
        i = auroc_interval(torch.randn(n, generator=g), torch.rand(n, generator=g) < 0.4)
        assert i["low"] < 0.5 < i["high"] and i["n"] == n
        widths.append(i["high"] - i["low"])
    assert widths[1] < widths[0] / 2


def test_intervals_hold_the_truth():
    "Normal scores shifted by one: the truth is the normal distribution at 1/sqrt 2"
    truth, hits = float(torch.special.ndtr(torch.tensor(2**-0.5))), []
    for k in range(200):
        g = torch.Generator().manual_seed(k)
        fail = torch.rand(100, generator=g) < 0.4
        i = auroc_interval(torch.randn(100, generator=g) + fail, fail, seed=k)
        hits.append(i["low"] <= truth <= i["high"])
    i = interval(torch.tensor(hits))
    assert i["low"] <= 0.97 and i["high"] >= 0.93


def test_gain_is_paired():
    "A forecast against itself gains nothing, surely; against noise it gains what it is worth"
    g = torch.Generator().manual_seed(0)
    fail = torch.rand(300, generator=g) < 0.5
    good, noise = torch.randn(300, generator=g) + 2 * fail, torch.randn(300, generator=g)
    same, better = auroc_gain(good, good, fail), auroc_gain(noise, good, fail)
    assert same["mean"] == same["low"] == same["high"] == 0
    assert better["low"] > 0.2 and better["mean"] == pytest.approx(auroc(good, fail) - auroc(noise, fail))


@pytest.mark.parametrize("fail", [torch.ones(5).bool(), torch.zeros(5).bool(), torch.zeros(0).bool()])
def test_one_kind_only(fail):
    with pytest.raises(TaskError, match="nothing to tell apart"):
        auroc(torch.zeros(len(fail)), fail)


def test_no_pair_in_any_group():
    with pytest.raises(TaskError, match="no pair"):
        auroc(torch.zeros(4), torch.tensor([True, True, False, False]), list("aabb"))


# the fit


@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
def test_newton_finds_what_lbfgs_finds(ridge):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(120, 4, generator=g).double()
    y = (torch.rand(120, generator=g) < (X @ torch.tensor([2.0, -1, 0, 0.5]).double() + 0.7).sigmoid()).double()
    b = torch.zeros(5).double().requires_grad_()
    loss = lambda: (
        torch.nn.functional.binary_cross_entropy_with_logits(b[0] + X @ b[1:], y, reduction="sum")
        + ridge / 2 * b[1:].square().sum()
    )
    opt = torch.optim.LBFGS(
        [b], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        opt.zero_grad()
        l = loss()
        l.backward()
        return l

    opt.step(closure)
    torch.testing.assert_close(newton(X, y, ridge), b.detach(), atol=1e-5, rtol=1e-5)


def test_newton_on_separable_data_with_large_columns():
    "No likelihood optimum exists; the ridge makes one, and the gradient there is zero"
    X = torch.cat([torch.linspace(-40, -10, 20), torch.linspace(10, 40, 20)]).double()[:, None]
    y = (X[:, 0] > 0).double()
    b = newton(X, y, 0.01)
    X1 = torch.cat([torch.ones(40, 1).double(), X], 1)
    grad = X1.T @ ((X1 @ b).sigmoid() - y) + torch.tensor([0.0, 0.01]).double() * b
    assert b.isfinite().all() and grad.abs().max() < 1e-6


def test_no_ridge_is_refused():
    with pytest.raises(TalkingHeadsError, match="positive"):
        newton(torch.zeros(2, 1), torch.tensor([0.0, 1.0]), 0.0)


def test_forecaster_with_length_only_gives_the_lengths_rates():
    "With a tiny ridge its probabilities are the failure rates themselves"
    df = frame()
    p = fit_forecaster(df, ridge=1e-4)(df)
    for n, g in df.groupby("n_items"):
        assert p[g.index].tolist() == pytest.approx([g.fail.mean()] * len(g), abs=1e-4)


def test_unknown_length_and_one_class():
    df = frame()
    with pytest.raises(TaskError, match="Lists of 5 items"):
        fit_forecaster(df[df.n_items == 3])(df)
    with pytest.raises(TaskError, match="training prompts succeed"):
        fit_forecaster(df.assign(fail=False))
    with pytest.raises(TaskError, match="training prompts fail"):
        fit_forecaster(df.assign(fail=True))


# planted and absent


def test_planted_signal_is_found():
    f = judged(["a"], ["b"], frame(signal=25, seed=1), frame(signal=25, seed=2))
    t = f.table[f.table.pairs != "all"].set_index("forecaster")
    assert t["mean"]["channel"] > 0.97 and t["mean"]["both"] > 0.97 and f.gain["low"] > 0.3
    assert t.low["other heads"] < 0.5 < t.high["other heads"] and t.low["confidence"] < 0.5 < t.high["confidence"]
    assert (
        f.shuffled.min() < 0.05 and f.shuffled.max() > 0.95
    )  # shuffled weights of one column keep its order or turn it around: the mean is the null
    assert t["mean"]["length alone"] == 0.5


def test_absent_signal_is_not():
    "Everything is noise but the length, which forecasts well over all pairs and not at all within a length"
    f = judged(["a", "b"], ["b"], frame(seed=3), frame(seed=4))
    t = f.table[f.table.pairs != "all"].set_index("forecaster")
    for k in ("channel", "both", "confidence"):
        assert t.low[k] <= 0.5 <= t.high[k]
    assert f.gain["low"] <= 0 <= f.gain["high"] and f.table[f.table.pairs == "all"]["mean"].min() > 0.6
    assert float(f.shuffled.mean()) == pytest.approx(0.5, abs=0.05)


def test_shuffles_keep_the_lengths_rates():
    "Shuffled within a length, so the length still forecasts; over all pairs the null is not a coin"
    a, b = frame(seed=5, names=tuple("abcdefgh")), frame(seed=6, names=tuple("abcdefgh"))
    s = shuffled_auroc(a, b, list("abcdefgh"), times=40)
    assert (
        len(s) == 40
        and float(s.mean()) == pytest.approx(0.5, abs=0.03)
        and torch.equal(s, shuffled_auroc(a, b, list("abcdefgh"), times=40))
    )


# lists


def test_longest_list_by_hand():
    "50 of 50 keeps .9 (lower end .93), 45 of 50 does not; a later length that does is not reached"
    df = pd.concat(
        [
            pd.DataFrame(dict(n_items=n, fail=[True] * bad + [False] * (50 - bad)))
            for n, bad in ((2, 0), (3, 0), (5, 5), (8, 0))
        ]
    )
    assert longest_list(df, 0.9) == 3 and longest_list(df, 0.7) == 8 and longest_list(df, 0.95) == 0
    with pytest.raises(TaskError, match="between 0 and 1"):
        longest_list(df, 1.5)


def test_worst_cells_are_chosen_on_training_prompts():
    cells = [(3, 1, 0.9), (3, 2, 0.2), (5, 1, 0.8), (5, 4, 0.1)]
    make = lambda shift: pd.concat(
        [pd.DataFrame(dict(n_items=n, position=p, fail=np.arange(100) < 100 * abs(shift - f))) for n, p, f in cells],
        ignore_index=True,
    )
    w = worst_cells(make(0), make(1), 2)  # in the test prompts all is turned around
    assert (
        w[["n_items", "position"]].values.tolist() == [[3, 1], [5, 1]]
        and w.failure.tolist() == pytest.approx([0.1, 0.2])
        and (w.n == 100).all()
    )


def test_results_have_the_schemas_keys():
    f = judged(["a"], ["b"], frame(signal=1, seed=1), frame(signal=1, seed=2))
    r = forecast_results(f)
    keys = (
        "n auroc ci confidence confidence_ci both both_ci other_heads other_heads_ci shuffled base_rate longest worst"
    )
    assert list(r) == keys.split()
    assert (
        r["ci"][0] < r["auroc"] < r["ci"][1] and r["n"] == 600 and r["base_rate"] == pytest.approx(f.test.fail.mean())
    )
    assert all(set(x) == {"accuracy", "n_items"} for x in r["longest"]) and all(
        set(x) == {"n_items", "position", "failure", "low", "high", "n"} for x in r["worst"]
    )


# models


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def weights():
    return attention_weights("toy", "folded")


def test_frame_reads_what_is_there(toy, weights):
    "Against readouts, softmax and sums by hand"
    lists, s = forecast_lists(toy, ("things",), (3, 4), 6), subspace(weights, ["1.0.0", "1.0.2", "0.3.1"])
    df = forecast_frame(toy, lists, [s, other_heads(weights, s)])
    assert len(df) == 12 and df.n_items.tolist() == [3] * 6 + [4] * 6
    for k, p in enumerate(lists):
        r, rows = readout(toy, p, ()), df[df.n_items == (3, 4)[k]].reset_index(drop=True)
        prob = r.logits.double().softmax(-1)
        assert rows.fail.tolist() == (logit_diff(r) <= 0).tolist()
        np.testing.assert_allclose(rows.log_p, prob.amax(-1).log(), atol=1e-6)
        np.testing.assert_allclose(rows.entropy, torch.distributions.Categorical(probs=prob).entropy(), atol=1e-5)
        for b, q in enumerate(p):
            items = sorted(r.logits[b, [q.answer_id, *q.distractor_ids]].tolist())
            assert rows.margin[b] == pytest.approx(items[-1] - items[-2], abs=1e-4)
        for h, V in zip(s.heads, s.V):
            for n, x in zip([n for n in s.names if n.startswith(f"{h}.")], coordinates(r, toy, V, h).T):
                np.testing.assert_allclose(rows[n], x, atol=1e-4)


def test_readouts_serve_as_lists(toy, weights):
    lists, s = forecast_lists(toy, ("things",), (3, 5), 6), subspace(weights, ["1.0.0"])
    assert forecast_frame(toy, lists, [s]).equals(forecast_frame(toy, [readout(toy, p, ()) for p in lists], [s]))


def test_the_answer_is_not_seen(toy, weights):
    "Other answers, same sentences: all that a forecaster reads stays"
    from dataclasses import replace

    p, s = forecast_lists(toy, ("things",), (4,), 8)[0], subspace(weights, ["1.0.0", "1.1.0"])
    turned = replace(
        p,
        prompts=tuple(
            replace(
                q,
                answer=q.distractors[0],
                answer_id=q.distractor_ids[0],
                distractors=(q.answer, *q.distractors[1:]),
                distractor_ids=(q.answer_id, *q.distractor_ids[1:]),
            )
            for q in p
        ),
    )
    a, b = (forecast_frame(toy, [x], [s]) for x in (p, turned))
    assert (a.fail != b.fail).any() and a[[*confidence, *s.names]].equals(b[[*confidence, *s.names]])


def test_top1_is_the_stricter_measure(toy, weights):
    lists, s = forecast_lists(toy, ("things",), (8,), 20), subspace(weights, ["1.0.0"])
    loose, strict = (forecast_frame(toy, lists, [s], m).fail for m in ("correct", "top1"))
    assert (strict | ~loose).all()


def test_mixed_lengths_and_other_tasks_are_refused(toy, weights):
    from dataclasses import replace

    a, b = forecast_lists(toy, ("things",), (3, 4), 2)
    for p in (replace(a, prompts=a.prompts + b.prompts), ioi(**task_args(toy), n=4)):
        with pytest.raises(TaskError, match="one length"):
            forecast_frame(toy, [p], [subspace(weights, ["1.0.0"])])


def test_other_heads(weights):
    s = subspace(weights, ["1.0.0", "1.0.3", "1.1.2", "0.4.1"])
    for turn in range(5):
        o = other_heads(weights, s, turn)
        assert (
            len(o) == len(s)
            and not set(o.heads) & set(s.heads)
            and sorted(h.layer for h in o.heads) == sorted(h.layer for h in s.heads)
        )
        assert sorted(n.split(".")[2] for n in o.names) == sorted(n.split(".")[2] for n in s.names)
    whole = subspace(weights, [f"1.{h}.0" for h in range(weights.shape.n_heads - 1)])
    with pytest.raises(HeadError, match="too few for a control"):
        other_heads(weights, whole)


def test_a_forecast_of_a_random_model(tmp_path):
    "From weights to results on a model that knows nothing; the model stays as it was"
    model = load_model(str(tiny.save("llama", tmp_path / "m")), device="cpu")
    before = {k: v.clone() for k, v in model.original_model.state_dict().items()}
    train, test = (forecast_lists(model, ("things", "shop"), (2, 3), 20, s) for s in (0, 1))
    f = forecast(model, attention_weights(model, "folded"), ["1.0.0", "1.0.1"], train, test)
    r = forecast_results(f)
    assert (
        r["n"] == 80
        and 0.2 < r["base_rate"] < 0.8
        and 0 <= r["ci"][0] <= r["auroc"] <= r["ci"][1] <= 1
        and r["longest"][-1]["n_items"] == 0
    )
    assert (
        all(torch.equal(v, before[k]) for k, v in model.original_model.state_dict().items())
        and "channel" in f._repr_html_()
    )


# the study


def test_study_goes_on_where_it_stopped(toy, tmp_path, monkeypatch):
    import talking_heads.circuits.forecast as F

    path, names = tmp_path / "rows.parquet", ["1.0.0", "1.1.0"]
    whole = pd.read_parquet(F.forecast_study(toy, names, (3, 4), 3, path=tmp_path / "whole.parquet"))
    real, calls = F.forecast_frame, []

    def breaks(*a, **kw):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*a, **kw)

    monkeypatch.setattr(F, "forecast_frame", breaks)
    with pytest.raises(KeyboardInterrupt):
        F.forecast_study(toy, names, (3, 4), 3, path=path)
    assert len(pd.read_parquet(path)) == 2 * 2 * 3
    F.forecast_study(toy, names, (3, 4), 3, path=path)
    assert (
        pd.read_parquet(path).equals(whole)
        and len(calls) == 3 + 6
        and whole.groupby("use").size().to_dict() == {"train": 18, "test": 18, "held-out": 12}
    )


def test_stored_rows_are_of_the_embedded_model():
    t = stored_forecast()
    assert t.attrs["sha256"] == find_checkpoint("smollm2").sha256 and {
        str(parse_component(n)[0]) for n in t.attrs["names"][0]
    } == set(stored_steering()["heads"])
    assert set(t.use) == {"train", "test", "held-out"} and set(t[t.use == "held-out"].template) == set(held_out)
    assert t.notna().all().all() and (t.groupby(["use", "template", "n_items"]).size() == t.attrs["n"]).all()
    assert set(sum(t.attrs["names"], [])) <= set(t.columns)


@pytest.mark.slow
def test_stored_rows_come_out_again():
    "A few prompts of the study, measured anew"
    model, t = load_model("smollm2", device="cpu"), stored_forecast()
    s = subspace(attention_weights(model, "folded"), t.attrs["names"][0])
    rows = t[(t.use == "test") & (t.template == "things") & (t.n_items == 3)].head(6).reset_index(drop=True)
    new = forecast_frame(
        model, [forecast_lists(model, ("things",), (3,), t.attrs["n"], t.attrs["seed"] + 500)[0][:6]], [s]
    )
    assert rows.fail.tolist() == new.fail.tolist()
    np.testing.assert_allclose(rows[[*s.names, *confidence]], new[[*s.names, *confidence]], atol=0.05, rtol=0.01)
