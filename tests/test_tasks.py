"Tasks: what they make, how they score, what they refuse by name, and a task of one's own in the audit"

import pytest
import torch

from talking_heads.base.core import *
from dataclasses import replace

from talking_heads.circuits.finding import *
from talking_heads.data import *
from talking_heads.edits.audit import *
from talking_heads.edits.evaluation_sets import evaluation_sets
from talking_heads.evaluation import *
from talking_heads.hooks import *
from talking_heads.interventions import *
from talking_heads.tasks.known import *
import tiny


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def tok():
    return tiny.tokenizer()


@pytest.mark.parametrize("name", ["ioi", "laundry_list"])
def test_splits_share_no_template_and_seeds_decide(tok, name):
    t = task(name)
    make = lambda split, seed=0: t.prompts(tok, n=30, seed=seed, split=split)
    train, held = (set(make(s).frame().template) for s in ("train", "held-out"))
    assert not train & held and train | held == set(make("all").frame().template)
    assert [p.text for p in make("all")] == [p.text for p in make("all")] != [p.text for p in make("all", 1)]


@pytest.mark.parametrize("name", ["ioi", "laundry_list"])
def test_scores_by_hand(tok, name):
    "One pass over made-up logits, prompt by prompt in plain Python"
    p = task(name).prompts(tok, n=12)
    logits = torch.randn(12, len(tok), generator=torch.Generator().manual_seed(0))
    df = task(name).score(p, logits)
    for q, row, r in zip(p, logits.tolist(), df.itertuples()):
        lead = row[q.answer_id] - max(row[i] for i in q.distractor_ids)
        assert r.logit_diff == pytest.approx(lead, abs=1e-6) and r.correct == (lead > 0)
        assert r.top1 == (row[q.answer_id] == max(row))


def test_windows_are_scored_by_plain_transformers(toy):
    rows = task("induction").prompts(**task_args(toy), n=3, length=8)
    got = task_scores(toy, task("induction"), rows)
    with torch.no_grad():
        logits = toy.original_model(rows).logits.double()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none")
    half = rows.shape[1] // 2
    by = {m: g.value.tolist() for m, g in got.groupby("measure")}
    assert by["loss"] == pytest.approx(loss[:, half:].mean(-1).tolist(), rel=1e-4)
    assert by["first loss"] == pytest.approx(loss[:, : half - 1].mean(-1).tolist(), rel=1e-4)


def unequal(tok):
    "Arguments of `find_heads`: lists, each of which mentions other items, and a task that asks for the first mention"
    t = replace(task("laundry_list"), roles=("mention1",), classes=ioi_classes)
    return t.prompts(tok, n=6), 0, 1, 1, None, t


@pytest.mark.parametrize(
    "ask,said",
    [
        (
            lambda t, k: task("laundry_list").twins_of(task("laundry_list").prompts(k, n=3)),
            "'laundry_list' has no counterfactual",
        ),
        (lambda t, k: task("ioi").prompts(k, split="validation"), "'ioi' has no split 'validation'.*held-out"),
        (lambda t, k: task("ioi").prompts(k, n_items=3), "'ioi' has no option 'n_items'.*templates"),
        (
            lambda t, k: task("ioi").twins_of(task("laundry_list").prompts(k, n=3)),
            "prompts of 'laundry_list', not of the task 'ioi'",
        ),
        (
            lambda t, k: task("laundry_list").prompts(k, n=6).pos("mention1"),
            "'laundry_list'.*'mention1'.*Roles of all: item1",
        ),
        (lambda t, k: task("sonnets"), "no task 'sonnets'.*ioi"),
        (lambda t, k: own_limits([(task("ioi"), "loss", 0.1)]), "'ioi' has no measure 'loss'.*correct"),
        (lambda t, k: find_heads(t, task=task("laundry_list")), "'laundry_list' names no classes.*roles END, answer"),
        (
            lambda t, k: find_heads(t, task("laundry_list").prompts(k, n=3)),
            "prompts of 'laundry_list', not of the task 'ioi'",
        ),
        (lambda t, k: find_heads(t, *unequal(k)), "'laundry_list' has the role mention1.*all of these have: item1"),
        (
            lambda t, k: find_heads(t, task=replace(task("text"), classes=ioi_classes)),
            "'text' has no role that holds the answer.*'mover'",
        ),
        (
            lambda t, k: find_heads(t, task=replace(task("ioi"), classes=ioi_classes[2:])),
            "acts on 'mover', which is not among.*induction",
        ),
        (lambda t, k: HeadClass("x", "reads", 0.1), "scored by 'reads'.*writes, directs, looks"),
        (lambda t, k: HeadClass("x", "looks", 0.1), "needs pattern"),
    ],
)
def test_what_a_task_lacks_is_said_by_name(tok, ask, said):
    with pytest.raises(TaskError, match=said):
        ask(None, tok)


def test_a_task_of_ones_own_is_judged_beside_the_plan(toy):
    own = Task(
        "names", "IOI under a name of its own", lambda tokenizer, n, seed, split, bos: ioi(tokenizer, n, seed, bos)
    )
    plan = AuditPlan(ioi=30, lists=(), contrast=(), induction=0, text=0)
    nothing, circuit = {"1.0.0": 1.0}, dict.fromkeys(["1.0.0", "1.0.1", "1.1.0", "1.1.1"], 0.0)
    check = lambda e: audit(toy, component_edit(toy, e), plan=plan, tasks=[(own, "correct", 0.05)])
    assert "names (own)" in check(circuit).failed
    a = check(nothing)
    assert a.passed and "names (own)" not in a.untested and (a.changes.change == 0).all()
    t = a.changes.set_index(["area", "measure"])
    with pytest.raises(TalkingHeadsError, match="tasks"):
        audit(
            toy,
            component_edit(toy, nothing),
            plan=plan,
            before=take_measurements(toy, plan),
            tasks=[(own, "correct", 0.05)],
        )


def test_finding_knows_no_name_of_a_task_its_classes_or_its_roles(toy):
    "IOI under other names finds the same heads with the same scores; a class of ours may look along a pattern of ours"
    first = lambda tokens: torch.eye(len(tokens))[:1].expand(
        len(tokens), -1
    )  # every head at the first token, by brute force below
    classes = (
        HeadClass("sayer", "writes", 0.05),
        HeadClass("pointer", "directs", 0.05, of="sayer"),
        HeadClass("first", "looks", 0.3, pattern=first),
    )

    def renamed(tokenizer, n, seed, split, bos):
        p = ioi(tokenizer, n, seed, bos)
        new = [
            replace(q, roles={dict(IO="right", S1="one", S2="two").get(k, k): v for k, v in q.roles.items()}) for q in p
        ]
        return replace(p, prompts=tuple(new), task="sayings")

    ours = Task("sayings", "IOI in other words", renamed, roles=("right", "one", "two"), classes=classes)
    a, b = (
        find_heads(toy, t.prompts(**task_args(toy), n=30), n_ablate=10, n_random=2, task=t) for t in (task("ioi"), ours)
    )
    scores = lambda df, cls: df[df.cls == cls].set_index("name").score
    for x, y in (("mover", "sayer"), ("inhibition", "pointer"), ("induction", "induction")):
        assert scores(a, x).equals(scores(b, y)) and len(scores(a, x)) == toy.cfg.n_layers * toy.cfg.n_heads
    assert called_heads(a, "mover") == called_heads(b, "sayer") != ()
    rows = task("induction").prompts(**task_args(toy), n=2)
    _, cache = toy.run_with_cache(rows, names_filter="blocks.1.attn.hook_pattern")
    seen = cache["blocks.1.attn.hook_pattern"][..., 0].mean((0, 2))
    assert scores(b, "first")[[f"1.{h}" for h in range(len(seen))]].tolist() == pytest.approx(seen.tolist(), abs=1e-6)


def test_without_prompts_the_default_task_makes_them(toy):
    p = default_task.prompts(**task_args(toy), n=120)
    a, b = find_heads(toy, n_ablate=4, n_random=2), find_heads(toy, p, n_ablate=4, n_random=2)
    assert a.equals(b)


def test_edits_are_judged_on_any_task_of_prompts(toy):
    t = replace(task("laundry_list"), name="three things")
    sets = evaluation_sets(toy, 1, (8,), 4, 0, 6, 2, others=(t,))
    assert [x.area for x in sets.sets] == ["lists", "lists", "three things", "text"]
    own = sets.sets[2]
    hits = (
        readout(toy, t.prompts(**task_args(toy), n=6, seed=7), ()).logits.argmax(-1)
        == t.prompts(**task_args(toy), n=6, seed=7).answer_ids
    )
    assert own.before["top1"].sum() == hits.sum() and set(own.before) == {"top1", "items"}
    with pytest.raises(TaskError, match="'text' makes windows"):
        evaluation_sets(toy, 1, (8,), 4, 0, 6, 2, others=(task("text"),))
