"Further experiments of the paper: tasks of retrieval, what a removal costs there, rival accounts, map, rescaling"

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.hooks import *
from talking_heads.svd import *
from talking_heads.interventions import *
from talking_heads.circuits.abstraction import *
from talking_heads.circuits.channel_map import *
from talking_heads.circuits.removal import *
from talking_heads.circuits.rivals import *
from talking_heads.circuits.steering import *
from talking_heads.edits.rescaling import *
from talking_heads.evaluation import prompt_scores
from talking_heads.tasks.retrieval import *


@pytest.fixture(scope="module", params=["toy", "toy-position"])
def lm(request):
    return load_model(request.param)


@pytest.fixture(scope="module")
def weights(lm):
    return as_written(attention_weights(lm, "folded"))


def component(weights):
    "Some component of the second layer"
    return component_names(weights, ["1.1"])[0]


def test_retrieval_prompts_are_answerable_from_the_text():
    "The answer and every wrong word stand in the prompt, once each, but for numbers, of which one is named"
    from transformers import AutoTokenizer
    from talking_heads.base.checkpoints import find_checkpoint

    tok = AutoTokenizer.from_pretrained(find_checkpoint("smollm2").path)
    for k, t in retrieval_tasks.items():
        for p in t.prompts(tok, n=40, seed=5):
            words = [p.answer, *p.distractors]
            if k == "greater":
                numbers = more_words.split()
                at = [numbers.index(w) for w in words]
                assert at[0] > max(at[1:]) and numbers[max(at[1:])] in p.text
            else:
                assert all(w in p.text for w in words)
                assert p.text.index(p.answer) < len(p.text) - len(p.answer)
            assert len({p.answer_id, *p.distractor_ids}) == len(words)


def test_removal_in_a_batch_is_removal_alone(lm, weights):
    "Costs of all controls together are those of each removed by `edit_hooks` in a run of its own"
    name, prompts = component(weights), ioi(**task_args(lm), n=16, seed=3)
    row = task_cost(lm, prompts, weights, name, n=3)

    def margin(edit=None):
        r = readout(lm, prompts, ()) if edit is None else readout_with_edit(lm, prompts, edit, "END", ())
        return prompt_scores(r).logit_diff.to_numpy()

    cost = {c: (margin() - margin(component_edit(lm, c))).mean() for c in (name, *control_components(weights, name, 3))}
    assert row["fall"] == pytest.approx(cost[name], abs=1e-3)
    assert row["largest"] == pytest.approx(max(v for c, v in cost.items() if c != name), abs=1e-3)
    assert row["margin"] == pytest.approx(margin().mean(), abs=1e-3)


def test_controls_are_written_and_none_is_the_component(weights):
    name = component(weights)
    beside = control_components(weights, name, 20)
    assert name not in beside
    for c in beside:
        assert c in component_names(weights, [parse_component(c)[0]])


def test_text_cost_is_zero_for_an_edit_that_changes_nothing(lm, weights, monkeypatch):
    "Cost by whole passes; where the coordinate is 0 everywhere a removal costs nothing"
    name = component(weights)
    (h, v), = component_directions(weights, [name])
    tokens = ioi(**task_args(lm), n=2, seed=1, templates=[0]).tokens
    x = text_coordinates(lm, tokens, h, v)
    z = readout(lm, ioi(**task_args(lm), n=2, seed=1, templates=[0]), ()).z
    assert torch.allclose(x[:, -1], coordinates(z, lm, v[None], h)[:, 0], atol=1e-4)
    edit = component_edit(lm, name).scaled(0.0)
    assert torch.allclose(text_losses(lm, tokens, edit), text_losses(lm, tokens), atol=1e-5)


def likelihood(account, x, df):
    "Mean log-likelihood of choices by a plain loop"
    sizes = sorted(df.n_items.unique())
    out = []
    for r in df.itertuples():
        lists = Lists(int(r.n_items), sizes.index(r.n_items))
        out.append(float(choice_log_p(account, x, lists)[r.position - 1, r.chosen - 1]))
    return np.mean(out)


def test_held_out_likelihood_is_a_plain_sum():
    a = list_accounts(2, measured=False)
    made = made_choices(a["separation, even"], torch.tensor([0.2, 0.1, -3.0, 2.0]).double(), (3, 5), n=60)
    held, numbers = compare_accounts(made)
    assert len(held) == 60 and set(numbers) == set(a)
    for k in a:
        assert held[k].mean() == pytest.approx(likelihood(a[k], numbers[k], held), abs=1e-9)


def test_measured_distances_win_where_they_made_the_choices():
    "Places that crowd unevenly: two neighbours share a point of the channel"
    rng, rows = np.random.default_rng(0), []
    for N in (4, 6):
        at = np.arange(1200) % N
        line = np.array([0, 0.3, 6, 6.3, 12, 12.3][:N])
        x = line[at] + rng.normal(size=len(at))
        chosen = np.abs(line[None] - (line[at] + rng.normal(size=len(at)))[:, None]).argmin(1)
        rows.append(pd.DataFrame(dict(n_items=N, position=at + 1, chosen=chosen + 1, x0=x)))
    found = rival_evidence(pd.concat(rows, ignore_index=True))
    assert found["separation"] == "separation, measured"
    assert found["over_rival"]["low"] > 0 and found["over_uniform"]["low"] > 0


@given(st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_choices_without_a_pattern_give_no_account_the_lead(seed):
    "Errors that go anywhere: neither account is ahead of them"
    a = list_accounts(2, measured=False)["uniform errors"]
    made = made_choices(a, torch.tensor([0.0, 0.0, -4.0, 1.5, 1.0]).double(), (4, 8), n=200, seed=seed)
    found = rival_evidence(made)
    assert found["over_uniform"]["low"] <= 0.01 and found["rival_over_uniform"]["low"] <= 0.01


def test_the_map_is_what_single_settings_give(lm, weights):
    lists = laundry_list(**task_args(lm), n_items=3, n=6, seed=2)
    s = subspace(weights, [component(weights)])
    m = subspace_map(lm, lists, s, points=3)
    for x, g in m.groupby("x0"):
        frame = steer(lm, lists, s, torch.full((3, 1), float(x)))
        share = frame[frame.target == 1].item.value_counts(normalize=True)
        assert g.set_index("place").share.to_dict() == pytest.approx({k: share.get(k, 0.0) for k in (1, 2, 3)})


def test_senders_below_a_mover_only(lm):
    heads = pd.DataFrame(
        [
            dict(cls="inhibition", name=f"{l}.0", layer=l, score=s, called=c)
            for l, s, c in ((0, 0.1, True), (1, 0.3, True), (1, 0.2, False), (2, 0.9, True), (0, -0.2, False))
        ]
    )
    found = strongest_senders(heads, ["2.0"])
    assert found.name.tolist() == ["1.0", "0.0", "1.0"] and found.called.tolist() == [True, True, False]


def test_scaling_is_an_edit_of_the_weights(lm, weights):
    names = [component(weights)]
    lists = tuple(laundry_list(**task_args(lm), n_items=5, n=16, seed=s) for s in (1, 2))
    rows = rescaling_evidence(lm, dict(senders=names), {5: lists}, alphas=(1.0, 3.0))
    with edited(lm, component_edit(lm, {names[0]: rows[0]["alpha"]}, "folded")):
        after = prompt_scores(readout(lm, lists[1], ())).top1.mean()
    assert rows[0]["after"] == pytest.approx(after)
    with pytest.raises(EditError, match="first factor is 1"):
        rescaling_evidence(lm, dict(senders=names), {5: lists}, alphas=(2.0,))
