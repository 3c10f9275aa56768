"The toy model: plain transformers load it, it solves its tasks, its circuit does it, training repeats to the bit"

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.evaluation import *
from talking_heads.hooks import *
from talking_heads.toys.toy import *
from talking_heads.circuits.patching import *
from talking_heads.circuits.finding import *


@pytest.fixture(scope="module")
def model():
    return load_model("toy", device="cpu")


def test_plain_transformers_load_it(model):
    path = find_checkpoint("toy").path
    assert (path / "model.safetensors").stat().st_size < 500_000
    plain, tok = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    p = ioi(tok, n=8, bos=True)
    assert p[0].tokens == ioi(**task_args(model), n=8)[0].tokens == tuple(tok(p[0].text)["input_ids"])
    g = p.groups()[0]
    with torch.no_grad():
        torch.testing.assert_close(plain(p[g].tokens).logits, model(p[g].tokens), atol=1e-4, rtol=1e-4)


def test_it_solves_its_tasks(model):
    a = task_args(model)
    assert prompt_scores(readout(model, ioi(**a, n=300, seed=77))).top1.mean() >= 0.99
    for n in (2, 4, 6):
        assert prompt_scores(readout(model, laundry_list(**a, n_items=n, n=200, seed=77), to=())).top1.mean() >= 0.97


def test_its_heads_look_where_they_were_told(model):
    p = ioi(**task_args(model), n=60, seed=78)
    r = readout(model, p)
    s2, io = r.attention[:, 1, :2, 2], r.attention[:, 2, :4, 0]
    assert float(s2.mean()) > 0.95 and float(io.mean()) > 0.95
    assert float(r.attention[:, 1, 3:].sum(-1).mean()) < 0.05


def test_ablating_the_inhibition_heads_breaks_it_and_others_do_not(model):
    p = ioi(**task_args(model), n=120, seed=79)
    score = lambda r: float(inhibition_score(r.attention[:, [2] * 4, [0, 1, 2, 3]]).mean())
    whole = score(readout(model, p))
    assert score(ablate(model, p, ["1.0", "1.1"], how="zero")) < 0.2 * whole
    assert score(ablate(model, p, ["1.4", "1.6"], how="zero")) > 0.8 * whole


def test_the_rank_limit_holds(model):
    from talking_heads.composition import write_directions
    from talking_heads.svd import attention_weights

    S, _ = write_directions(attention_weights("toy")[1])
    assert (S[:2, 2:] < 1e-5).all() and (S[2, 4:] < 1e-5).all() and (S[:2, 1] > 0.1).all()


def test_training_repeats_to_the_bit_and_begins_as_committed():
    threads = torch.get_num_threads()
    a, b = (train_toy(2, size=300, total=1500)[0].state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a) and torch.get_num_threads() == threads
    committed = json.loads((find_checkpoint("toy").path / "toy.json").read_text())
    _, _, log = train_toy(3, seed=committed["seed"], total=1500)
    torch.testing.assert_close(torch.tensor(log), torch.tensor(committed["first"][:3]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["toy", "toy-position"])
def test_altered_weights_are_refused(name, tmp_path, monkeypatch):
    shutil.copytree(find_checkpoint(name).path, tmp_path / "models" / name)
    monkeypatch.setattr("talking_heads.base.checkpoints.files", lambda _: tmp_path)
    f = tmp_path / "models" / name / "model.safetensors"
    assert find_checkpoint(name).source == "embedded"
    raw = bytearray(f.read_bytes())
    raw[-5] ^= 1
    f.write_bytes(raw)
    with pytest.raises(CheckpointError, match="altered"):
        find_checkpoint(name)
    (tmp_path / "models" / name / "toy.json").unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        find_checkpoint(name)
