"""How many architectures lose channels in one call, beside Torch-Pruning 1.6.1.

    pip install --no-deps pytorchcv torch-pruning
    python benchmarks/cut_coverage.py [--count 165] [--workers 1] [--only NAME ...] [--report]

Each architecture runs in a process of its own, by one tool after the other, with limits of CPU time and memory; what
is in the JSON is not run again. "Works": no exception, the forward pass runs, outputs of the same shape, at least 30 %
fewer MACs at 50 % of the channels. For Lilliput the smaller network must also give what the zeroed one gives.
"""

import argparse
import copy
import importlib.util
import json
import multiprocessing
import re
import resource
import signal
import statistics
import sys
import time
import types
import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import lilliput
from lilliput.graph.structure import tensors_in

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "cut_coverage.json"
SECONDS, CPU_SECONDS, GIGABYTES = 900, 180, 6
TOOLS = ("lilliput", "torch-pruning")
# Other data of the same architecture, input that is no picture, and inputs of several megapixels.
_OTHERS = re.compile(
    r"_(cub|cifar100|svhn|ade20k|coco|voc|widerface|celebamaskhq|en_nr|en|de|fr|it|es|ca|pl|ru|ru34|en_ls|cityscapes)$|"
    r"jasper|quartz|raft|propainter|voca8|viseme|nvpatt|superpoint|openpose|pfpcnet|prnet|1001|1202|542|272|lffd|_1bit"
)


def pytorchcv_names(count):
    """Names of pytorchcv, the smallest number in a family first, families in turn."""
    from pytorchcv.model_provider import _models

    families = {}
    for name in sorted(_models):
        if not _OTHERS.search(name):
            families.setdefault(re.sub(r"\d.*", "", name.replace("v2", "V").replace("v3", "W")), []).append(name)
    for names in families.values():
        names.sort(key=lambda name: ([int(n) for n in re.findall(r"\d+", name)] or [0], name))
    rounds = [names[turn] for turn in range(12) for names in families.values() if turn < len(names)]
    return [f"pytorchcv/{name}" for name in rounds[:count]]


def stand_in_for_torchvision():
    """Two networks of pytorchcv need torchvision, and importing any needs its name."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        ops = types.ModuleType("torchvision.ops")
        ops.DeformConv2d, ops.deform_conv2d = torch.nn.Module, None
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision.ops"] = ops


def transformers_nets():
    import transformers as hf

    size = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}
    words = {"vocab_size": 500}
    ids, picture = torch.randint(3, 99, (1, 32)), torch.rand(1, 3, 64, 64)
    whisper = {"d_model": 192} | {
        f"{side}_{what}": value
        for side in ("encoder", "decoder")
        for what, value in (("layers", 4), ("attention_heads", 6), ("ffn_dim", 768))
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    lengths = {"max_source_positions": 50, "max_target_positions": 50, "num_mel_bins": 20}
    t5 = {"d_model": 192, "d_kv": 32, "d_ff": 768, "num_layers": 4, "num_heads": 6}
    llama = size | {"num_key_value_heads": 2, "use_cache": False}
    gpt2 = {"n_embd": 192, "n_layer": 4, "n_head": 6, "use_cache": False}
    swin = {"image_size": 64, "patch_size": 2, "embed_dim": 48, "depths": [2, 2, 2], "num_heads": [2, 4, 8]}
    return {
        "bert": lambda: (hf.BertModel(hf.BertConfig(**words, **size)), {"input_ids": ids}),
        "vit": lambda: (
            hf.ViTForImageClassification(hf.ViTConfig(image_size=64, patch_size=8, **size)),
            {"pixel_values": picture},
        ),
        "swin": lambda: (
            hf.SwinForImageClassification(hf.SwinConfig(window_size=4, **swin)),
            {"pixel_values": picture},
        ),
        "gpt2": lambda: (hf.GPT2LMHeadModel(hf.GPT2Config(**words, **gpt2)), {"input_ids": ids}),
        "llama": lambda: (hf.LlamaForCausalLM(hf.LlamaConfig(**words, **llama)), {"input_ids": ids}),
        "t5": lambda: (
            hf.T5ForConditionalGeneration(hf.T5Config(**words, **t5, use_cache=False)),
            {"input_ids": ids, "decoder_input_ids": ids},
        ),
        "whisper": lambda: (
            hf.WhisperForConditionalGeneration(
                hf.WhisperConfig(**words, **whisper, **tokens, **lengths, use_cache=False)
            ),
            {"input_features": torch.rand(1, 20, 100), "decoder_input_ids": ids},
        ),
        "convnext": lambda: (
            hf.ConvNextForImageClassification(hf.ConvNextConfig(hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2])),
            {"pixel_values": picture},
        ),
        "mobilevit": lambda: (
            hf.MobileViTForImageClassification(hf.MobileViTConfig(image_size=64)),
            {"pixel_values": picture},
        ),
    }


def nasty_nets():
    """The patterns of the tests."""
    path = HERE.parent / "tests" / "graph" / "test_groups.py"
    spec = importlib.util.spec_from_file_location("test_groups", path)
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    rnn, picture = torch.nn.LSTM, torch.rand(2, 3, 8, 8)
    return {
        "residual": lambda: (nets.Residual(), picture),
        "concatenation": lambda: (nets.Dense(), picture),
        "crelu": lambda: (nets.CReLU(), picture),
        "chunk": lambda: (nets.Split("chunk"), picture),
        "split-sizes": lambda: (nets.Split("sizes"), picture),
        "slices": lambda: (nets.Split("slices"), picture),
        "shuffle": lambda: (nets.Shuffle(False), picture),
        "grouped-shuffle": lambda: (nets.Shuffle(True), picture),
        "squeeze-excitation": lambda: (nets.Excited(), picture),
        "attention": lambda: (nets.Attention(False), torch.rand(2, 5, 24)),
        "fused-attention": lambda: (nets.Attention(True), torch.rand(2, 5, 24)),
        "mixer": lambda: (nets.Mixer(), torch.rand(2, 3, 6, 6)),
        "standardized": lambda: (nets.Standardized(), picture),
        "lstm": lambda: (nets.Recurrent(rnn, True), torch.randint(0, 11, (2, 5))),
        "tied": lambda: (nets.Tied(), torch.randint(0, 11, (2, 5))),
        "one-bad-group": lambda: (nets.Stubborn(), torch.rand(2, 4)),
        "width-dependent": lambda: (nets.Wrong(), torch.rand(2, 4)),
    }


def build(name):
    """The network in eval mode, with random values where they are usually constant, and an input."""
    torch.manual_seed(0)
    family, _, rest = name.partition("/")
    if family == "pytorchcv":
        from pytorchcv.model_provider import get_model

        model = get_model(rest, pretrained=False)
        size = getattr(model, "in_size", (224, 224))
        example = torch.rand(1, getattr(model, "in_channels", 3), *size)
    else:
        model, example = (transformers_nets() if family == "transformers" else nasty_nets())[rest]()
    model.eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.weight is not None:
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.2, 0.2)
                part.running_mean.uniform_(-0.2, 0.2)
    return model, example


def run(model, example):
    with torch.no_grad():
        if isinstance(example, dict):
            return tensors_in(model(**example))
        return tensors_in(model(example))


def macs(model, example):
    """MACs of one forward pass, and the shapes of its outputs."""
    counter = FlopCounterMode(display=False)
    with counter:
        shapes = [out.shape for out in run(model, example)]
    return counter.get_total_flops() / 2, shapes


def zeroed(model, cuts):
    """Written without Lilliput's own code: what the cut must be equal to."""
    model = copy.deepcopy(model)
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for cut in cuts.cuts:
        if state[cut.parameter].is_floating_point():
            gone = torch.tensor(sorted(set(range(cut.size)) - set(cut.kept)))
            state[cut.parameter].data.index_fill_(cut.axis, gone, 0.0)
    return model


def with_lilliput(model, example, result):
    begin = time.process_time()
    smaller, cuts = lilliput.cut(model, 0.5, example, seconds=240.0)
    result["seconds"] = time.process_time() - begin
    wanted, got = run(zeroed(model, cuts), example), run(smaller, example)
    worst = 0.0
    for one, two in zip(wanted, got, strict=True):
        if one.is_floating_point():
            scale = float(one.double().std()) or 1.0
            worst = max(worst, float((one.double() - two.double()).abs().max()) / scale)
    result["difference"] = worst
    result["kept"] = sorted({line.partition("because ")[2] for line in cuts.lines if "kept whole" in line})
    result["removed"] = sum("removed" in line for line in cuts.lines)
    return smaller


def with_torch_pruning(model, example, result):
    import torch_pruning

    widths = [out.shape[1] for out in run(model, example) if out.dim() > 1]
    ignored = [
        part
        for part in model.modules()
        if getattr(part, "out_features", getattr(part, "out_channels", None)) in widths[:1]
        and isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
    ][-1:]
    begin = time.process_time()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
    )
    pruner.step()
    result["seconds"] = time.process_time() - begin
    return model


def measure(name, tools, pipe):
    """One architecture, by one tool after the other, in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    try:
        model, example = build(name)
        before, shapes = macs(model, example)
    except Exception as error:
        for tool in tools:
            pipe.send({"name": name, "tool": tool, "skipped": f"{type(error).__name__}: {error}"[:200]})
        return
    for tool in tools:
        used = resource.getrusage(resource.RUSAGE_SELF)
        allowed = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))
        result = {"name": name, "tool": tool, "works": False}
        try:
            # Torch-Pruning changes what it is given.
            own = copy.deepcopy(model)
            smaller = (with_lilliput if tool == "lilliput" else with_torch_pruning)(own, example, result)
            after, others = macs(smaller, example)
            if others != shapes:
                raise ValueError("outputs of another shape")
            result["less"] = 1 - after / before
            equal = result.get("difference", 0.0) < 1e-2
            result["works"] = result["less"] >= 0.3 and equal
            if not equal:
                result["error"] = "other outputs than the zeroed network's"
        except BaseException as error:
            result["error"] = f"{type(error).__name__}: {error}"[:200]
        pipe.send(result)


def supervised(task):
    """Measures one architecture in a process of its own."""
    name, tools = task
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure, args=(name, tools, theirs))
    process.start()
    theirs.close()
    results = []
    for tool in tools:
        result = {"name": name, "tool": tool, "works": False, "error": f"no answer within {SECONDS} s"}
        try:
            if ours.poll(SECONDS):
                result = ours.recv()
        except EOFError:
            result["error"] = f"ended without an answer ({GIGABYTES} GB or {CPU_SECONDS} s of CPU)"
        results.append(result)
    process.kill()
    process.join()
    return results


def warm_up():
    """What either tool imports when it is first used is imported once, before any process is forked."""
    for tool in (with_lilliput, with_torch_pruning):
        layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1), torch.nn.Flatten()
        model = torch.nn.Sequential(*layers).eval()
        tool(model, torch.rand(1, 3, 4, 4), {})
        macs(model, torch.rand(1, 3, 4, 4))


def report(results):
    """The table for docs/benchmarks/README.md."""
    by = {(r["name"], r["tool"]): r for r in results}
    names = sorted({r["name"] for r in results if "skipped" not in r})
    names = [name for name in names if all((name, tool) in by and "skipped" not in by[name, tool] for tool in TOOLS)]
    print("| | networks | Lilliput | Torch-Pruning 1.6.1 |\n| --- | --- | --- | --- |")
    for family in ("pytorchcv", "transformers", "nasty"):
        some = [name for name in names if name.startswith(family)]
        counts = [sum(by[name, tool]["works"] for name in some) for tool in TOOLS]
        print(f"| {family} | {len(some)} | " + " | ".join(f"{c} ({c / max(len(some), 1):.1%})" for c in counts) + " |")
    # The others are too small to be timed.
    both = [name for name in names if "pytorchcv" in name and all(by[name, tool]["works"] for tool in TOOLS)]
    for title, key, form in (("median CPU seconds", "seconds", "{:.2f}"), ("median MACs saved", "less", "{:.1%}")):
        cells = [
            form.format(statistics.median(by[name, tool][key] for name in both if key in by[name, tool]))
            for tool in TOOLS
        ]
        print(f"| {title}, where both work | {len(both)} | {cells[0]} | {cells[1]} |")
    ratios = [by[name, TOOLS[0]]["seconds"] / by[name, TOOLS[1]]["seconds"] for name in both]
    print(f"| median of the ratios of seconds | {len(both)} | {statistics.median(ratios):.2f} | 1 |")
    differences = [by[name, "lilliput"].get("difference", 0.0) for name in names]
    print(f"\nLargest difference from the zeroed network, in standard deviations of the output: {max(differences):.1e}")
    broken = [name for name in names if "error" in by[name, "lilliput"]]
    print(f"\nLilliput: {len(broken)} errors {broken}; too few MACs saved:")
    for name in names:
        one = by[name, "lilliput"]
        if not one["works"] and "error" not in one:
            print(f"  {name}: {one['less']:.1%} {one['kept'][:3]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=165)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    if options.report:
        report(results)
        return
    others = [f"nasty/{name}" for name in nasty_nets()] + [f"transformers/{name}" for name in transformers_nets()]
    stand_in_for_torchvision()
    names = options.only or others + pytorchcv_names(options.count)
    warm_up()
    known = {(r["name"], r["tool"]) for r in results}
    tasks = [(name, [tool for tool in TOOLS if options.only or (name, tool) not in known]) for name in names]
    tasks = [(name, tools) for name, tools in tasks if tools]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(options.workers) as pool:
        for found in pool.map(supervised, tasks):
            keys = {(result["name"], result["tool"]) for result in found}
            results = [r for r in results if (r["name"], r["tool"]) not in keys] + found
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
            for result in found:
                print(json.dumps(result)[:300], flush=True)
    report(results)


if __name__ == "__main__":
    main()
