"""What the models of hardware say of AlexNet, pruned and quantized by Deep Compression's settings, and of ResNet-50.

    python benchmarks/hardware.py          # writes results/hardware.json and docs/benchmarks/hardware.md
    python benchmarks/hardware.py roofline # only that part of it

`dataflows`: AlexNet's layers, a batch of 16, on the array of 256 elements on which Eyeriss was compared, under every
dataflow; energy in multiply-accumulates. `saving`: the same layers with the densities and bits of Deep Compression
(Han, Mao & Dally 2016, table 4) beside 16 bits and no zeros, for batches of 1 and 16, on Eyeriss; activations stay at
16 bits, and 0, 30 or 60 % of what goes into a layer, but the first, is zero. `resnet`: ResNet-50's 54 layers, 224 x
224, under all dataflows, from nothing; CPU seconds of one thread. `roofline`: the layers of ResNet-18 and MobileNet,
one picture of float32: the least time by this machine's roofline, measured on the spot, beside the time that torch
takes, CPU time of one thread.
"""

import json
import platform
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from lilliput.core.method import find
from lilliput.hardware.assess import assess
from lilliput.hardware.dataflow import FLOWS
from lilliput.hardware.device import Device
from lilliput.hardware.layer import Layer
from lilliput.hardware.roofline import bound, measured, this_machine
from lilliput.search.layers import layers_of

HERE = Path(__file__).parent
RESULT, PAGE = HERE / "results" / "hardware.json", HERE.parent / "docs" / "benchmarks" / "hardware.md"
ALEXNET = [
    Layer(3, 96, (227, 227), (11, 11), (4, 4), name="conv1"),
    Layer(96, 256, (27, 27), (5, 5), padding=(2, 2), groups=2, name="conv2"),
    Layer(256, 384, (13, 13), (3, 3), padding=(1, 1), name="conv3"),
    Layer(384, 384, (13, 13), (3, 3), padding=(1, 1), groups=2, name="conv4"),
    Layer(384, 256, (13, 13), (3, 3), padding=(1, 1), groups=2, name="conv5"),
    Layer(256, 4096, (6, 6), (6, 6), name="fc6"),
    Layer(4096, 4096, name="fc7"),
    Layer(4096, 1000, name="fc8"),
]
DENSITIES = (0.84, 0.38, 0.35, 0.37, 0.37, 0.09, 0.09, 0.25)
BITS = (8, 8, 8, 8, 8, 5, 5, 5)


def resnet50() -> list[Layer]:
    """Its convolutions and last layer, in order."""
    layers = [Layer(3, 64, (224, 224), (7, 7), (2, 2), (3, 3), name="stem")]
    channels, size = 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            name = f"stage{stage + 1}.{block}"
            layers.append(Layer(channels, width, (size, size), name=f"{name}.reduce"))
            layers.append(Layer(width, width, (size, size), (3, 3), (stride, stride), (1, 1), name=f"{name}.spatial"))
            if not block:
                layers.append(Layer(channels, 4 * width, (size, size), stride=(stride, stride), name=f"{name}.skip"))
            size //= stride
            layers.append(Layer(width, 4 * width, (size, size), name=f"{name}.expand"))
            channels = 4 * width
    return [*layers, Layer(2048, 1000, name="head")]


def dataflows() -> dict[str, dict[str, float]]:
    """Energy of convolutions and linear layers under each dataflow, relative to row stationary."""
    device, found = Device.load("eyeriss_256"), {}
    for flow in FLOWS:
        costs = [assess(replace(layer, batch=16), device, flow).energy.total for layer in ALEXNET]
        found[flow] = {"convolutions": sum(costs[:5]), "linear": sum(costs[5:])}
    return found


def saving() -> list[dict[str, float]]:
    """Dense over compressed energy."""
    device, rows = Device.load("eyeriss"), []
    for batch in (1, 16):
        for zeros in (0.0, 0.3, 0.6):
            dense, small = [], []
            for place, (layer, density, bits) in enumerate(zip(ALEXNET, DENSITIES, BITS)):
                inputs = 1.0 if not place else 1 - zeros
                own = replace(layer, batch=batch, input_density=inputs, output_density=1 - zeros)
                dense.append(assess(own, device).energy.total)
                pruned = replace(own, weight_density=density, weight_bits=bits)
                small.append(assess(pruned, device).energy.total)
            parts = {"all": slice(0, 8), "convolutions": slice(0, 5), "linear": slice(5, 8)}
            ratios = {name: sum(dense[part]) / sum(small[part]) for name, part in parts.items()}
            rows.append({"batch": batch, "zeros": zeros, **ratios})
    return rows


def resnet() -> dict[str, float]:
    """Seconds for all of ResNet-50 under all dataflows."""
    device, begun = Device.load("eyeriss_256"), time.process_time()
    layers = resnet50()
    totals = {flow: sum(assess(layer, device, flow).energy.total for layer in layers) for flow in FLOWS}
    seconds = time.process_time() - begun
    macs = sum(layer.macs for layer in layers)
    return {"seconds": seconds, "layers": len(layers), "macs": macs, **totals}


def roofline() -> dict[str, dict[str, float]]:
    """Milliseconds predicted and measured, and the ratios of the layers."""
    torch.set_num_threads(1)
    device, found = this_machine(), {}
    for name in ("resnet", "mobilenet"):
        net = find("nets", name)()
        model, x = net.build().eval(), torch.rand(1, net.channels, net.size, net.size)
        layers = [
            replace(layer, weight_density=1.0, input_density=1.0)
            for layer in layers_of(model, lambda model=model, x=x: model(x), device.word_bits)[0]
        ]
        pairs = [(bound(layer, device).seconds, measured(layer)) for layer in layers]
        ratios = sorted(taken / least for least, taken in pairs)
        found[name] = {
            "predicted": 1e3 * sum(least for least, _ in pairs),
            "measured": 1e3 * sum(taken for _, taken in pairs),
            "least ratio": ratios[0],
            "median ratio": statistics.median(ratios),
            "largest ratio": ratios[-1],
        }
    return found


def page(results: dict) -> str:
    """The page of the documentation."""
    best = sum(results["dataflows"]["row_stationary"].values())
    flows = []
    for flow, costs in results["dataflows"].items():
        parts = " | ".join(f"{costs[part] / 1e9:.1f}" for part in ("convolutions", "linear"))
        flows.append(f"| `{flow}` | {parts} | {sum(costs.values()) / best:.2f} |")
    savings = [
        f"| {row['batch']} | {row['zeros']:.0%} | {row['all']:.1f} | {row['convolutions']:.1f} | {row['linear']:.1f} |"
        for row in results["saving"]
    ]
    nets = []
    for name, title in (("resnet", "ResNet-18"), ("mobilenet", "MobileNet")):
        row = results["roofline"][name]
        ratios = ", ".join(f"{row[f'{which} ratio']:.2f}" for which in ("least", "median", "largest"))
        nets.append(f"| {title} | {row['predicted']:.1f} ms | {row['measured']:.1f} ms | {ratios} |")
    layers, seconds = results["resnet"]["layers"], results["resnet"]["seconds"]
    return TEXT.format(
        flows="\n".join(flows),
        savings="\n".join(savings),
        analysis=f"{layers} layers under all {len(results['dataflows'])} dataflows: {seconds:.1f} s of CPU",
        nets="\n".join(nets),
    )


TEXT = """# Models of hardware: `python benchmarks/hardware.py`

Estimates, not measurements of chips. Energy in 1e9 multiply-accumulates of AlexNet, a batch of 16, on 256 processing
elements at about equal area, under every dataflow of `lilliput hardware`:

| | convolutions | linear layers | both, over row stationary |
| --- | --- | --- | --- |
{flows}

`compulsory` is what no dataflow can avoid. The order is the published one; the published distance of row stationary to
the others, 1.4 to 2.5 times on convolutions, is only reached against those without much reuse: here every dataflow gets
the tiling that is best for it. Simulated arrays of all but `systolic` (which has a simulator of its own) and
`compulsory` count the same accesses (`lilliput.hardware.simulate`).

AlexNet with Deep Compression's densities and bits, how many times less energy on Eyeriss, by the part of the inputs
that is zero:

| batch | zeros | all layers | convolutions | linear layers |
| --- | --- | --- | --- | --- |
{savings}

A batch of 1 is where the survey's 3 to 7 times is found: the linear layers' weights come from DRAM for each picture. In
a batch of 16 they are shared, and what is left are the convolutions, whose registers and partial sums pruning doesn't
shorten as much.

ResNet-50, {analysis}; the target was 10 s.

The roofline of this machine beside the time that torch takes for each layer (`python benchmarks/hardware.py roofline`;
one picture, float32, one thread's CPU time; `lilliput hardware --device this --measure` does the same for any model):

| | predicted | measured | ratios of the layers: least, median, largest |
| --- | --- | --- | --- |
{nets}

Below 1 are layers whose weights stay in the cache from one repetition to the next, while the prediction has them come
from memory.
"""


def main() -> None:
    """Runs all of it, or the roofline alone, prints it and writes it down."""
    if sys.argv[1:] == ["roofline"]:
        results = json.loads(RESULT.read_text()) | {"roofline": roofline()}
    else:
        results = {"resnet": resnet(), "dataflows": dataflows(), "saving": saving(), "roofline": roofline()}
        results["machine"] = platform.platform()
    print(json.dumps(results, indent=1))
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
