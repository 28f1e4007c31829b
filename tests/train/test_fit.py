"""`fit`: a plain loop, its defaults, its errors, distillation, schedules and checkpoints."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from lilliput.core.errors import DataError, FileError, ModelError
from lilliput.core.recipe import Recipe
from lilliput.distill.logits import Logits
from lilliput.train.attach import attach, attached, new_parameters
from lilliput.train.fit import FitOptions, default_optimizer, fit, rate

PRUNE = 'steps = [{method = "prune/magnitude", sparsity = 0.9}]\n'
ITERATIVE = PRUNE + 'schedule = {method = "prune/iterative", rounds = 3, until = 0.6}\n'
SHARE = 'steps = [{method = "prune/magnitude", sparsity = 0.5}, {method = "share/kmeans", bits = 2}]\n'


def recipe(body):
    return Recipe.loads("[[rule]]\n" + body)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 3))


def batches(count=8, size=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count * size, 6, generator=generator)
    targets = inputs[:, :3].argmax(1)
    return [(inputs[i : i + size], targets[i : i + size]) for i in range(0, count * size, size)]


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.state_dict().values() if p.dtype.is_floating_point])


def test_learns():
    model = network()
    losses = fit(model, batches(), epochs=30, options=FitOptions(learning_rate=1e-2))
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]


def test_same_seed_same_numbers_and_the_callers_randomness_is_left_alone():
    first, second, third = network(), network(), network()
    loader = torch.utils.data.DataLoader(list(zip(*(torch.cat(x) for x in zip(*batches())))), 16, shuffle=True)
    state = torch.get_rng_state()
    fit(first, loader, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    fit(second, loader, epochs=2)
    fit(third, loader, epochs=2, options=FitOptions(seed=1))
    assert torch.equal(weights_of(first), weights_of(second))
    assert not torch.equal(weights_of(first), weights_of(third))


def test_the_loaders_order_differs_between_epochs():
    seen = []
    loader = torch.utils.data.DataLoader(range(12), 3, shuffle=True, generator=torch.Generator())

    class Sees(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            seen.append(x.tolist())
            return self.weight * x

    fit(Sees(), loader, epochs=2, loss=lambda output, target: output.float().mean())
    first, second = (sorted(i for batch in epoch for i in batch) for epoch in (seen[:4], seen[4:]))
    assert first == second == list(range(12))
    assert seen[:4] != seen[4:]


def test_modes_come_back():
    model, teacher = network().eval(), network(1)
    model[2].train()
    fit(model, batches(2), teacher=teacher)
    assert [m.training for m in model.modules()] == [False, False, False, True, False]
    assert all(m.training for m in teacher.modules())


def test_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [rate(i / 200) for i in range(201)]
    assert 0 < rates[0] < 0.2
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert abs(rates[-1]) < 1e-12
    assert rate(0.525) == pytest.approx(0.5)


def test_users_optimizer_keeps_its_rate_and_gets_new_parameters():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach(model, recipe('steps = [{method = "share/kmeans", bits = 2}]\n'))
    codebooks = new_parameters(model)
    before = [c.detach().clone() for c in codebooks]
    fit(model, batches(2), optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(c) for c in codebooks} <= held
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert all(not torch.equal(a, b) for a, b in zip(before, codebooks))


def test_default_optimizer_takes_every_trained_parameter_once():
    model = attach(network(), recipe(SHARE))
    groups = default_optimizer(model, FitOptions()).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in new_parameters(model)}
    assert groups[2]["lr"] == pytest.approx(3e-4)
    assert groups[1]["weight_decay"] == groups[2]["weight_decay"] == 0


def test_default_trains_a_codebook_without_diverging():
    model = network()
    data = batches(16)
    fit(model, data, epochs=20, options=FitOptions(learning_rate=1e-2))
    attach(model, recipe(SHARE))
    losses = fit(model, data, epochs=10, options=FitOptions(learning_rate=1e-2))
    assert losses[-1] < losses[0]


def test_schedule_moves_and_ends_at_the_target():
    model = attach(network(), recipe(ITERATIVE))
    kept = []
    options = FitOptions(log=lambda facts, step: kept.append(int((model[0].weight != 0).sum())))
    fit(model, batches(5), epochs=4, options=options)
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 3
    assert kept[-1] == 144 - round(0.9 * 144)
    assert kept[12] == kept[-1]


def test_schedule_with_one_step_ends_at_the_target():
    model = attach(network(), recipe(ITERATIVE))
    fit(model, batches(1))
    assert int((model[0].weight != 0).sum()) == 144 - round(0.9 * 144)


def test_iterable_without_length():
    class Endless:
        def __iter__(self):
            yield from batches(3)

    steps = []
    model = attach(network(), recipe(ITERATIVE))
    fit(model, Endless(), epochs=3, options=FitOptions(log=lambda facts, step: steps.append(facts["epoch"])))
    assert steps == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert int((model[0].weight != 0).sum()) == 144 - round(0.9 * 144)


def test_distillation_pulls_to_the_teacher():
    teacher, student = network(3), network(4)
    data = batches(8)
    inputs = torch.cat([x for x, _ in data])
    before = functional.mse_loss(student.eval()(inputs), teacher.eval()(inputs))
    frozen = weights_of(teacher).clone()
    fit(student, data, epochs=20, loss=Logits(weight=1.0), teacher=teacher, options=FitOptions(learning_rate=1e-2))
    after = functional.mse_loss(student.eval()(inputs), teacher.eval()(inputs))
    assert float(after.detach()) < 0.5 * float(before.detach())
    assert torch.equal(weights_of(teacher), frozen)
    assert all(p.grad is None for p in teacher.parameters())


def test_dict_batches_use_the_models_own_loss():
    from types import SimpleNamespace

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 3)

        def forward(self, x, labels=None):
            logits = self.net(x)
            return SimpleNamespace(logits=logits, loss=None if labels is None else 7 + 0 * logits.sum())

    data = [{"x": x, "labels": y} for x, y in batches(2)]
    assert fit(Labelled(), data) == [7.0]
    assert fit(Labelled(), data, teacher=Labelled())[0] != 7.0


def test_dict_batches_without_the_models_own_loss():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 3)

        def forward(self, x):
            return {"logits": self.net(x)}

    losses = fit(Plain(), [{"x": x, "labels": y} for x, y in batches(4)], epochs=5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("data", "epochs", "message"),
    [
        ([], 1, "empty"),
        (iter(batches(2)), 2, "no iterator"),
        ([torch.ones(2, 6)], 1, "targets"),
        (batches(1), 0, "epochs"),
    ],
)
def test_data_that_cannot_be_used(data, epochs, message):
    with pytest.raises(DataError, match=message):
        fit(network(), data, epochs=epochs)


def test_teacher_and_loss_need_one_another():
    with pytest.raises(DataError, match="need one another"):
        fit(network(), batches(1), loss=Logits())
    with pytest.raises(DataError, match="need one another"):
        fit(network(), batches(1), loss=functional.cross_entropy, teacher=network())


def test_nan_loss_is_one_clear_error_and_no_step():
    data = batches(3)
    data[1][0][0, 0] = float("nan")
    model, steps = network(), []
    with pytest.raises(ModelError, match=r"loss is nan in step 2 \(epoch 1\)") as raised:
        fit(model, data, options=FitOptions(log=lambda facts, step: steps.append(step)))
    assert "\n" not in str(raised.value)
    assert steps == [1]
    assert bool(torch.isfinite(weights_of(model)).all())


def test_frozen_model_is_an_error():
    with pytest.raises(ModelError, match="no parameter"):
        fit(network().requires_grad_(False), batches(1))


def test_log_gets_the_facts():
    lines = []
    losses = fit(network(), batches(3), options=FitOptions(log=lambda facts, step: lines.append((step, facts))))
    assert [step for step, _ in lines] == [1, 2, 3]
    assert sum(facts["loss"] for _, facts in lines) / 3 == pytest.approx(losses[0])


def test_progress_on_stderr_only_when_wanted(capfd):
    fit(network(), batches(2))
    assert capfd.readouterr() == ("", "")
    fit(network(), batches(2), options=FitOptions(progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert "training" in err


def test_clip_bounds_the_step():
    model = network()
    before = weights_of(model).clone()
    fit(model, batches(1), optimizer=torch.optim.SGD(model.parameters(), lr=1.0), options=FitOptions(clip=1e-3))
    assert float((weights_of(model) - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_checkpoint_is_safetensors_and_whole(tmp_path):
    path = tmp_path / "state"
    fit(attach(network(), recipe(SHARE)), batches(2), options=FitOptions(checkpoint=path))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    assert "model/0.parametrizations.weight.0.part_mask" in names
    assert "optimizer/0.parametrizations.weight.0.next_values.part_codebook/exp_avg" in names


def test_finished_training_is_not_done_again(tmp_path):
    path = tmp_path / "state"
    model = network()
    losses = fit(model, batches(2), epochs=2, options=FitOptions(checkpoint=path))
    again = network(5)
    assert fit(again, batches(2), epochs=2, options=FitOptions(checkpoint=path)) == losses
    assert torch.equal(weights_of(again), weights_of(model))


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(FileError, match="state: no checkpoint"):
        fit(network(), batches(1), options=FitOptions(checkpoint=path))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "state"
    fit(network(), batches(1), options=FitOptions(checkpoint=path))
    with pytest.raises(ModelError, match="another model"):
        fit(nn.Linear(6, 3), batches(1), options=FitOptions(checkpoint=path))
    with pytest.raises(ModelError, match="another recipe"):
        fit(attach(network(), recipe(PRUNE)), batches(1), options=FitOptions(checkpoint=path))


def test_checkpoint_that_cannot_be_written(tmp_path):
    with pytest.raises(FileError, match="can't be written"):
        fit(network(), batches(1), options=FitOptions(checkpoint=tmp_path / "missing" / "state"))


SCRIPT = """
import os, signal, sys
sys.path[:0] = [{here!r}]
import torch
from test_fit import *
torch.set_num_threads(1)
path, stop, body = sys.argv[1], int(sys.argv[2]), sys.argv[3]
model = network(int(sys.argv[4]))
if body:
    attach(model, recipe(body))
loader = torch.utils.data.DataLoader(list(zip(*(torch.cat(x) for x in zip(*batches())))), 16, shuffle=True)
def log(facts, step):
    if step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
losses = fit(model, loader, epochs=3, options=FitOptions(checkpoint=path, every=3, log=log, seed=9))
print(repr(losses))
"""


def run(path, stop, body, seed=0):
    here = os.path.dirname(__file__)
    script = textwrap.dedent(SCRIPT).format(here=here)
    command = [sys.executable, "-c", script, str(path), str(stop), body, str(seed)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("body", [ITERATIVE, SHARE], ids=["iterative", "share"])
def test_killed_and_resumed_gives_the_same_numbers_bit_for_bit(tmp_path, body):
    """Killed after step 11 of 24 (in epoch 2; the last checkpoint is of step 9), gone on with from other weights."""
    whole = run(tmp_path / "whole", -1, body)
    assert whole.returncode == 0, whole.stderr
    killed = run(tmp_path / "killed", 11, body)
    assert killed.returncode == -signal.SIGKILL
    resumed = run(tmp_path / "killed", -1, body, seed=7)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout
    with safe_open(tmp_path / "whole", "pt") as one, safe_open(tmp_path / "killed", "pt") as other:
        assert set(one.keys()) == set(other.keys())
        for name in one.keys():  # noqa: SIM118
            assert torch.equal(one.get_tensor(name), other.get_tensor(name)), name


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
def test_resumed_from_every_step(tmp_path, stop):
    """In one process: stopped by an exception after each step, checkpoints after each."""

    class Stop(Exception):
        pass

    def log(facts, step):
        if step == stop + 1:
            raise Stop

    options = {"checkpoint": tmp_path / "state", "every": 1}
    whole = attach(network(), recipe(ITERATIVE))
    losses = fit(whole, batches(4), epochs=2)
    part = attach(network(), recipe(ITERATIVE))
    with pytest.raises(Stop):
        fit(part, batches(4), epochs=2, options=FitOptions(**options, log=log))
    resumed = attach(network(8), recipe(ITERATIVE))
    assert fit(resumed, batches(4), epochs=2, options=FitOptions(**options)) == losses
    assert torch.equal(weights_of(resumed), weights_of(whole))
    masks = [list(m.buffers()) for m in (resumed, whole)]
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(*masks))
    assert [n.steps for _, n in attached(resumed)] == [n.steps for _, n in attached(whole)]
