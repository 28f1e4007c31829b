"""The C file compiles without a warning, runs clean under sanitizers, and gives the bits that `Steps` gives."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import ModelError

CC = shutil.which("gcc") or shutil.which("cc")
MAIN = """
#include <stdio.h>
void net_run(const float *input, float *output);
static float input[{inputs}], output[{outputs}];
int main(void) {{
    while (fread(input, sizeof(float), {inputs}, stdin) == {inputs}) {{
        net_run(input, output);
        fwrite(output, sizeof(float), {outputs}, stdout);
    }}
    return 0;
}}
"""
RECIPES = {
    "int8": '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 8}]\nactivations = "uniform:8"',
    "binary": '[[rule]]\nskip = "first and last"\nsteps = [{method = "quantize/binary"}]\nactivations = "binary"',
    "ternary": '[[rule]]\nsteps = [{method = "quantize/ternary"}]\nactivations = "uniform:8"',
    "ternary, floats in": '[[rule]]\nsteps = [{method = "quantize/ternary"}]',
    "shift": '[[rule]]\nsteps = [{method = "quantize/shift"}]\nactivations = "uniform:4"',
    "floats": "",
}
FORMS = {
    "int8": ["int8_t net_w"],
    "binary": ["& 7)) & 1"],
    "ternary": ["& 3) - 1)"],
    "ternary, floats in": ["& 3) - 1)"],
    "shift": [],
    "floats": ["static const float net_w"],
}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2, bias=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.wide = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.norm(self.first(x)))
        y = self.pool(y + self.deep(y))
        return self.head(torch.nn.functional.relu6(self.wide(y)).mean((2, 3)))


def compressed(name):
    torch.manual_seed(0)
    model = Small()
    with torch.no_grad():
        model(torch.randn(16, 2, 13, 11))
    data = [torch.randn(6, 2, 13, 11)]
    return lilliput.compress(model.eval(), lilliput.Recipe.loads(RECIPES[name]), data), data[0]


@pytest.mark.skipif(CC is None, reason="there is no C compiler")
@pytest.mark.parametrize("name", RECIPES)
def test_compiled_it_gives_the_same_bits(name, tmp_path):
    artifact, x = compressed(name)
    artifact.export(tmp_path / "net.c", engine="c")
    text = (tmp_path / "net.c").read_text()
    assert all(words in text for words in FORMS[name])
    (tmp_path / "main.c").write_text(MAIN.format(inputs=x[0].numel(), outputs=5))
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-O1"]
    sane = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    made = subprocess.run(
        [CC, *flags, *sane, "net.c", "main.c", "-lm", "-o", "net"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    ran = subprocess.run([tmp_path / "net"], input=x.numpy().tobytes(), capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    found = np.frombuffer(ran.stdout, np.float32).reshape(-1, 5)
    ours = lilliput.load(artifact, engine="c")(x).numpy()
    assert np.array_equal(found.view(np.int32), ours.view(np.int32))
    dense = lilliput.load(artifact, engine="dense")(x).detach().numpy()
    # Only the order of sums differs; a value near the border of two levels may fall to the other one.
    assert np.linalg.norm(ours - dense) < (0.05 if "activations" in RECIPES[name] else 1e-5) * np.linalg.norm(dense)


def test_integer_layers_are_those_of_the_reference():
    artifact, x = compressed("int8")
    steps = lilliput.load(artifact, engine="c").__dict__["steps"]
    assert sum(steps.coded(step) is not None for step in steps.steps) == 4
    dense = lilliput.load(artifact, engine="dense")(x[:1]).detach().numpy()
    assert np.abs(steps(x[0].numpy()) - dense[0]).max() < 0.05 * np.abs(dense).max()


def test_what_c_cannot_say_is_named(tmp_path):
    torch.manual_seed(0)
    soft = lilliput.compress(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), lilliput.Recipe(), example=torch.rand(2, 3))
    with pytest.raises(ModelError, match="softmax"):
        soft.export(tmp_path / "net.c", engine="c")
    plain = lilliput.compress(nn.Linear(3, 2), lilliput.Recipe(), example=torch.rand(2, 3))
    with pytest.raises(ModelError, match="name of C"):
        plain.export(tmp_path / "my net.c", engine="c")
    assert not list(tmp_path.iterdir())
