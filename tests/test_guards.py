"Guards: their losses by plain runs of the edited model, weights that follow limits, training that keeps them"

import json
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.edits.evaluation_sets import task_set
from talking_heads.edits.guards import *
from talking_heads.edits.guards import _Weights
from talking_heads.edits.parametrisations import *
from talking_heads.edits.training import answer_loss, choose_updates
from talking_heads.edits.upper_layers import UpperLayers, added_output
from talking_heads.edits.variety import *
from talking_heads.hooks import load_model
from talking_heads.interventions import active_edits, edited
from talking_heads.tasks.repeats import repeats_task
from talking_heads.tasks.wordings import families_of


@pytest.fixture(scope="module")
def toy():
    return load_model("toy")


@pytest.fixture(scope="module")
def upper(toy):
    return UpperLayers(toy, 1)


@pytest.fixture(scope="module")
def change(toy):
    "Gains on two heads, as what training adds and as an edit"
    updates = head_updates(toy, ["1.0", "2.1"])
    x = torch.full((len(updates),), -0.6)
    return added_output(toy, updates)(x), updates_edit(toy, updates, x)


@pytest.fixture(scope="module")
def guards(upper):
    return (
        text_guard(upper, n=8, length=12),
        repeat_guard(upper, n=6, length=6),
        margin_guard(upper, n=24, window=None),
        preference_guard(upper, n=12, n_items=(3,), window=None, split="train"),
    )


@pytest.fixture(scope="module")
def data(upper, guards):
    return guarded_data(upper, wording_lists(upper, 18, (3, 4), window=None), guards[0])


def bits(model):
    return {n: p.detach().clone() for n, p in model.original_model.named_parameters(remove_duplicate=False)}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def logs(model, tokens):
    return model(tokens).float().log_softmax(-1)


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


@torch.no_grad()
def test_losses_are_those_of_the_edited_model(toy, upper, guards, change):
    "Each guard's loss on all its prompts, from plain logits of both models"
    add, edit = change
    text, repeats, names, wrong = guards
    for g, half in ((text, 0), (repeats, 6)):
        T = g.batches[0][1]
        p = logs(toy, T)
        with edited(toy, edit):
            q = logs(toy, T)
        assert g.whole(upper, add) == pytest.approx(float(kl(p, q)[:, half:].mean()), rel=1e-3)
    falls, rises = [], []
    for _, p in names.batches:
        clean = toy(p.tokens)[:, -1]
        with edited(toy, edit):
            out = toy(p.tokens)[:, -1]
        for x, y, q in zip(clean, out, p):
            was, now = (float(z[q.answer_id] - z[list(q.distractor_ids)].max()) for z in (x, y))
            falls.append(max(0.0, min(3.0, was) - now) if was > 0 else 0.0)
    assert names.whole(upper, add) == pytest.approx(sum(falls) / len(falls), rel=1e-3) and sum(falls) > 0
    for _, p in wrong.batches:
        clean = logs(toy, p.tokens)[:, -1]
        with edited(toy, edit):
            out = logs(toy, p.tokens)[:, -1]
        for x, y, q in zip(clean, out, p):
            ids = {q.answer: q.answer_id, **dict(zip(q.distractors, q.distractor_ids))}
            items = [ids[w] for w in q.info["items"].split(",")]
            was, now = (float(z[items].softmax(-1)[q.info["position"] - 1]) for z in (x, y))
            rises.append(max(0.0, now - was) + 0.1 * float(kl(x, y)))
    assert wrong.whole(upper, add) == pytest.approx(sum(rises) / len(rises), rel=1e-3)
    assert all(abs(g.whole(upper, {})) < 1e-5 for g in guards)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.floats(0.2, 1.0))
def test_weights_follow_what_is_used(seen, target):
    "A weight rises exactly where the running mean is over the target, stays positive, and no step is a leap"

    class G:
        name = "g"

    s = GuardedSettings(target=target)
    w = _Weights((G(),), s)
    for x in seen:
        before = w.weight["g"]
        w.see("g", x)
        grown = math.log(w.weight["g"] / before)
        assert w.weight["g"] > 0 and -s.rise - 1e-9 <= grown <= 2 * s.rise + 1e-9
        assert (grown > 0) == (w.used["g"] > target) or abs(w.used["g"] - target) < 1e-9
    assert min(seen) - 1e-9 <= w.used["g"] <= max(seen) + 1e-9


def test_training_keeps_every_limit_and_the_model(toy, upper, data, guards):
    "By the edit in the weights; same seed same edit, another seed another; not a bit of the model differs"
    before = bits(toy)
    chosen = choose_updates(data, head_updates(toy, ["1.0", "1.2", "2.0"]), 8)
    s = GuardedSettings(steps=10, rate=0.1)
    a, b = (train_guarded(data, chosen, guards, s) for _ in range(2))
    c = train_guarded(data, chosen, guards, GuardedSettings(steps=10, rate=0.1, seed=1))
    assert a.edit == b.edit != c.edit and same(before, bits(toy)) and active_edits(toy) == ()
    assert set(a.used) == {g.name for g in guards} and max(a.used.values()) <= 1
    T = guards[0].batches[0][1]
    p = logs(toy, T)
    with edited(toy, a.edit):
        used = float(kl(p, logs(toy, T)).mean()) / guards[0].limit
    assert used == pytest.approx(a.used["text"], rel=0.02, abs=1e-3)
    assert list(a.log.step) == list(range(10)) and {"task", "used text", "weight text"} <= set(a.log)


def test_without_room_the_edit_shrinks(toy, data, guards):
    tight = tuple(type(g)(g.name, g.limit / 1e4, g.unit, g.batches, g.loss) for g in guards[:2])
    chosen = choose_updates(data, head_updates(toy, ["1.0", "1.2"]), 4)
    t = train_guarded(data, chosen, tight, GuardedSettings(steps=5, rate=0.1))
    assert t.shrunk < 1 and max(t.used.values()) <= 1


@pytest.mark.parametrize("place", [(2, "O"), (2, "Q"), (1, "K")])
def test_rank1_starts_lower_the_loss(toy, data, place):
    "A small step from where training starts lowers the lists' loss; a step back raises it"
    part = rank1_starts(data, [place]).parts[0]
    assert part.read.norm() == pytest.approx(1, abs=1e-4) and part.write.norm() == pytest.approx(1, abs=1e-4)

    def loss(t):
        u = torch.cat([torch.zeros(len(part.read)), t * part.write / part.step])
        return sum(float(b_loss(data, b, part.added(toy, u))) for b in data.lists)

    with torch.no_grad():
        assert loss(0.001) < loss(0.0) < loss(-0.001)


def b_loss(data, b, add):
    return answer_loss(data.upper, data.upper.run(b.entry, add), b.answers).sum()


def test_heads_that_may_not_change_do_not(data):
    part = rank1_starts(data, [(2, "Q")], heads=[Head(2, 3)]).parts[0]
    by_head = part.write.view(8, -1).abs().sum(1)
    assert by_head[3] > 0 and by_head.sum() == by_head[3]


def test_bad_requests(upper, data, guards):
    with pytest.raises(TaskError, match="positive number"):
        repeat_guard(upper, limit=float("nan"))
    with pytest.raises(TaskError, match="one name"):
        train_guarded(data, None, (guards[0], guards[0]))
    with pytest.raises(TaskError, match="no task 'sonnets'"):
        margin_guard(upper, "sonnets")


def test_fewer_families_are_part_of_more():
    for kind in ("list", "contrast"):
        few, more = (train_families(kind, n, 3) for n in (4, 12))
        assert few == more[:4] and set(more) <= {f.name for f in families_of(kind, "train")}
    with pytest.raises(TaskError, match="there are 24"):
        train_families("list", 25)


def test_repeats_are_scored_by_halves(toy, upper):
    "The loss of a set of repeated tokens is that of the second half, by plain logits"
    s = task_set(upper, repeats_task, 5, 0, length=6)
    T = s.parts[0][1]
    p = logs(toy, T)[:, :-1].gather(2, T[:, 1:, None])[..., 0]
    assert torch.allclose(s.before["loss"].float(), -p[:, 6:].mean(1), atol=1e-4)


def test_arms_are_kept_and_collected(toy, tmp_path):
    "An arm that is there is left alone; the file holds the rows of whole-weight runs; several models are refused"
    study = VarietyStudy(toy, 1, n=6, n_items=(3,), window=None, words=4)
    sets = {"choose": variety_sets(study.upper, "choose", 5, (4,))}
    arm = VarietyArm("queries", ((2, "Q"),), families=3, settings=GuardedSettings(steps=2))
    folder = variety_arm(study, arm, sets, tmp_path)
    at = (folder / "arm.json").stat().st_mtime_ns
    assert variety_arm(study, arm, sets, tmp_path) == folder and (folder / "arm.json").stat().st_mtime_ns == at
    rows = stored_variety(collect_variety(tmp_path, tmp_path / "all.json"))
    assert set(rows.arm) == {"queries"} and set(rows.families) == {3} and set(rows.measured) == {"choose"}
    assert {("lists", "top1"), ("contrast", "share")} <= set(zip(rows.area, rows.measure))
    about = json.loads((folder / "arm.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    about["provenance"]["sha256"] = "0" * 64
    (other / "arm.json").write_text(json.dumps(about))
    (other / "choose.json").write_text((folder / "choose.json").read_text())
    with pytest.raises(OutputError, match="2 different models"):
        collect_variety(tmp_path, tmp_path / "all.json")
    with pytest.raises(OutputError, match="No measured arm"):
        collect_variety(tmp_path / "none", tmp_path / "all.json")


def test_stored_study_is_of_the_model():
    "The rows in the package were made with the embedded SmolLM2, and every judged row has its interval and prompts"
    arms, rows = stored_arms(), stored_variety()
    assert {a["provenance"]["sha256"] for a in arms} == {find_checkpoint("smollm2").sha256}
    assert all(len(a["code"]) == 64 and max(a["used"].values()) <= 1 for a in arms)
    judged = rows[(rows.measured == "judge") & rows.area.isin(["lists", "contrast"])]
    assert (judged.n >= 48).all() and (judged.low <= judged.change).all() and (judged.change <= judged.high).all()
    assert {"judge", "held-out"} == set(judged.split) and set(rows.seed) == {0}
