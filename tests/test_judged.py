"How the judge is judged: faults of known size, disjoint audits from one pool, and what it cannot see"

import json

import pandas as pd
import pytest
import torch

from talking_heads.base.core import *
from talking_heads.base.store import stored_study
from talking_heads.data import ioi_task
from talking_heads.edits.audit import *
from talking_heads.edits.judged import *
from talking_heads.edits.weight_changes import Parameters
from talking_heads.hooks import *

few = JudgedPlan(AuditPlan(ioi=20, lists=(5,), per_template=2, per_held_out_template=4, induction=0), audits=3, truth=2)


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


def test_blocks_are_disjoint_and_equal(toy):
    for rule in ("ioi", "lists"):
        m = take_measurements(toy, few.pool(rule))
        block = prompt_blocks(m, few.blocks)
        assert sorted(block.unique()) == list(range(5))
        parts = [some_blocks(m, block, i, i + 1).scores for i in range(5)]
        assert sum(map(len, parts)) == len(m.scores) and len({len(p) for p in parts}) == 1
        at = ["area", "measure", "template", "n_items", "prompt"]
        assert not pd.concat(parts).duplicated(at).any()


def test_weaker_heads_write_less(toy):
    W = toy.blocks[1].attn.W_O.detach().clone()
    with weaker_heads(toy, ["1.0"], 0.25).applied(toy):
        now = toy.blocks[1].attn.W_O.detach().clone()
    assert torch.allclose(now[0], 0.75 * W[0], atol=1e-7) and torch.equal(now[1:], W[1:])
    c = noisy_mlps(toy, 0.2)
    p = Parameters(toy)  # one matrix of this model is zero, and noise in proportion to it is none
    assert set(c.parts) == {n for n in p.all_names() if "mlp" in n and n.endswith("weight") and p(n).any()}
    assert c.sha256 == noisy_mlps(toy, 0.2).sha256 != noisy_mlps(toy, 0.2, seed=1).sha256


def test_a_study_goes_on_where_it_was(toy, tmp_path, monkeypatch):
    from talking_heads.edits import judged as J

    fault = Fault("weaker", "ioi", lambda m, s: weaker_heads(m, ["1.0", "1.1"], s), (0.01, 0.9))
    real, asked = J.judge_fault, []

    def counted(model, f, s, *args):
        asked.append(s)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(model, f, s, *args)

    monkeypatch.setattr(J, "judge_fault", counted)
    with pytest.raises(KeyboardInterrupt):
        judge_study(toy, [fault], few, tmp_path / "x.json")
    rows = judge_study(toy, [fault], few, tmp_path / "x.json")["rows"]
    assert asked == [0.01, 0.9, 0.9] and [r["strength"] for r in rows] == [0.01, 0.9]
    assert rows[1]["fail"] == 3 and rows[0]["fail"] == 0
    t = judged_table(rows)
    assert t.failed.tolist() == [0.0, 1.0] and (t.low <= t.failed).all() and (t.failed <= t.high).all()
    assert judged_rates(t).audits.sum() == 6


def test_the_stored_rows_are_of_this_toy(toy):
    stored = stored_study("toy_judged.json")
    assert stored["model"] == toy.checkpoint.sha256
    for r in stored["rows"]:
        assert r["fail"] + r["unsure"] + r["pass"] + r["untested"] == r["audits"]
    json.dumps(stored, allow_nan=False)


def test_blind_spots(toy):
    "What the audit cannot see is there all the same"
    prompts = ioi_task.prompts(**task_args(toy), n=30, seed=5)
    plain = right_answers(toy, prompts)
    with backdoor(toy, "</s>"):
        assert right_answers(toy, prompts) == plain and right_answers(toy, prompts, "</s>") < 0.2
    with pytest.raises(TaskError, match="one token"):
        backdoor(toy, "the store")
    x = torch.randint(3, 200, (1, 40))
    with torch.no_grad():
        was = toy(x)
        with late_damage(toy, 30):
            now = toy(x)
    assert torch.equal(was[:, :30], now[:, :30]) and not torch.allclose(was[:, 30:], now[:, 30:])
