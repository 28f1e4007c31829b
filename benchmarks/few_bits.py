"""A linear layer of 9216 inputs and 4096 outputs (AlexNet's fc6) with weights of 8, 4 and 2 bits in ONNX Runtime.

    python benchmarks/few_bits.py

One example, one thread, all candidates in turns, medians of processor time of the whole call: the uncompressed layer,
the exported file with its weights as they are (MatMulNBits), by integers and, for 4 bits, by floats, and `native`
with `tolerance=0.02`.
Errors are of results beside the same weights in torch. Half a minute. Writes `benchmarks/results/few_bits.json`.
"""

import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lilliput
from lilliput.quantize.uniform import Uniform
from lilliput.run.clock import race
from lilliput.run.native import Native
from lilliput.run.onnxruntime import OnnxRuntime

RESULTS = Path(__file__).parent / "results" / "few_bits.json"


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(9216, 4096)).eval(), torch.randn(1, 9216)
    nets, rows = {}, []
    whole = lilliput.compress(model, lilliput.Recipe(()), example=x)
    nets["float32"] = lilliput.load(whole, engine="onnxruntime")
    wanted = {"float32": model(x)}
    sizes = {}
    for bits in (8, 4, 2):
        recipe = lilliput.Recipe((lilliput.Rule(steps=(Uniform(bits=bits, per="group", group=128),)),))
        artifact = lilliput.compress(model, recipe, example=x)
        dense = lilliput.load(artifact, engine="dense")(x)
        for products in ("integers", "floats")[: 2 if bits == 4 else 1]:
            name = f"{bits} bits, {products}"
            nets[name], wanted[name] = lilliput.load(artifact, engine=OnnxRuntime(products=products)), dense
            with tempfile.TemporaryDirectory() as folder:
                OnnxRuntime(products=products).export(artifact, Path(folder) / "net.onnx")
                sizes[name] = (Path(folder) / "net.onnx").stat().st_size
        name = f"{bits} bits, native"
        nets[name], wanted[name] = lilliput.load(artifact, engine=Native(tolerance=0.02)), dense
    with torch.no_grad():
        seconds = race({name: lambda net=net: net(x) for name, net in nets.items()}, rounds=15)
        for name, net in nets.items():
            error = float((net(x) - wanted[name]).norm() / wanted[name].norm())
            row = {"case": name, "ms": 1e3 * seconds[name], "speed": seconds["float32"] / seconds[name], "error": error}
            rows.append(row | ({"MB": sizes[name] / 1e6} if name in sizes else {}))
    table = Table("case", "ms", "speed", "error", "MB")
    for row in rows:
        table.add_row(row["case"], *(f"{row.get(key, 0):.3g}" for key in ("ms", "speed", "error", "MB")))
    Console().print(table)
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
