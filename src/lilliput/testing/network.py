"""Conformance of networks: what they take and give, and that they go through cuts and through a file.

All but the first law use the class's `tiny()` setting.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.recipe import Recipe
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.graph.count import counts_of
from lilliput.graph.narrow import cut
from lilliput.run.load import load
from lilliput.testing.spread import generator, tried
from lilliput.train.compress import compress

CLASSES = 10
TOLERANCE = 1e-4
"""For the outputs of the same network as a module and as a graph, relative to the largest."""


def built(net: Any, seed: int = 0) -> nn.Module:
    """Returns the network in eval mode, its norms as after some training; leaves torch's generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = net.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval()


def pictures(net: Any, count: int = 2) -> Tensor:
    """Returns random pictures of the size that the network is for."""
    return torch.randn(count, net.channels, net.size, net.size, generator=generator(1))


def choices_are_built(cls: Any) -> None:
    """Every published setting can be built and counted."""
    assert cls.choices(), f"{cls.__name__} has no choices"
    for net in (cls(), *cls.choices()[:1]):
        found = counts_of(net)
        assert min(found.parameters, found.macs) > 0, f"{net}: {found}"


def takes_classes_channels_and_small_pictures(cls: Any) -> None:
    """Other classes, channels and sizes, 28 x 28 among them, give logits of the right shape."""
    tiny = cls.tiny()
    assert (tiny.num_classes, tiny.channels, tiny.size) == (CLASSES, 1, 28), f"{tiny} isn't for 28 x 28 x 1"
    for net in (tiny, replace(tiny, num_classes=7, channels=3), replace(tiny, size=32), replace(tiny, size=64)):
        found = built(net)(pictures(net)).shape
        assert found == (2, net.num_classes), f"{net} gives {tuple(found)}"


def trains(cls: Any) -> None:
    """A finite gradient reaches every parameter, buffers but those of norms stay, and a step helps."""
    net = cls.tiny()
    model, x = built(net), pictures(net, 8)
    target = torch.arange(8) % CLASSES
    fixed = {name: b.clone() for name, b in model.named_buffers() if "running" not in name and "num_" not in name}
    loss = functional.cross_entropy(model(x), target)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{net}: no gradient reaches {name}"
            assert bool(torch.isfinite(parameter.grad).all()), f"{net}: the gradient of {name} isn't finite"
        size = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(1e-3 / size * parameter.grad)
        assert float(functional.cross_entropy(model(x), target)) < float(loss), f"{net}: a small step doesn't help"
    for name, buffer in model.named_buffers():
        assert name not in fixed or torch.equal(buffer, fixed[name]), f"{net}: training changed {name}"


def goes_through_a_cut_and_a_file(cls: Any) -> None:
    """`cut` makes it smaller; compressed, written and read, the classless network computes what the class does.

    The class's own model is made afresh and gets cuts and weights from the file.
    """
    net = cls.tiny()
    model = built(net)
    smaller, cuts = cut(model, 0.5, pictures(net))
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    assert after < 0.9 * before, f"{net}: {after} of {before} parameters after a cut of one half: {cuts.lines}"
    _same_from_file(net, smaller, f"{net}, cut")


def _same_from_file(net: Any, model: nn.Module, what: str) -> None:
    x = pictures(net, 3)
    artifact = loads(dumps(compress(model, Recipe.preset("int8"), example=pictures(net))))
    assert artifact.graph is not None, f"{what}: no graph: {artifact.facts.get('notes')}"
    with torch.no_grad():
        # Norms that were folded are identities in the class's own model.
        own = load(artifact, into=built(net, 1))(x)
        found, dense = load(artifact, engine="dense")(x), model(x)
    largest = float(own.abs().max())
    assert float((found - own).abs().max()) <= TOLERANCE * largest, f"{what}: the file computes something else"
    assert float((found - dense).norm()) <= 0.2 * float(dense.norm()), f"{what}: 8 bits change too much"


def refuses_bad_settings(cls: Any) -> None:
    """Settings that make no sense are refused by a MethodError of one line."""
    for bad in ({"num_classes": 0}, {"channels": 0}, {"size": 1}, {"num_classes": 1.5}):
        assert tried(partial(cls, **bad), f"{cls.__name__} with {bad}") is None, f"{cls.__name__} takes {bad}"


LAWS = (
    choices_are_built,
    takes_classes_channels_and_small_pictures,
    trains,
    goes_through_a_cut_and_a_file,
    refuses_bad_settings,
)


def check(cls: Any) -> None:
    """Runs all laws on the class of a network.

    Raises:
        AssertionError: names the setting and what is wrong.

    >>> from lilliput.nets.lenet import LeNet
    >>> check(LeNet)
    """
    for law in LAWS:
        law(cls)
