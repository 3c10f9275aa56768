"""Invented results.json of version 2 (and 1): complete, minimal, weights only,
a failed audit, no heads called. No model ever gave these numbers"""

from copy import deepcopy


def ci(x, half, top=9.0):
    return [round(x - half, 4), round(min(x + half, top), 4)]


def provenance(seed=0, how="quick", **kw):
    return (
        dict(
            source="local",
            sha256="ab12" * 16,
            revision=None,
            processing="raw",
            dtype="float32",
            device="cpu",
            bos=False,
            seed=seed,
            seconds=123.4,
            versions=dict(python="3.11.2", talking_heads="0.1.0", torch="2.13.0"),
            settings=dict(how=how, n_prompts=231, list_lengths=[2, 3, 5, 8]),
        )
        | kw
    )


def ioi():
    order = lambda a, d: dict(n=116, accuracy=a, accuracy_ci=ci(a, 0.03), logit_diff=d, logit_diff_ci=ci(d, 0.4))
    return dict(
        n=231,
        accuracy=0.961,
        accuracy_ci=[0.927, 0.982],
        logit_diff=4.37,
        logit_diff_ci=[4.11, 4.63],
        by_order=dict(ABBA=order(0.954, 4.2), BABA=order(0.967, 4.5)),
    )


def heads(called=True):
    row = lambda h, s: dict(head=h, score=s, ci=ci(s, 0.02))
    out = {c: [] for c in ("mover", "negative_mover", "inhibition", "duplicate_token", "induction", "previous_token")}
    if called:
        out |= dict(
            mover=[row("9.1", 0.41), row("9.4", 0.33)], inhibition=[row("7.2", -0.22)], induction=[row("5.5", 0.6)]
        )
    return out


def laundry_list():
    by = {2: (0.986, 0.9), 3: (0.874, 0.71), 5: (0.563, 0.42), 8: (0.247, 0.16)}
    length = lambda k, a, t: dict(
        n=137,
        accuracy=a,
        ci=ci(a, 0.05, 1.0),
        top1=t,
        top1_ci=ci(t, 0.06),
        by_position={str(i): round(a - 0.03 * (i - 1), 4) for i in range(1, k + 1)},
    )
    return dict(template="things", by_n={str(k): length(k, *v) for k, v in by.items()})


def removal():
    return dict(
        component="7.2.0",
        fall=0.167,
        ci=[0.151, 0.183],
        relative=0.759,
        relative_ci=[0.686, 0.832],
        largest_other=0.048,
        n=58,
        everywhere={
            k: dict(score=s, ci=ci(s, 0.02), logit_diff=4.0, accuracy=0.9)
            for k, s in {"intact": 0.22, "7.2.0": 0.06, "random, components 0": 0.21}.items()
        },
    )


def steering():
    return {
        str(k): dict(
            n=64,
            components=["7.2.0", "7.2.3", "7.2.9"],
            named=v,
            ci=ci(v, 0.06),
            top1=v - 0.1,
            looked=v - 0.05,
            random=0.39,
            random_ci=[0.31, 0.47],
        )
        for k, v in ((3, 0.91), (5, 0.64))
    }


def weights():
    row = dict(src="7.2.0", dst="9.1", score=0.21, z=11.3)
    part = dict(
        n=340, share=0.38, ci=[0.35, 0.41], random=0.09, random_ci=[0.08, 0.1], excess=0.12, excess_ci=[0.09, 0.15]
    )
    board = dict(
        n_edges=6,
        component=0.44,
        component_ci=[0.3, 0.6],
        head=0.21,
        lift=0.23,
        lift_ci=[0.05, 0.4],
        chance=0.02,
        p=0.004,
        median_component=4.0,
        median_head=11.0,
    )
    return dict(
        processing="folded",
        n_layers=12,
        n_heads=8,
        strongest=dict(Q=[row, row | dict(z=9.0)], K=[row | dict(src="4.1.0", dst="5.5", z=8.1)], V=[]),
        concentration={m: dict(part) for m in "QKV"},
        board=dict(Q=board),
        board_edges="found in this model by ablation",
    )


def signal():
    return dict(
        component="7.2.0",
        n=192,
        order=0.83,
        names=0.04,
        template=0.06,
        others=0.01,
        transfer=0.97,
        transfer_ci=[0.94, 0.99],
        shuffled=0.51,
    )


def crowding():
    return dict(
        lengths=[
            dict(n_items=k, skill=s, low=s - 0.07, high=s + 0.07, n=137)
            for k, s in ((2, 0.972), (5, 0.454), (8, 0.139))
        ],
        order=[
            dict(n_items=5, order=o, mean=m, low=m - 0.07, high=m + 0.07, n=70)
            for o, m in (("forward", 0.6), ("reversed", 0.49))
        ],
        p_order=0.013,
        p_position=0.002,
    )


def lifting():
    row = lambda n, a, b, s="held-out", h=0.06: dict(
        split=s,
        n_items=n,
        before=a,
        after=b,
        change=round(b - a, 4),
        low=round(b - a - h, 4),
        high=round(b - a + h, 4),
        n=148,
    )
    return dict(
        scaling=[
            dict(alpha=a, n_items=5, split=s, before=0.4, change=c, low=c - 0.04, high=c + 0.04, n=88, chosen=a == 1.5)
            for s in ("train", "test")
            for a, c in ((1.5, 0.022), (2.0, -0.03))
        ],
        learned=dict(
            n_gains=62,
            layer=7,
            lists=[row(5, 0.553, 0.862, "train"), row(5, 0.512, 0.834), row(8, 0.261, 0.487)],
            random=[row(5, 0.553, 0.571, "train"), row(5, 0.512, 0.538), row(8, 0.261, 0.247)],
        ),
    )


limits = dict(kl=0.02, loss=0.005, ioi=0.01, induction=0.1, lists=0.05, wrong=0.05, lag=0.5)


def audit(failed=False):
    v = lambda rule, value, high, **kw: (
        dict(
            rule=rule,
            verdict="pass" if high <= limits[rule] else "unsure" if value <= limits[rule] else "fail",
            value=value,
            low=value - (high - value),
            high=high,
            limit=limits[rule],
            used=round(value / limits[rule], 4),
            reason="measured",
        )
        | kw
    )
    rows = [
        v("kl", 0.0113, 0.0124),
        v("loss", 0.0027, 0.0044),
        v("ioi", 0.004, 0.0137),
        v("lag", 0.077, 0.2),
        v("wrong", 0.031, 0.046),
        v("lists", -0.2, -0.1),
    ]
    if failed:
        rows[4] = v("wrong", 0.186, 0.214)
    rows.append(
        dict(
            rule="induction",
            verdict="untested",
            value=None,
            low=None,
            high=None,
            limit=0.1,
            used=None,
            reason="this model does not predict repeated tokens much better than new ones",
        )
    )
    rows.sort(key=lambda r: -(r["used"] if r["used"] is not None else -9))
    of = lambda k: [r["rule"] for r in rows if r["verdict"] == k]
    return dict(
        passed=not of("fail"),
        first=rows[0]["rule"],
        failed=of("fail"),
        unsure=of("unsure"),
        untested=of("untested"),
        budget=limits | dict(strict=False),
        verdicts=rows,
    )


def forecast():
    return dict(
        n=416,
        auroc=0.793,
        ci=[0.748, 0.838],
        confidence=0.712,
        confidence_ci=[0.66, 0.764],
        both=0.815,
        both_ci=[0.77, 0.86],
        shuffled=0.503,
        base_rate=0.447,
        longest=[dict(accuracy=0.8, n_items=3), dict(accuracy=0.9, n_items=2)],
        worst=[
            dict(n_items=8, position=6, failure=0.914, low=0.82, high=0.968, n=53),
            dict(n_items=8, position=7, failure=0.9, low=0.8, high=0.96, n=53),
        ],
    )


def verdicts():
    v = lambda k, title, verdict, reason: dict(
        claim=k,
        title=title,
        verdict=verdict,
        reason=reason,
        rule=f"rule of {k}",
        control=f"control of {k}",
        evidence=dict(value=0.759, other=0.048),
    )
    return [
        v(
            "low_rank",
            "Channels are low-rank",
            "replicates",
            "the loudest component carries more than in a random basis",
        ),
        v("components", "Components beat whole heads", "replicates", "their average precision is higher"),
        v("removal", "Removing one component breaks inhibition", "replicates", "it took most of the score"),
        v("lifting", "An edit lifts the task", "partly", "random gains do part of it"),
        v("order", "Order matters", "does not replicate", "no effect beyond chance"),
        v("gpt2", "The named edges of one model", "cannot be tested here", "they belong to another model"),
    ]


def complete(model="invented-complete", **kw):
    return dict(
        schema_version=2,
        model=model,
        provenance=provenance(**kw),
        ioi=ioi(),
        heads=heads(),
        laundry_list=laundry_list(),
        removal=removal(),
        steering=steering(),
        weights=weights(),
        signal=signal(),
        crowding=crowding(),
        lifting=lifting(),
        audit=audit(),
        forecast=forecast(),
        verdicts=verdicts(),
    )


def without(r, *sections):
    return {k: deepcopy(v) for k, v in r.items() if k not in sections}


def minimal():
    return dict(schema_version=2, model="invented-minimal", provenance=provenance(sha256="cd34" * 16), verdicts=[])


def failed_audit():
    return complete("invented-failed") | dict(audit=audit(failed=True))


def no_heads():
    return without(
        complete("invented-headless"), "removal", "steering", "signal", "forecast", "lifting", "audit"
    ) | dict(heads=heads(called=False))


def weights_only():
    "As `th_paper` leaves it where a checkpoint holds attention weights alone"
    r = without(
        complete("invented-weights"),
        "ioi",
        "heads",
        "laundry_list",
        "removal",
        "steering",
        "signal",
        "crowding",
        "lifting",
        "audit",
        "forecast",
    ) | dict(untested={s: "It cannot run forward." for s in ("removal", "lifting")})
    r["provenance"] = {k: v for k, v in r["provenance"].items() if k not in ("device", "bos")} | dict(
        processing="folded", settings=dict(known="gpt2")
    )
    return r


def quick():
    "Nothing trained: one direction scaled, no audit"
    r = without(complete("invented-quick"), "audit")
    r["lifting"].pop("learned")
    return r


def version_1():
    return without(
        complete("invented-old"), "weights", "signal", "crowding", "lifting", "audit", "forecast", "verdicts"
    ) | dict(schema_version=1)


every = dict(
    complete=complete,
    quick=quick,
    minimal=minimal,
    failed_audit=failed_audit,
    no_heads=no_heads,
    weights_only=weights_only,
    version_1=version_1,
)
