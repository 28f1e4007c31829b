"""Wrong models, recipes, budgets and data: one clear line, the right exit code, and no file left behind."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lilliput
from lilliput.cli.sources import model_of

# Python, with this Lilliput on its path whatever the current folder is.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(lilliput.__file__).parent.parent),
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
}
MAIN = "import sys; from lilliput.cli import main; sys.exit(main())"
# Model, further words, exit code, and what the line must say. `{net}` is the user's file.
COMPRESS = [
    ("net.py", (), 1, "write it as file.py:function"),
    ("nosuch.py:build", (), 1, "nosuch.py': there is no such file"),
    ("no.such.package:build", (), 1, "there is no module 'no'"),
    ("{net}:bild", (), 1, "has no 'bild'; it has "),
    ("{net}:number", (), 1, "is a int, not a function"),
    ("{net}:nothing", (), 1, "returned a NoneType, not a torch.nn.Module"),
    ("{net}:broken", (), 1, "ZeroDivisionError: division by zero (net.py, line "),
    ("{net}:spoilt", (), 1, "0.weight: 1 of 72 weights are NaN"),
    ("{net}:build", ("-r", "int9"), 1, "no preset recipe 'int9'; there is int8"),
    ("{net}:build", ("-r", "nosuch.toml"), 1, "no such recipe file"),
    ("{net}:build", ("-r", "pattern.toml"), 1, "fits no weight; there is 4.weight"),
    ("{net}:build", ("-r", "method.toml"), 1, "pattern"),
    ("{net}:build", ("-r", "setting.toml"), 1, "rule[0].steps[0].bitss: unknown; there is bits"),
    ("{net}:build", ("-r", "value.toml"), 1, "bits = 99 is outside 1 .. 16"),
    (
        "{net}:build",
        ("-r", "group.toml"),
        1,
        "4.weight (linear, (10, 288)): quantize/uniform: groups of 7 don't divide",
    ),
    ("{net}:build", ("-r", "no.toml"), 1, "not valid TOML"),
    ("{net}:build", ("--data", "{net}:empty"), 1, "is empty"),
    ("{net}:build", ("--data", "{net}:number"), 1, "gave a int, not an iterable"),
    ("{net}:build", ("--data", "{net}:broken"), 1, "ZeroDivisionError"),
    ("{net}:build", ("--evaluate", "{net}:number"), 1, "not a function that takes the model"),
    ("{net}:build", ("--evaluate", "{net}:mute"), 1, "returned a str, not a number"),
    ("{net}:build", ("--input", "1x3x8x8"), 1, "can't be run on the --input given"),
    ("{net}:build", ("--input", "1x3x8x8:float33"), 2, "no dtype 'float33'"),
    ("{net}:build", ("--weights", "nosuch.pth"), 1, "no such file of weights"),
    ("{net}:build", ("--weights", "other.safetensors"), 1, "weights of another model: they lack 0.weight"),
    ("{net}:build", ("--weights", "shape.pth"), 1, "4.weight has shape (10, 3), in the model (10, 288)"),
    ("{net}:build", ("--weights", "checkpoint.pth"), 1, "holds a dict with epoch, model, not a state dict"),
    ("{net}:build", ("--weights", "net.py"), 1, "can't be read as weights"),
    ("{net}:build", ("--weights", "evil.pth"), 1, "can't be read as weights"),
    ("{net}:build", ("-o", "nowhere/a.safetensors"), 1, "nowhere doesn't exist"),
    ("{net}:build", ("-o", "."), 1, "is a folder"),
    ("{net}:build", ("--report", "report.pdf"), 2, "must end in .html or .json"),
    ("{net}:build", ("--nonsense",), 2, "Unknown option: --nonsense"),
]
RECIPES = {
    "pattern.toml": '[[rule]]\nmatch = "5.weight"\nsteps = ["quantize/uniform"]',
    "method.toml": '[[rule]]\nsteps = ["prune/unstructured"]',
    "setting.toml": '[[rule]]\nsteps = [{method = "quantize/uniform", bitss = 4}]',
    "value.toml": '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 99}]',
    "group.toml": '[[rule]]\nsteps = [{method = "quantize/uniform", per = "group", group = 7}]',
    "no.toml": "[[rule]",
}


class Evil:
    """What a pickle does when it is loaded the trusting way."""

    def __reduce__(self):
        return (open, ("owned", "w"))


@pytest.fixture
def prepared(folder, net):
    for name, text in RECIPES.items():
        (folder / name).write_text(text)
    state = model_of(net("build")).state_dict()
    save_file({"features.weight": torch.ones(2)}, folder / "other.safetensors")
    torch.save(state | {"4.weight": torch.ones(10, 3)}, folder / "shape.pth")
    torch.save({"epoch": 3, "model": state}, folder / "checkpoint.pth")
    torch.save({"x": Evil()}, folder / "evil.pth")
    return folder


def one_line(ran, code, words):
    assert ran.code == code, ran.error
    assert ran.out == ""
    lines = [line for line in ran.error.splitlines() if line.startswith("lilliput: ")]
    assert ran.error.splitlines() == lines
    assert len(lines) == 1, ran.error
    assert lines[0].startswith("lilliput: error: ")
    assert words in lines[0]


@pytest.mark.parametrize(("model", "words", "code", "said"), COMPRESS, ids=lambda value: str(value)[:40])
def test_compress_refuses(call, prepared, model, words, code, said):
    path = prepared / "net.py"
    words = [word.format(net=path) for word in words]
    if "-r" not in words:
        words += ["-r", "int8"]
    if "-o" not in words:
        words += ["-o", "a.safetensors"]
    before = files(prepared)
    one_line(call("compress", model.format(net=path), *words), code, said)
    assert files(prepared) == before


def files(folder):
    return sorted(p.name for p in Path(folder).rglob("*") if "__pycache__" not in p.parts)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "give a budget"),
        (("--size", "much"), 2, "size = 'much' can't be read"),
        (("--size", "-3"), 2, "size"),
        (("--max-drop", "0.1"), 2, "--max-drop needs --evaluate"),
        (("--max-drop", "often"), 2, "max-drop"),
        (("--size", "3 kB", "--data", "{net}:empty"), 1, "is empty"),
        (("--size", "10 B"), 3, "10"),
    ],
)
def test_plan_refuses(call, prepared, net, words, code, said):
    words = [word.format(net=prepared / "net.py") for word in words]
    one_line(call("plan", net("build"), *words, "-o", "p.toml"), code, said)
    assert not (prepared / "p.toml").exists()


@pytest.mark.parametrize("verb", ["inspect", "run", "report", "compare"])
def test_a_file_that_is_none_is_refused(call, prepared, compressed, net, verb):
    data = compressed.read_bytes()
    (prepared / "cut.safetensors").write_bytes(data[: len(data) // 2])
    (prepared / "flipped.safetensors").write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    more = {"report": ["-o", "r.html"], "compare": [net("build")]}.get(verb, [])
    for name in ("cut.safetensors", "flipped.safetensors", "other.safetensors", "net.py", "nosuch", "."):
        ran = call(verb, name, *more)
        one_line(ran, 1, f"{name}: ")
    assert not (prepared / "r.html").exists()


def test_a_file_and_a_model_that_do_not_belong_together(call, compressed, net):
    for words in (
        ["compare", compressed, net("tokens")],
        ["inspect", compressed, net("tokens")],
        ["report", compressed, "--model", net("tokens"), "-o", "r.html"],
    ):
        one_line(call(*words), 1, "the file is of another model than Net")
    one_line(call("compare", compressed, net("build"), "--data", net("empty")), 1, "is empty")
    one_line(call("compare", compressed, net("build"), "--data", "a", "--input", "1"), 2, "not both")
    one_line(call("inspect", compressed, "--weights", "w.pth"), 2, "--weights belongs to a model")
    one_line(call("report", compressed, "--weights", "w.pth", "-o", "r.html"), 2, "--weights belongs to a model")


def test_inputs_that_do_not_fit_are_refused(call, compressed):
    one_line(call("run", compressed, "--input", "1x1x9x9"), 1, "input 'input' must have shape")
    one_line(call("run", compressed, "--input", "x=1x1x8x8"), 1, "'x'")
    one_line(call("run", compressed, "--input", "1x1x8x8:int64"), 1, "must be torch.float32")
    one_line(call("run", compressed, "--engine", "steam"), 1, "no method 'run/steam'")
    one_line(call("run", compressed, "-o", "y.txt"), 2, "must end in .npz or .safetensors")


def test_a_file_without_a_graph_says_what_to_do(call, net):
    assert call("compress", net("build"), "-r", "int8", "-o", "a.safetensors").code == 0
    one_line(call("run", "a.safetensors"), 1, "use load(path, into=YourModel())")


def test_words_that_are_no_verb_or_family(call):
    one_line(call("frobnicate"), 2, "Unknown command")
    one_line(call("list", "frobnicate"), 2, "no family 'frobnicate'")
    one_line(call("list", "quantize/unifrm"), 1, "there is quantize/uniform")


def test_escape_sequences_of_a_stranger_do_not_reach_the_terminal(call, folder):
    from lilliput.file.artifact import Artifact

    evil = "\x1b]0;owned\x07[red]"
    Artifact({"[bold]w[/bold]": torch.ones(2, 2)}, facts={"notes": {"[bold]w[/bold]": evil}}).save("evil.safetensors")
    ran = call("inspect", "evil.safetensors")
    assert "[bold]w[/bold]" in ran.out
    assert "\x1b" not in ran.out
    assert call("report", "evil.safetensors", "-o", "r.html").code == 0
    assert "\x1b" not in (folder / "r.html").read_text()


def subprocess_of(folder, *words, before=None):
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120, preexec_fn=before,
    )  # fmt: skip


def test_a_full_disk_leaves_nothing(prepared, net):
    words = ["compress", net("build"), "-r", "int8", "--input", "1x1x8x8", "-o", "a.safetensors"]
    names = files(prepared)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # noqa: E731
    ran = subprocess_of(prepared, *words, before=limit)
    assert ran.returncode == 1, ran.stderr
    assert ran.stderr.splitlines() == [
        "lilliput: error: a.safetensors: can't be written: File too large; nothing was left"
    ]
    assert ran.stdout == ""
    assert files(prepared) == names


def test_ctrl_c_has_an_exit_code_of_its_own(prepared):
    (prepared / "slow.py").write_text(
        f"import os\n\ndef build():\n    os.kill(os.getpid(), {int(signal.SIGINT)})\n    while True:\n        pass\n"
    )
    ran = subprocess_of(prepared, "compress", "slow.py:build", "-r", "int8", "-o", "a.safetensors")
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr.splitlines() == ["lilliput: error: interrupted; no file was written"]
    assert not (prepared / "a.safetensors").exists()


def test_a_reader_that_goes_away_is_no_error_of_ours(prepared):
    read_end, write_end = os.pipe()
    os.close(read_end)
    ran = subprocess.run(
        [sys.executable, "-c", MAIN, "list", "presets", "--json"],
        stdout=write_end, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True, check=False, timeout=120,
    )  # fmt: skip
    os.close(write_end)
    assert (ran.returncode, ran.stderr) == (1, "")
