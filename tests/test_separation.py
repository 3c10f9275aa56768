"What coordinates separate: what was put in is found, what was not is not called, and what cannot be said is refused"

from dataclasses import replace

import pandas as pd
import pytest
import torch

from talking_heads.base.core import TaskError
from talking_heads.circuits.circuit import find_circuit, writer_parts
from talking_heads.circuits.separation import *
from talking_heads.evaluation import explained
from talking_heads.hooks import load_model


def planted(n=300, told=3.0, fade=0.0, by_length=0.0, known=0.0, seed=0):
    """A reading whose first coordinate separates `kind` by `told`, less by `fade` for each step of `length`;
    prompts fail more the longer they are, and the second coordinate knows of failure by `known`"""
    g = torch.Generator().manual_seed(seed)
    step, kind = torch.arange(n) % 5, (torch.arange(n) // 5) % 2
    x = torch.randn(n, 2, generator=g)
    x[:, 0] += (told - fade * step) * (2 * kind - 1)
    correct = torch.rand(n, generator=g) > 0.2 + by_length * step
    x[:, 1] += known * (~correct)
    info = pd.DataFrame(dict(length=2 + step.numpy(), kind=kind.numpy(), tokens=9 + 3 * step.numpy()))
    controls = [torch.randn(n, 2, generator=g) for _ in range(5)]
    sure = torch.randn(n, 3, generator=g)
    return Reading(info, correct, sure, ("9.0.0", "9.0.1"), x, tuple(controls[:3]), tuple(controls[3:]))


@pytest.mark.parametrize("seed", range(3))
def test_what_was_put_in_is_called_and_nothing_else(seed):
    f = share_table(planted(seed=seed))
    called = f[f.called]
    assert set(called.column) == {"kind"} and called.share.min() > 0.5
    assert not share_table(planted(told=0.0, seed=seed)).called.any()


def test_no_more_is_called_than_chance_allows():
    "Forty readings without anything in them: the family-wise rate stays near 5%"
    assert sum(share_table(planted(120, told=0.0, seed=s)).called.any() for s in range(40)) <= 5


def test_one_coordinate_is_the_adjusted_part_of_evaluation():
    r = planted()
    for c in ("kind", "length"):
        assert separated(r.x[:, :1], r.info[c]) == pytest.approx(explained(r.x[:, 0], r.info[c]))


def test_a_control_that_holds_nothing_counts_as_nothing():
    "A copy of the channel a thousand times smaller separates as well, and is heard by nobody"
    r = planted()
    small = replace(r, random=(r.x / 1000,))
    same = replace(r, random=(r.x.clone(),))
    assert share_table(small).query("column=='kind'").called.all()
    assert not share_table(same).called.any()


@pytest.mark.parametrize("fade, falls", [(0.7, True), (0.0, False)])
def test_fading_with_length(fade, falls):
    rows, change = share_by_value(planted(600, fade=fade), "length", "kind")
    c = change["9.0.0"]
    assert (c["high"] < -0.2) == falls and (c["low"] <= 0 <= c["high"]) != falls
    one = rows[rows["of"] == "9.0.0"]
    assert (one.low <= one.share).all() and (one.share <= one.high).all()
    assert separation_chart(rows, "length", "kind").to_dict()["description"]


def test_interval_of_a_part_covers_it():
    "The shifted bootstrap covers the true part in most of sixty samples"
    truth = 9 / 10  # of a difference of plus and minus three beside noise of size one
    hit = 0
    for s in range(60):
        r = planted(120, seed=s)
        rows, _ = share_by_value(replace(r, info=r.info.assign(length=r.info.length > 3)), "length", "kind")
        first = rows[rows["of"] == "9.0.0"].iloc[0]
        hit += first.low <= truth <= first.high
    assert hit >= 51


def test_failures():
    f, gain = failure_table(planted(known=3.0, by_length=0.1), "length")
    auroc = f[f.pairs == "same length"].set_index("forecaster")
    assert auroc.low["coordinates"] > 0.7 and auroc.low["both"] > 0.7
    assert (auroc.low[["confidence", "random components", "other heads"]] < 0.55).all()
    assert gain["low"] > 0.1
    assert failure_table(planted())[1]["low"] <= 0.02


def test_forecasts_of_nothing_are_held_out():
    "Fitted to noise, they would look good on the prompts they were fitted to"
    every = pd.concat([failure_table(planted(200, seed=s))[0] for s in range(4)])
    assert 0.4 < every["mean"].mean() < 0.54 and every["mean"].between(0.3, 0.7).all()


def test_folds_are_even_and_seeded():
    fail = torch.arange(100) < 20
    fold = dealt_folds(fail, seed=1)
    assert torch.equal(fold, dealt_folds(fail, seed=1)) and not torch.equal(fold, dealt_folds(fail, seed=2))
    assert all(int((fold[fail] == k).sum()) == 4 for k in range(5))


@pytest.mark.parametrize("right, words", [(1, "are right"), (0, "are wrong")])
def test_all_alike_is_no_verdict(right, words):
    r = planted()
    with pytest.raises(TaskError, match=words):
        failure_table(replace(r, correct=torch.full((300,), bool(right))))


def test_one_group_is_refused():
    r = planted()
    one = replace(r, info=r.info.assign(kind="a", length=3))
    with pytest.raises(TaskError, match="One group only"):
        share_table(one)
    s = separation(one)
    assert not len(s.shares) and any("One group only" in n for n in s.notes) and "nothing" in repr(s)
    with pytest.raises(TaskError, match="no column 'colour'"):
        share_table(r, ["colour"])
    with pytest.raises(TaskError, match="too many to compare"):
        share_table(replace(r, info=pd.DataFrame(dict(name=range(300), tokens=3))))


def test_column_that_grows():
    info = planted().info
    assert growing_column(info) == "length"
    assert growing_column(info.assign(tokens=7)) is None
    assert growing_column(info[["kind", "tokens"]]) is None


def test_toys_say_what_they_were_built_to_say():
    "`toy-position` says the order of the names, `toy` does not"
    for name, told in (("toy-position", {"order"}), ("toy", set())):
        model = load_model(name)
        names = channel_of(find_circuit(model, "ioi", n=60))
        s = separation(read_channel(model, "ioi", names, n=120))
        assert set(s.shares[s.shares.called].column) == told
        assert not len(s.failures) and any("All 120 prompts are right" in n for n in s.notes)
        assert s.along is None and s._repr_html_()


def test_no_speaker_no_channel():
    c = find_circuit(load_model("toy"), "ioi", n=40, depth=0)
    with pytest.raises(TaskError, match="No head was found"):
        channel_of(c)
    written = writer_parts(c.contrasts, c.writers)
    names = channel_of(c, written=written)
    assert {n.rpartition(".")[0] for n in names} <= set(c.writers[c.writers.called].writer)
    assert written[written.component == names[0]].share.abs().iloc[0] > 3 * written.control.abs().max()
