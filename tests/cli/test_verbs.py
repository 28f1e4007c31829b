"""Every verb end to end on a small network: what it writes, prints, and gives as JSON."""

import json
import tomllib

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lilliput
from lilliput.cli.sources import model_of
from lilliput.file.read import read
from lilliput.report.text import digits, percent, sparkline


def test_compress_writes_a_file_that_runs(call, net, folder):
    ran = call(
        "compress", net("build"), "-r", "int8", "--input", "1x1x8x8", "-o", "a.safetensors", "--report", "a.html"
    )
    assert ran.code == 0, ran.error
    size = (folder / "a.safetensors").stat().st_size
    assert f"{size / 1000:.2f} kB" in ran.out
    assert tuple(lilliput.load("a.safetensors")(torch.rand(5, 1, 8, 8)).shape) == (5, 10)
    assert "<!doctype html>" in (folder / "a.html").read_text()


def test_compress_measures_before_and_after_and_keeps_it_in_the_file(call, net, folder):
    ran = call(
        "compress", net("build"), "-r", "int8", "--data", net("batches"), "--evaluate", net("accuracy"),
        "-o", "a.safetensors", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.error
    told = ran.json["summary"]
    assert told["bytes"] == (folder / "a.safetensors").stat().st_size
    accuracy = read("a.safetensors").facts["accuracy"]
    assert accuracy == {"before": told["before"], "after": told["after"]}
    assert "words of the user's own" in ran.error


def test_no_fold_keeps_the_batch_norm(call, net):
    for words, count in (((), 1), (("--no-fold",), 0)):
        assert call("compress", net("build"), "-r", "int8", "-i", "1x1x8x8", "-o", "a.safetensors", *words).code == 0
        assert read("a.safetensors").facts.get("folded", 0) == count


def test_a_recipe_comes_from_a_file(call, net, folder):
    (folder / "r.toml").write_text(
        '[[rule]]\nmatch = "4.weight"\nwhy = "most"\nsteps = [{method = "quantize/uniform", bits = 3}]\n'
    )
    ran = call("compress", net("build"), "-r", "r.toml", "-o", "a.safetensors", "--json")
    methods = {layer["name"]: (layer["method"], layer["why"]) for layer in ran.json["layers"]}
    assert methods["4.weight"] == ("quantize/uniform", "most")
    assert methods["0.weight"][0] == "kept"


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_weights_come_from_a_file(call, net, folder, ending):
    state = {
        name: torch.full_like(t, 0.5) if t.is_floating_point() else t
        for name, t in model_of(net("build")).state_dict().items()
    }
    path = folder / f"w{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    ran = call("inspect", net("build"), "--weights", path, "--json")
    layers = {layer["name"]: layer for layer in ran.json["layers"]}
    assert layers["0.weight"]["values"]["kurtosis"] is None
    assert layers["4.weight"]["values"]["deviation"] < 1e-6


def test_inspect_tells_layers_and_where_the_bytes_are(call, compressed, net):
    ran = call("inspect", compressed)
    assert ran.code == 0
    for word in ("0.weight", "conv2d 8 × 1 × 3 × 3", "quantize/uniform", "graph of", "streams", "kurtosis"):
        assert word in ran.out
    assert "4.bias" not in ran.out
    assert "4.bias" in call("inspect", compressed, "--all").out
    told = call("inspect", compressed, net("build"), "--json").json
    assert told["layers"][0]["before"]["counts"] != []
    assert told["summary"]["bytes"] == compressed.stat().st_size


def test_inspect_tells_share_histogram_and_kurtosis_before_and_after(call, compressed, net):
    told = call("inspect", compressed, net("build"), "--all", "--json").json["layers"]
    alone, both = call("inspect", compressed, "--all").out, call("inspect", compressed, net("build"), "--all").out
    for layer in told:
        for out in (alone, both):
            assert f"{layer['parameters']:,} {percent(layer['parameter_share']):>6}" in out
        before, after = layer["before"], layer["after"]
        if before is None or after is None:  # integers, such as num_batches_tracked
            assert layer["name"] == "1.num_batches_tracked"
            continue
        assert f"{digits(before['kurtosis'])} → {digits(after['kurtosis'])}" in both
        assert digits(after["kurtosis"]) in alone
        assert sparkline(before["counts"]).strip() in both
        for out in (alone, both):
            assert sparkline(after["counts"]).strip() in out
    assert "→" not in alone
    assert "the values before aren't in the file: give the original model" in alone
    assert "the values before aren't" not in both


def test_inspect_takes_a_model_before_compression(call, net):
    ran = call("inspect", net("build"))
    assert ran.code == 0
    assert "linear 10 × 288" in ran.out
    layers = call("inspect", net("build"), "--json").json["layers"]
    assert sum(layer["parameter_share"] for layer in layers) == pytest.approx(1)
    assert next(layer for layer in layers if layer["name"] == "1.running_mean")["kind"] == "buffer"


def test_an_instance_and_a_module_are_models_too(call, net, folder):
    assert call("inspect", net("instance")).code == 0
    assert call("inspect", "torch.nn:Identity").code == 0


def test_run_gives_what_the_file_computes(call, compressed, folder):
    array = numpy.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(numpy.float32)
    numpy.save(folder / "x.npy", array)
    expected = lilliput.load(compressed)(torch.from_numpy(array)).detach()
    ran = call("run", compressed, "--input", "x.npy", "-o", "y.npz", "--json")
    assert ran.code == 0, ran.error
    assert ran.json["output"]["shape"] == [3, 10]
    assert [row[0]["index"] for row in ran.json["output"]["top"]] == expected.argmax(1).tolist()
    assert numpy.array_equal(numpy.load("y.npz")["output"], expected.numpy())
    assert call("run", compressed, "--input", "x.npy", "-o", "y.safetensors").code == 0
    with safe_open("y.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("output"), expected)
    shown = call("run", compressed).out
    assert "output: 2×10 float32" in shown


def test_named_inputs_reach_their_arguments(call, net):
    words = ["--input", "ids=2x16:int64 mask=2x16:int64"]
    assert call("compress", net("tokens"), "-r", "int8", *words, "-o", "t.safetensors").code == 0
    told = call("run", "t.safetensors", "--input", "ids=3x5:int64", "--input", "mask=3x5:int64", "--json").json
    assert told["output.scores"]["shape"] == [3, 5, 3]


def test_compare_tells_outputs_and_layers_worst_first(call, compressed, net):
    told = call("compare", compressed, net("build"), "--data", net("batches"), "--json").json
    assert told["outputs"]["samples"] == 48
    assert 0 < told["outputs"]["relative"] < 0.05
    assert [layer["name"] for layer in told["layers"]] == sorted(
        (layer["name"] for layer in told["layers"]),
        key=lambda name: -next(la["output"] for la in told["layers"] if la["name"] == name),
    )
    shown = call("compare", compressed, net("build"), "--limit", "1").out
    assert "and 1 more" in shown
    assert "samples" not in shown
    assert "4.weight" in call("compare", compressed, net("build"), "--input", "2x1x8x8").out


def test_list_tells_methods_presets_and_settings(call):
    told = call("list", "--json").json
    assert {"path": "quantize/uniform", "kind": "weight method"}.items() <= next(
        entry for entry in told["methods"] if entry["path"] == "quantize/uniform"
    ).items()
    assert all(entry["summary"] for entry in told["methods"] + told["presets"])
    assert {entry["name"] for entry in told["presets"]} == set(lilliput.presets())
    assert "prune/" not in call("list", "quantize").out
    one = call("list", "quantize/uniform").out
    recipe = f"[[rule]]\nsteps = [{one.rpartition('{')[2].join(['{', ''])}]"
    assert lilliput.Recipe.loads(recipe).rules[0].steps[0] == lilliput.find("quantize", "uniform")()
    assert call("list", "presets", "--json").json["methods"] == []


def test_report_writes_a_page_and_json(call, compressed, net, folder):
    ran = call("report", compressed, "--model", net("build"), "-o", "r.html")
    assert (ran.code, ran.out) == (0, f"r.html: report of {compressed}\n")
    assert "grey is before" in (folder / "r.html").read_text()
    assert call("report", compressed, "-o", "r.json", "--json").json["output"] == "r.json"
    assert json.loads((folder / "r.json").read_text())["summary"]["bytes"] == compressed.stat().st_size


def test_plan_writes_a_recipe_that_keeps_the_budget(call, net, folder):
    words = ["--data", net("batches"), "--size", "3 kB"]
    ran = call("plan", net("build"), *words, "-o", "p.toml")
    assert ran.code == 0, ran.error
    assert call("compress", net("build"), "-r", "p.toml", "--data", net("batches"), "-o", "p.safetensors").code == 0
    assert (folder / "p.safetensors").stat().st_size <= 3000
    told = call("plan", net("build"), *words, "--json").json
    assert tomllib.loads(told["toml"])["rule"] == told["recipe"]["rule"]
    assert call("plan", net("build"), *words).out == told["toml"]


def test_a_budget_that_cannot_be_met_has_an_exit_code_of_its_own(call, net, folder):
    ran = call("plan", net("build"), "--data", net("batches"), "--size", "100 B", "-o", "p.toml")
    assert ran.code == 3
    assert ran.error.splitlines()[-1].startswith("lilliput: error: ")
    assert not (folder / "p.toml").exists()


def test_an_output_that_exists_is_replaced_but_no_input_is(call, net, folder, compressed):
    (folder / "old.safetensors").write_text("old")
    assert call("compress", net("build"), "-r", "int8", "-o", "old.safetensors").code == 0
    assert (folder / "old.safetensors").stat().st_size > 1000
    before = (folder / "net.py").read_bytes()
    for words in (
        ["compress", net("build"), "-r", "int8", "-o", "net.py"],
        ["compress", net("build"), "-r", "int8", "-o", "a.html", "--report", "./a.html"],
        ["run", compressed, "-o", compressed],
    ):
        ran = call(*words)
        assert ran.code == 2, words
        assert "choose another name" in ran.error or "must end in" in ran.error
    assert (folder / "net.py").read_bytes() == before


def test_version(call):
    assert call("--version").out.strip() == lilliput.__version__


def test_sensitivity_tells_each_layer(call, net):
    words = ("sensitivity", net("build"), "--sparsity", "0.5", "--sparsity", "0.9")
    ran = call(*words, "--data", net("batches"), "--json")
    assert ran.code == 0, ran.error
    assert ran.json["unit"] == "divergence"
    assert ran.json["sparsities"] == [0.5, 0.9]
    assert [curve["name"] for curve in ran.json["curves"]] == ["0.weight", "4.weight"]
    assert all(0 < curve["values"][0] < curve["values"][1] for curve in ran.json["curves"])
    ran = call(*words, "--evaluate", net("accuracy"), "--pattern", "filter", "--max-drop", "1")
    assert ran.code == 0, ran.error
    assert "0.weight" in ran.out
    assert "90.0 %" in ran.out
    assert call(*words).code == 2
    assert call(*words, "--input", "1x1x8x8", "--method", "quantize/float16").code == 1


def test_cut_writes_a_smaller_network_and_says_what_went(call, net, folder):
    ran = call("cut", net("build"), "--share", "0.5", "--input", "1x1x8x8", "-o", "net.safetensors")
    assert (ran.code, ran.error) == (0, "")
    assert "0.weight: removed 4 of 8 channels" in ran.out
    assert lilliput.load(folder / "net.safetensors").get_parameter("4.weight").shape == (10, 4 * 36)
    words = (
        "--criterion",
        "prune/apoz",
        "--data",
        net("batches"),
        "--multiple",
        "4",
        "--json",
        "-o",
        "net.safetensors",
    )
    ran = call("cut", net("build"), "--share", "0.3", *words)
    assert ran.code == 0, ran.error
    assert "0.weight: removed 0" not in ran.out
    assert {cut["kept"] for cut in ran.json["cuts"]} == set()


def test_what_cut_refuses(call, net):
    ran = call("cut", net("build"), "--share", "0.5", "-o", "net.safetensors")
    assert (ran.code, ran.error.count("\n")) == (2, 1)
    ran = call("cut", net("build"), "--share", "1", "--input", "1x1x8x8", "-o", "net.safetensors")
    assert ran.code == 1
    assert "a layer needs a channel" in ran.error
    words = ("--criterion", "prune/taylor", "--input", "1x1x8x8", "-o", "net.safetensors")
    ran = call("cut", net("build"), "--share", "0.5", *words)
    assert ran.code == 1
    assert "needs data" in ran.error


def test_plan_of_macs_writes_cuts_that_compress_makes(call, net, folder):
    words = ("--data", net("batches"), "--macs", "60%", "-o", "recipe.toml")
    ran = call("plan", net("build"), *words)
    assert ran.code == 0, ran.error
    assert tomllib.loads((folder / "recipe.toml").read_text())["cut"][0]["match"] == "0.weight"
    ran = call("compress", net("build"), "-r", "recipe.toml", "--input", "1x1x8x8", "-o", "net.safetensors")
    assert ran.code == 0, ran.error
    assert lilliput.load(folder / "net.safetensors").get_parameter("0.weight").shape[0] <= 5
    assert call("plan", net("build"), "--macs", "60%").code == 2
    assert call("plan", net("build"), "--macs", "some", "--input", "1x1x8x8").code == 2
    assert call("plan", net("build"), "--macs", "10", "--input", "1x1x8x8").code == 3


def test_bench(call, compressed, net):
    words = ["--engine", "dense", "--rounds", "3", "--no-memory"]
    ran = call("bench", compressed, *words, "--json")
    assert ran.code == 0, ran.error
    assert {row["network"] for row in ran.json["rows"]} == {"compressed", "uncompressed"}
    shown = call("bench", compressed, net("build"), *words, "--threads", "1")
    assert "speed 1 is the uncompressed network in dense" in shown.out
    assert call("bench", compressed, "--threads", "0").code == 2
