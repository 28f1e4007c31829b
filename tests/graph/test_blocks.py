"""Whole residual blocks: removing one gives what a branch of zeros gives, on the class, the graph and the file."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lilliput
from lilliput import CutRule, Recipe
from lilliput.core.cut import Cut, Skip
from lilliput.core.errors import FileError, MethodError, ModelError, RecipeError
from lilliput.file import entries
from lilliput.file.read import read
from lilliput.graph.blocks import blocks
from lilliput.graph.cut import Cuts, apply_cuts, beyond, compose, noted_cuts
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace
from lilliput.prune.filter_norm import FilterNorm
from lilliput.prune.taylor import Taylor


class Basic(nn.Module):
    """ResNet's block: a projection in the shortcut where the width changes, a ReLU behind the sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(self.shortcut(x) + y)


class Resnet(nn.Module):
    """A stem whose last word is no ReLU, so that a block's ReLU does something."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.body = nn.Sequential(Basic(8, 8), Basic(8, 8), Basic(8, 12), Basic(12, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))

    def silence(self, name: str) -> None:
        norm = self.get_submodule(name).norm2
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)


class Layer(nn.Module):
    """A pre-norm transformer layer, which gives a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        query, key, value = self.attention(self.norm1(x)).chunk(3, -1)
        x = x + scale * self.out(functional.scaled_dot_product_attention(query, key, value))
        return (x + self.down(functional.gelu(self.up(self.norm2(x)))),)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(8) for _ in range(3)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, scale=1.0)[0]
        return self.head(x.mean(1))

    def silence(self, name: str) -> None:
        layer = self.get_submodule(name)
        for linear in (layer.out, layer.down):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


NETS: dict[str, tuple[Any, Tensor, list[str]]] = {
    "resnet": (Resnet, torch.randn(2, 1, 8, 8), ["body.0", "body.1", "body.3"]),
    "transformer": (Transformer, torch.randn(2, 5, 8), ["layers.0", "layers.1", "layers.2"]),
}


def shaken(make: Any) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.bias.uniform_(-0.5, 0.5)
                module.weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", NETS)
def test_each_block_that_goes_is_a_branch_of_zeros(name: str) -> None:
    make, x, expected = NETS[name]
    model = shaken(make)
    before = copy.deepcopy(model.state_dict())
    assert [block.name for block in blocks(model, x) if block.reason is None] == expected
    for block in expected:
        smaller, cuts = lilliput.cut_blocks(model, 1.0, x, match=block)
        assert cuts.lines == (f"{block}: removed the whole block",)
        zeroed = copy.deepcopy(model)
        zeroed.silence(block)
        torch.testing.assert_close(smaller(x), zeroed(x))
        assert not any(key.startswith(f"{block}.") for key in smaller.state_dict())
        # On inputs that the cut never saw, too: what stays behind the sum is no accident of the example.
        other = 3 * torch.randn(x.shape) - 1
        torch.testing.assert_close(smaller(other), zeroed(other))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETS)
def test_file_and_fresh_model_and_classless_cut(name: str, tmp_path: Path) -> None:
    make, x, _ = NETS[name]
    model = shaken(make)
    recipe = Recipe.loads('[[cut]]\npattern = "block"\nshare = 0.67\n\n[[cut]]\nshare = 0.3')
    artifact = lilliput.compress(model, recipe, example=x)
    artifact.save(tmp_path / "net.safetensors")
    written = read(tmp_path / "net.safetensors")
    assert len(written.blocks) == 2
    assert written.cuts
    assert written.report.to_dict()["blocks"] == [skip.module for skip in written.blocks]
    net, fresh = lilliput.load(written), lilliput.load(written, into=make())
    torch.testing.assert_close(fresh(x), net(x), rtol=1e-4, atol=1e-5)
    step, _ = lilliput.cut_blocks(model, 0.67, x)
    expected, _ = lilliput.cut(step, 0.3, x)
    torch.testing.assert_close(net(x), expected(x), rtol=1e-4, atol=1e-5)
    assert "removed the whole block" in str(written.facts["notes"])
    # The net without a class loses its last block as well.
    last, _ = lilliput.cut_blocks(net, 1.0, x)
    again = lilliput.load(lilliput.compress(lilliput.load(written, into=make()), recipe.__class__(), example=x))
    torch.testing.assert_close(again(x), net(x), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in last.parameters()) < sum(p.numel() for p in net.parameters())


class Around(nn.Module):
    """A sum around anything: the branch is a module of its own, the block the one around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def test_a_block_may_be_the_module_around_its_branch() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(Around(nn.Linear(6, 6)), nn.ReLU()), Around(inner)).eval()
    x = torch.randn(3, 6)
    assert {block.name for block in blocks(model, x) if block.reason is None} == {"1.0", "2"}
    smaller, _ = lilliput.cut_blocks(model, 1.0, x)
    torch.testing.assert_close(smaller(x), torch.relu(model[0](x)))


def test_the_graph_without_a_class_gives_the_same() -> None:
    model, x = shaken(Resnet), NETS["resnet"][1]
    graph, constants = trace(model, x)
    net = GraphModule(graph, model.state_dict() | constants)
    for share in (0.34, 0.67, 1.0):
        one, two = lilliput.cut_blocks(model, share, x), lilliput.cut_blocks(net, share, x)
        assert one[1].lines == two[1].lines
        assert not two[1].blocks
        torch.testing.assert_close(two[0](x), one[0](x), rtol=1e-4, atol=1e-5)


def test_the_weakest_go_by_any_criterion() -> None:
    model, x = shaken(Resnet), NETS["resnet"][1]
    with torch.no_grad():
        for weight in model.body[1].parameters():
            weight.mul_(0.1)
    data = [(torch.randn(8, 1, 8, 8), torch.arange(8) % 4)]
    for criterion in (None, FilterNorm(), Taylor(normalize=False)):
        rule = CutRule(pattern="block", share=0.34, criterion=criterion)
        artifact = lilliput.compress(model, Recipe(cuts=(rule,)), data, example=x)
        assert [skip.module for skip in artifact.blocks] == ["body.1"]


def test_attach_removes_blocks_in_place_and_the_rest_trains() -> None:
    model, x = shaken(Resnet), NETS["resnet"][1]
    lilliput.attach(model, Recipe(cuts=(CutRule("body.1", 0.9999999, "block"),)), example=x)
    assert not list(model.body[1].parameters()) or not noted_cuts(model).blocks
    lilliput.detach(model)
    lilliput.attach(model, Recipe(cuts=(CutRule("body.*", 0.5, "block"),)), example=x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    model(x).square().mean().backward()
    optimizer.step()
    artifact = lilliput.pack(model.eval())
    assert len(artifact.blocks) == 1
    torch.testing.assert_close(lilliput.load(artifact, into=Resnet())(x), model(x), rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """Blocks that can't go: one whose inside is read, one with a scale around the branch, one that is post-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.scaled, self.normed = nn.Linear(6, 6), nn.Linear(6, 6), nn.ModuleDict()
        self.normed["inner"], self.normed["norm"] = nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.read(x)
        x = x + seen
        x = torch.add(self.scaled(x), x, alpha=2)
        return self.normed["norm"](x + self.normed["inner"](x)) + seen


def test_what_cannot_go_is_kept_and_said() -> None:
    model, x = Odd().eval(), torch.randn(2, 6)
    smaller, cuts = lilliput.cut_blocks(model, 1.0, x)
    torch.testing.assert_close(smaller(x), model(x))
    assert not cuts.blocks
    assert all("kept whole because" in line for line in cuts.lines)
    with pytest.raises(MethodError, match="no residual block fits; there is none"):
        lilliput.cut_blocks(nn.Linear(3, 3), 0.5, torch.randn(1, 3))
    with pytest.raises(MethodError, match="between 0 and 1"):
        lilliput.cut_blocks(model, 1.5, x)
    with pytest.raises(MethodError, match=r"cut\[0\]: no residual block fits"):
        lilliput.compress(model, Recipe(cuts=(CutRule("nothing", 0.5, "block"),)), example=x)
    with pytest.raises(RecipeError, match="takes an input"):
        lilliput.compress(model, Recipe(cuts=(CutRule(pattern="block"),)))


def test_composition_and_what_is_left_to_do() -> None:
    one = Cuts((Cut("a.w", 0, (0,), 2), Cut("b.w", 0, (1,), 2)))
    two = Cuts(blocks=(Skip("a"),))
    both = compose(one, two)
    assert (both.cuts, both.blocks) == ((one.cuts[1],), two.blocks)
    assert beyond(both, two) == Cuts((one.cuts[1],))
    assert beyond(both, one).blocks == two.blocks
    with pytest.raises(ModelError, match="has lost the block 'a'"):
        beyond(one, two)


def test_blocks_of_a_stranger_are_refused() -> None:
    for data in (3, [3], [["a", "", 1]], [["a", "eval", False]], [["", "", False]], [["a", ""]], [[1, "", False]]):
        with pytest.raises(FileError):
            entries.blocks(data)
    assert entries.blocks([["a.b", "relu", True]]) == (Skip("a.b", "relu", True),)
    model = shaken(Resnet)
    for name in ("", "nothing", "body.9"):
        with pytest.raises(ModelError, match="removes the block"):
            apply_cuts(model, Cuts(blocks=(Skip(name),)))


def test_a_norm_behind_the_sum_keeps_the_block_whole() -> None:
    """Without its branch a post-norm layer is norm(x), not x."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    found = blocks(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)).eval(), torch.randn(2, 5, 4))
    reason = next(block.reason for block in found if block.name == "1")
    assert reason == "1.norm1.weight works on its sum (post-norm), and would be left alone without the branch"
