"""Two processes with gloo: means of both, bytes by formula, training as by one, resuming, a process that dies."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from lilliput.core.method import find
from lilliput.train.fit import FitOptions, fit  # noqa: F401 - the children take both from here

HOOKS = ("terngrad", "eight_bit", "qsgd", "deep_gradient_compression")
EVERYTHING = {"deep_gradient_compression": {"density": 1.0}}

CHILD = """
import sys
sys.path.insert(0, {here!r})
import warnings
import torch.distributed as dist
from test_two_processes import *
from lilliput.core.errors import ExchangeError
from lilliput.testing.gradient_hook import Steps, gradients
from lilliput.train.pipeline import receive, send
torch.set_num_threads(1)
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{{port}}", rank=rank, world_size=2)
seen = {{}}
for name in HOOKS:
    steps = Steps(find("train/gradients", name)(**EVERYTHING.get(name, {{}})))
    results = torch.stack([steps.step(gradients(rank)) for _ in range(1 if name in EVERYTHING else 100)])
    seen[name] = results.mean(0)
    seen[name + ".last"] = results[-1]
    seen[name + ".bytes"] = torch.tensor([steps.state.sent, steps.state.plain, len(results)])
for name in HOOKS:
    whole, state = model_with(name)
    fit(whole, halves(rank), epochs=2, optimizer=sgd(whole), options=FitOptions(hook=state))
    seen[name + ".trained"] = torch.cat([p.detach().flatten() for p in whole.module.parameters()])
    # The same by a kill after one epoch: model and hook go on from what was saved.
    path = f"{{folder}}/{{name}}.checkpoint"
    for epochs in (1, 2):
        whole, state = model_with(name)
        fit(whole, halves(rank), epochs=epochs, optimizer=sgd(whole), options=FitOptions(hook=state, checkpoint=path))
        dist.barrier()
    seen[name + ".resumed"] = torch.cat([p.detach().flatten() for p in whole.module.parameters()])
first, second = parts()
x, y = batches()[0]
if rank == 0:
    hidden = first(x)
    send(hidden, to=1).backward()
    seen["pipeline"] = first[0].weight.grad
else:
    nn.functional.cross_entropy(second(receive((16, 24), 0)), y).backward()
    seen["pipeline"] = second[0].weight.grad
torch.save(seen, f"{{folder}}/{{rank}}")
dist.barrier()
whole, state = model_with("eight_bit")
if rank == 1:
    whole.module.register_forward_hook(lambda *_: os._exit(9) if state.step == 3 else None)
try:
    fit(whole, halves(rank), epochs=2, optimizer=sgd(whole), options=FitOptions(hook=state))
except ExchangeError as error:
    print(error)
os._exit(0)
"""


def model_with(name, size=24, hooked=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, size), nn.Tanh(), nn.Linear(size, 12))
    whole = nn.parallel.DistributedDataParallel(model)
    if not hooked:
        return whole, None
    return whole, find("train/gradients", name)(**EVERYTHING.get(name, {})).on(whole)


def parts():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh()), nn.Sequential(nn.Linear(24, 12))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 6, generator=generator), torch.randint(12, (16,), generator=generator)) for _ in range(5)]


def halves(rank):
    return [(x[rank::2], y[rank::2]) for x, y in batches()]


def sgd(model, momentum=0.0):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = textwrap.dedent(CHILD).format(here=os.path.dirname(__file__))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    children = [
        subprocess.Popen(
            [*command, str(rank), str(port), str(path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = []
    for child in children:
        try:
            outputs.append(child.communicate(timeout=200))
        except subprocess.TimeoutExpired:
            for one in children:
                one.kill()
            raise
    (path / "said").write_text(json.dumps([*outputs[0], children[0].returncode, children[1].returncode]))
    assert (path / "0").exists(), outputs
    return path


@pytest.fixture(scope="module")
def both(folder):
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


def mean_gradient():
    from lilliput.testing.gradient_hook import gradients

    return torch.stack([torch.cat([g.flatten() for g in gradients(rank)]) for rank in range(2)]).mean(0)


@pytest.mark.parametrize("name", HOOKS)
def test_both_get_the_same_mean(both, name):
    assert torch.equal(both[0][name + ".last"], both[1][name + ".last"])
    assert torch.equal(both[0][name + ".trained"], both[1][name + ".trained"])
    close = {"eight_bit": 1e-3, "deep_gradient_compression": 1e-6}.get(name, 0.35)
    assert float((both[0][name] - mean_gradient()).abs().max()) < close
    cosine = torch.cosine_similarity(both[0][name], mean_gradient(), dim=0)
    assert float(cosine) > 0.98


def test_bytes_are_what_the_formula_says(both):
    """72 numbers in three parameters: half of them go each way; 2 (n - 1) / n of 4 bytes each without a hook."""
    each = {name: [int(v) for v in both[0][name + ".bytes"]] for name in HOOKS}
    for sent, plain, steps in each.values():
        assert plain == steps * 72 * 4
        assert sent > 0
    scales = 3 * 4
    assert each["eight_bit"][0] == 100 * (36 + 36 + scales)
    assert each["terngrad"][0] == 100 * (8 + 16 + scales)  # 36 digits of base 3, 5 a byte; of base 5, 27 in 8 bytes
    assert each["qsgd"][0] == 100 * 2 * (4 + 18)  # a norm, and 36 digits of base 15, 2 a byte
    assert each["deep_gradient_compression"][0] == 72 * 4, "all are small and sent whole"


@pytest.mark.parametrize("name", HOOKS)
def test_a_resumed_training_ends_where_the_other_does(both, name):
    for rank in range(2):
        assert torch.equal(both[rank][name + ".resumed"], both[rank][name + ".trained"])


def test_training_is_as_by_one_process(both):
    """Everything sent is SGD with momentum on whole batches; 8 bits are near SGD."""
    for name, momentum, close in (("deep_gradient_compression", 0.9, 1e-5), ("eight_bit", 0.0, 2e-3)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 12))
        fit(model, batches(), epochs=2, optimizer=sgd(model, momentum))
        trained = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert float((trained - both[0][name + ".trained"]).abs().max()) < close


def test_two_parts_of_a_model_in_two_processes(both):
    """Gradients of both parts are near those of the whole."""
    first, second = parts()
    x, y = batches()[0]
    nn.functional.cross_entropy(second(first(x)), y).backward()
    for part, found in ((first, both[0]), (second, both[1])):
        wanted = part[0].weight.grad
        assert float((found["pipeline"] - wanted).norm() / wanted.norm()) < 0.05


def test_a_dead_process_is_named(folder):
    out, err, survivor, dead = json.loads((folder / "said").read_text())
    assert (survivor, dead) == (0, 9), err
    assert "process 0 of 2 lost the others in step 4" in out, out + err
    assert "start all again, from the beginning, since no checkpoint was asked for" in out


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_two_processes import *
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
whole, state = model_with("eight_bit") if {hook} else (model_with("eight_bit", hooked=False)[0], None)
def after(_, step):
    if step == 3 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
options = FitOptions(hook=state, log=after, checkpoint={path!r}, every=2, progress=False)
fit(whole, halves(dist.get_rank()), epochs=2, optimizer=sgd(whole), options=options)
"""


@pytest.mark.parametrize("hook", [True, False])
def test_a_process_killed_under_torchrun_is_told_in_one_line_with_the_step_to_go_on_from(tmp_path, hook):
    script, path = tmp_path / "script.py", str(tmp_path / "net.checkpoint")
    script.write_text(KILLED.format(here=os.path.dirname(__file__), hook=hook, path=path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "ExchangeError: process 0 of 2" in line]
    assert lines, done.stderr
    assert f"start all again: {path} holds step 2" in lines[-1]
    assert os.path.exists(path)
