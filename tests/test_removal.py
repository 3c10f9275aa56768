"Variants, removals and readings of coordinates, against slower ways to the same numbers"

import pytest
import torch

import tiny
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.svd import *
from talking_heads.hooks import *
from talking_heads.interventions import *
from talking_heads.evaluation import *
from talking_heads.circuits.removal import *
from talking_heads.circuits.patching import *

close = lambda a, b, eps=2e-4: torch.testing.assert_close(a.float(), b.float(), atol=eps, rtol=1e-4)
movers, watch = ["2.0", "2.1", "2.3"], ([2, 2, 2], [0, 1, 3])


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def prompts(toy):
    return ioi(**task_args(toy), n=30)


@pytest.fixture(scope="module")
def components_of(toy):
    return head_components(attention_weights("toy", "folded"), ["1.0", "1.1", "1.2"])


@pytest.fixture(params=tiny.kinds)
def model(request, tmp_path_factory):
    return load_model(str(tiny.save(request.param, tmp_path_factory.mktemp(request.param))), device="cpu")


def test_unchanged_variants_are_the_readout(model):
    "On every family, whatever the layer; also with small batches"
    prompts = ioi(**task_args(model), n=12)
    r = readout(model, prompts)
    for layer, rows in ((0, 1000), (2, 5)):
        v = run_variants(model, prompts, {layer: lambda z, g: z}, 3, ["2.1", "2.2"], rows=rows)
        for j in range(3):
            close(v.attention[:, j], r.attention[:, [2, 2], [1, 2]])
            close(v.choices[:, j], choice_logits(r))
            assert (v.top[:, j] == r.logits.argmax(-1)).all()


def test_every_removal_is_the_slow_removal(toy, prompts, components_of):
    names, dirs = components_of
    v = remove_each(toy, prompts, dirs, movers)
    assert v.attention.shape == (30, len(names) + 1, 3, 3)
    for j in range(len(names)):
        r = readout_with_edit(toy, prompts, component_edit(toy, names[j]), "END")
        close(v.attention[:, j], r.attention[:, watch[0], watch[1]])
        close(v.choices[:, j], choice_logits(r), 1e-3)
    r = readout(toy, prompts)
    close(v.attention[:, -1], r.attention[:, watch[0], watch[1]])


def test_stopping_early_changes_nothing(toy, prompts, components_of):
    a, b = (remove_each(toy, prompts, components_of[1], movers, logits=x) for x in (True, False))
    close(a.attention, b.attention)
    assert b.choices.numel() == 0 and b.top.numel() == 0


def test_silencing_is_zero_ablation(toy, prompts):
    v = silence_each(toy, prompts, ["1.0", "1.5"], movers)
    for j, h in enumerate(("1.0", "1.5")):
        r = ablate(toy, prompts, h, how="zero")
        close(v.attention[:, j], r.attention[:, watch[0], watch[1]])
        close(v.choices[:, j], choice_logits(r), 1e-3)


def test_scaling(toy, prompts, components_of):
    "Factor 1 is the model, 0 the removal, any other the edit with that gain"
    names, dirs = components_of
    v = scale_component(toy, prompts, "1.0", dirs[0][1], [1, 0, -2.5], movers)
    removed = remove_each(toy, prompts, dirs[:1], movers)
    close(v.attention[:, 0], removed.attention[:, 1])
    close(v.attention[:, 1], removed.attention[:, 0])
    close(
        v.choices[:, 2],
        choice_logits(readout_with_edit(toy, prompts, component_edit(toy, {names[0]: -2.5}), "END")),
        1e-3,
    )


def test_the_built_in_circuit(toy, components_of):
    "The inhibition heads' components matter at END, the candidates' head's do not carry the message"
    names, dirs = components_of
    f = falls(remove_each(toy, ioi(**task_args(toy), n=60, seed=3), dirs, movers), names).set_index("name")
    assert f.loc[[n for n in names if n.startswith("1.0") or n.startswith("1.1")]].relative.max() > 0.15
    assert f.loc[[n for n in names if n.startswith("1.2")]].relative.abs().max() < f.relative.max()


def test_falls_are_paired_means(toy, prompts, components_of):
    names, dirs = components_of
    v = remove_each(toy, prompts, dirs, movers)
    f, s = falls(v, names), (v.attention[..., 0] - v.attention[..., 1] - v.attention[..., 2]).mean(-1).double()
    for j in range(len(names)):
        assert abs(f.fall[j] - float((s[:, -1] - s[:, j]).mean())) < 1e-9 and f.low[j] <= f.fall[j] <= f.high[j]
        assert abs(f.score[j] + f.fall[j] - float(s[:, -1].mean())) < 1e-9
    d = v.choices[..., 0] - v.choices[..., 1]
    assert abs(f.ld_fall[0] - float((d[:, -1] - d[:, 0]).double().mean())) < 1e-6


def test_places_are_told_where_they_can_be():
    g = torch.Generator().manual_seed(0)
    place = torch.arange(400) % 4
    far = torch.eye(4)[place] * 10 + torch.randn(400, 4, generator=g)
    assert place_decoding(far, place)["mean"] > 0.99 and place_decoding(far, place)["separation"] > 8
    assert abs(place_decoding(torch.randn(400, 4, generator=g), place)["mean"] - 0.25) < 0.12
    near = place_decoding(torch.eye(4)[place] * 1.0 + torch.randn(400, 4, generator=g), place)
    assert near["separation"] < 3 and 0.3 < near["mean"] < 0.9


def test_bad_input_is_named(toy, prompts, components_of):
    with pytest.raises(HeadError, match="one layer"):
        remove_each(toy, prompts, [(Head(1, 0), torch.ones(64)), (Head(0, 0), torch.ones(64))], movers)
    with pytest.raises(HeadError, match="does not exist"):
        scale_component(toy, prompts, "7.0", torch.ones(64), [1], movers)
    with pytest.raises(HeadError, match="does not exist"):
        remove_each(toy, prompts, components_of[1], ["5.0"])
    with pytest.raises(HeadError, match="one layer"):
        head_components(attention_weights("toy"), ["0.1", "1.0"])
    with pytest.raises(HeadError, match="one layer"):
        silence_each(toy, prompts, ["0.1", "1.0"], movers)
    with pytest.raises(HeadError):
        head_components(attention_weights("toy"), ["3.0"])


def test_the_model_is_left_as_it_was(toy, prompts, components_of):
    before = {n: p.clone() for n, p in toy.state_dict().items() if torch.is_tensor(p)}
    remove_each(toy, prompts, components_of[1], movers)

    def fails(z, g):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_variants(toy, prompts, {1: fails}, 2, movers)
    assert all(torch.equal(p, toy.state_dict()[n]) for n, p in before.items())
    close(readout(toy, prompts).logits, readout(load_model("toy", device="cpu"), prompts).logits, 1e-6)
