"""A small network with data and a metric, in a file as a user would write it, and the command line called in place."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lilliput.cli import main

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    ).eval()


def batches():
    print("words of the user's own on stdout")
    for seed in range(3):
        torch.manual_seed(seed)
        yield torch.randn(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64)


def accuracy(model):
    torch.manual_seed(7)
    with torch.no_grad():
        return float((model(torch.randn(64, 1, 8, 8)).argmax(1) == 3).float().mean())


def tokens():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, ids, mask):
            return {"scores": self.head(self.table(ids) * mask[..., None].float())}

    torch.manual_seed(0)
    return Net()


instance = build()
number = 3


def nothing():
    return None


def broken():
    return 1 / 0


def empty():
    return []


def spoilt():
    model = build()
    model[0].weight.data[0, 0, 0, 0] = float("nan")
    return model


def mute(model):
    return "good"
"""


@dataclass
class Ran:
    """What a call gave back."""

    code: int
    out: str
    error: str

    @property
    def json(self):
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with net.py in it."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(folder, capsys):
    """Calls the command line with words."""

    def called(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return called


@pytest.fixture
def net(folder):
    """`net.py:...` by its full path, so that each test gets its own module."""
    return lambda name: f"{Path(folder) / 'net.py'}:{name}"


@pytest.fixture
def compressed(call, net, folder):
    """A compressed file of the network."""
    ran = call("compress", net("build"), "--recipe", "int8", "--input", "1x1x8x8", "-o", "net.safetensors")
    assert ran.code == 0, ran.error
    return folder / "net.safetensors"
