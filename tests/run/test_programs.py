"""Programs give what torch gives: every rule at odd sizes, every variant, many threads; and never reach beyond."""

import threading

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core import kernel, native
from lilliput.quantize.xnor import block
from lilliput.run.choice import Chooser
from lilliput.run.layers import layer_seconds
from lilliput.run.lower import Lowering, Stuck
from lilliput.run.native import Native
from lilliput.run.programs import WORDS

VARIANTS = [v for v in kernel.variants() if v != "reference"]
needs = pytest.mark.skipif(not VARIANTS, reason="needs the compiled extension")
SPARSE = '[[rule]]\nlayers = "conv2d"\nsteps = [{{method = "prune/magnitude", sparsity = 0.9, pattern = "{}"}}]'
XNOR = '[[rule]]\nskip = "first and last"\nsteps = [{{method = "quantize/xnor"}}]\nactivations = "{}"'


class Every(nn.Module):
    """Layers of all kinds at sizes that fill no vector."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 3, 2, 1)
        self.wide = nn.Conv2d(11, 24, 1)
        self.deep = nn.ModuleList(
            [
                nn.Conv2d(24, 24, 3, 1, 1, groups=24),
                nn.Conv2d(24, 24, 5, 1, 2, groups=24, bias=False),
                nn.Conv2d(24, 24, 3, 1, 0, groups=24),
                nn.Conv2d(24, 24, (3, 2), (1, 2), (1, 0), (2, 1), groups=24),
            ]
        )
        self.grouped = nn.Conv2d(24, 16, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(16)
        self.bent = nn.PReLU(16)
        self.halved = nn.Conv2d(16, 16, 5, 2, 2, groups=16)
        self.head = nn.Linear(16 * 2 * 3, 7)

    def forward(self, x):
        x = self.stem(x).relu()
        x = nn.functional.relu6(self.wide(x))
        y = self.deep[0](x) + self.deep[1](x)
        x = nn.functional.hardtanh((x + y).relu(), -0.5, 2.0)
        x = nn.functional.max_pool2d(self.deep[2](x), 3, 2, 1)
        x = nn.functional.avg_pool2d(self.deep[3](x), 2, 1, 1, count_include_pad=False)
        x = self.bent(self.norm(self.grouped(x)))
        x = nn.functional.avg_pool2d(self.halved(x), 3, 1, 1)
        return self.head(nn.functional.adaptive_avg_pool2d(x, (2, 3)).flatten(1)), x.mean((2, 3))


def steady(model, *shape):
    """The model with norms that aren't those of nothing."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(shape))
    return model.eval()


def lowered(artifact, x, timed=False):
    tensors = {name: artifact.weight(name) for name in artifact.weights}
    return Lowering(artifact.graph, [x], tensors, artifact.weights, timed)


def apart(one, two):
    return float((one - two).norm() / two.norm())


@needs
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("recipe", ["", SPARSE.format("unstructured"), SPARSE.format("block:4x1")])
def test_every_rule_in_every_variant(variant, recipe):
    torch.manual_seed(3)
    x = torch.randn(2, 3, 53, 59)
    artifact = lilliput.compress(steady(Every(), 2, 3, 53, 59), lilliput.Recipe.loads(recipe), [x])
    with kernel.using(variant):
        net, dense = lilliput.load(artifact, engine=Native(timed=False)), lilliput.load(artifact, engine="dense")
        for batch in (1, 2):
            for found, right in zip(net(x[:batch]), dense(x[:batch])):
                assert apart(found, right) < 1e-5
        assert recipe == "" or any(WORDS in line for line in net.lines), net.lines


def xnor(k):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3, 1, 1), nn.BatchNorm2d(20), nn.ReLU(), block(20, 70, 3, padding=1, pool=2),
        block(70, 33, 1, stride=2), nn.BatchNorm2d(33), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(33, 5),
    )  # fmt: skip
    recipe = lilliput.Recipe.loads(XNOR.format("binary:true" if k else "binary"))
    return lilliput.compress(steady(net, 4, 3, 13, 15), recipe, [torch.randn(2, 3, 13, 15)])


@needs
@pytest.mark.parametrize("k", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_xnor_nets_run_on_bits(k, variant):
    artifact, x = xnor(k), torch.randn(3, 3, 13, 15)
    with kernel.using(variant):
        low = lowered(artifact, x)
        made = low.lower()
        assert sorted(made.kinds.values()).count("XNOR and bit count") == 2
        assert apart(made.program([x])[0], low.seen[-1]) < 1e-3


@needs
def test_many_threads_get_what_one_gets():
    artifact, x = xnor(True), torch.randn(8, 1, 3, 13, 15)
    program = lowered(artifact, x[0]).lower().program
    expected, wrong = [program([one])[0] for one in x], []

    def call(worker):
        for i in range(125):
            if not torch.equal(program([x[(worker + i) % 8]])[0], expected[(worker + i) % 8]):
                wrong.append((worker, i))

    threads = [threading.Thread(target=call, args=(w,)) for w in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs
def test_no_step_reaches_beyond_its_memory():
    program = native.extension().Program(64, [16], [16])
    compiled, _ = kernel.found("turn_maps")
    program.add(compiled, [(1, 0, 0, 16), (2, 0, 0, 16), 1, 2, 2])
    for place in ((0, 0, 60, 8), (1, 1, 0, 4), (2, 0, 0, 17), (3, 0, 0, 1), (0, 0, 65, 0)):
        with pytest.raises((IndexError, ValueError)):
            program.add(compiled, [(1, 0, 0, 16), place, 1, 2, 2])
    with pytest.raises(ValueError, match="few or many"):
        program.run(1, [1, 2], [3])


@needs
def test_what_has_no_rule_is_named_and_runs_elsewhere():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 9, 9)
    artifact = lilliput.compress(model, lilliput.Recipe.loads(SPARSE.format("unstructured")), [x])
    with pytest.raises(Stuck, match=r"gelu\.default has no step"):
        lowered(artifact, x).lower()
    net = lilliput.load(artifact, engine=Native(timed=False))
    assert apart(net(x), lilliput.load(artifact, engine="dense")(x)) < 1e-5
    assert sum(WORDS in line for line in net.lines) == 2


@needs
def test_recording_refuses_what_torch_computes():
    from lilliput.core.errors import MethodError
    from lilliput.kernels.binary_linear import pack_signs

    x = torch.randn(2, 70)
    with kernel.recording(x) as calls:
        pack_signs(x)
    assert [name for name, _ in calls] == ["pack_rows"]
    with pytest.raises(MethodError, match="computes with"), kernel.recording(x):
        pack_signs(x + 1)


@needs
def test_layers_of_a_program_are_timed_as_programs(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    artifact = lilliput.compress(model, lilliput.Recipe(), example=torch.randn(1, 3, 6, 6))
    monkeypatch.setattr(Chooser, "stretch", None)
    found = layer_seconds(artifact, WORDS)
    assert set(found) == {"0.weight", "3.weight"}
    assert all(one.packed > 0 and one.floats > 0 for one in found.values())


@needs
def test_a_network_that_is_one_program_gives_new_tensors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randn(1, 2, 6, 6)
    artifact = lilliput.compress(model, lilliput.Recipe(), example=x)
    net = lilliput.load(artifact)
    line = Chooser(artifact).programs.line
    assert line.alone is not None
    first = line([x])
    kept = first.clone()
    turned = x.transpose(2, 3)
    assert not turned.is_contiguous()
    with torch.no_grad():
        for given in (turned, x.expand(3, -1, -1, -1)):
            torch.testing.assert_close(line([given]), model(given), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(net(given), model(given), rtol=1e-4, atol=1e-5)
    assert torch.equal(first, kept)
