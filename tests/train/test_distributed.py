"""Two processes with gloo compute the same as one on the joined batch."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from lilliput.core.recipe import Recipe
from lilliput.distill.attention import Attention
from lilliput.distill.hints import Hints
from lilliput.distill.logits import Logits
from lilliput.train.attach import attach
from lilliput.train.fit import fit
from lilliput.train.lesson import Lesson

BODIES = {
    "prune": 'steps = [{method = "prune/magnitude", sparsity = 0.8}]\n'
    'schedule = {method = "prune/iterative", rounds = 3, until = 0.6}\n',
    "prune_share": 'steps = [{method = "prune/magnitude", sparsity = 0.5}, {method = "share/kmeans", bits = 2}]\n',
    "svd_uniform": 'steps = [{method = "factorize/svd", rank = 3}, {method = "quantize/uniform", bits = 8}]\n',
    "uniform": 'steps = [{method = "quantize/uniform", bits = 4}]\n',
    "activations": 'activations = {method = "quantize/activations/uniform", bits = 4, clip = 2.0}\n',
}

CHILD = """
import sys
sys.path.insert(0, {here!r})
import torch
import torch.distributed as dist
from lilliput.train.fit import FitOptions
from test_distributed import *
torch.set_num_threads(1)
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{{port}}", rank=rank, world_size=2)
for name, body in BODIES.items():
    model = attach(network(), Recipe.loads("[[rule]]\\n" + body))
    whole = nn.parallel.DistributedDataParallel(model)
    half = [(x[rank::2], y[rank::2]) for x, y in batches()]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    options = FitOptions(checkpoint=f"{{folder}}/{{name}}.checkpoint")
    losses = fit(whole, half, epochs=2, optimizer=optimizer, options=options)
    seen = {{"state": model.state_dict(), "grads": grads(model), "losses": losses}}
    torch.save(seen, f"{{folder}}/{{name}}.{{rank}}")
lesson = taught()
whole = nn.parallel.DistributedDataParallel(lesson.student)
lesson = Lesson(whole, lesson.teacher, lesson.losses, example=batches()[0][0])
optimizer = torch.optim.SGD([*whole.parameters(), *lesson.parameters()], lr=LEARNING_RATE)
for x, y in batches():
    optimizer.zero_grad()
    lesson(x[rank::2], y[rank::2]).backward()
    optimizer.step()
seen = {{"student": whole.module.state_dict(), "beside": lesson.regressors.state_dict()}}
torch.save(seen, f"{{folder}}/lesson.{{rank}}")
dist.destroy_process_group()
"""

LEARNING_RATE = 0.01


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 12))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 6, generator=generator), torch.randint(12, (16,), generator=generator)) for _ in range(5)]


def taught():
    """A student with losses whose mean over two halves of a batch is that over the batch."""
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 12))
    losses = [Logits(), Hints(("0",)), Attention(form="gradient", weight=0.5)]
    return Lesson(network(), teacher, losses, example=batches()[0][0])


def grads(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = textwrap.dedent(CHILD).format(here=os.path.dirname(__file__))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(port), str(path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for child in children:
        try:
            _, err = child.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            for one in children:
                one.kill()
            raise
        assert child.returncode == 0, err
    return path


@pytest.mark.parametrize("name", BODIES)
def test_two_processes_equal_one(folder, name):
    first, second = (torch.load(folder / f"{name}.{rank}", weights_only=True) for rank in range(2))
    assert first["grads"].keys() == second["grads"].keys()
    assert all(torch.equal(value, second["grads"][key]) for key, value in first["grads"].items())
    assert all(torch.equal(value, second["state"][key]) for key, value in first["state"].items())
    model = attach(network(), Recipe.loads("[[rule]]\n" + BODIES[name]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    losses = fit(model, batches(), epochs=2, optimizer=optimizer)
    for key, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            assert torch.allclose(first["state"][key], value, atol=1e-5), key
        else:
            assert torch.equal(first["state"][key], value), key
    both = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"])]
    assert both == pytest.approx(losses, abs=1e-4)
    assert (folder / f"{name}.checkpoint").exists()


def test_two_processes_are_taught_as_one(folder):
    """Hints' regressor and the second derivatives of attention by gradients among them."""
    first, second = (torch.load(folder / f"lesson.{rank}", weights_only=True) for rank in range(2))
    lesson = taught()
    optimizer = torch.optim.SGD([*lesson.student.parameters(), *lesson.parameters()], lr=LEARNING_RATE)
    for x, y in batches():
        optimizer.zero_grad()
        lesson(x, y).backward()
        optimizer.step()
    for part, own in (("student", lesson.student), ("beside", lesson.regressors)):
        for key, value in own.state_dict().items():
            assert torch.equal(first[part][key], second[part][key]), key
            assert torch.allclose(first[part][key], value, atol=1e-6), key
    assert not torch.equal(lesson.regressors.state_dict()["1_0.weight"], taught().regressors.state_dict()["1_0.weight"])
