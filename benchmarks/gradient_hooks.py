"""Gradient hooks beside plain DDP: accuracy, and bytes on the wire, on Fashion-MNIST, by 2 and 4 processes with gloo.

    python benchmarks/gradient_hooks.py                 # all runs; writes results/gradient_hooks.json, prints the table
    python benchmarks/gradient_hooks.py --processes 2 --methods eight_bit --seeds 0
    python benchmarks/gradient_hooks.py --bytes         # bytes alone: 40 steps of the demo's network, no warm-up
    python benchmarks/gradient_hooks.py --kill          # a process is killed; the training goes on from its checkpoint

Each run is `torchrun` in a network of its own (`unshare -n`, which needs root), where the kernel counts what goes over
the loopback device: payload, headers, acknowledgements and the rendezvous of all processes. Without root other traffic
is counted too. A small CNN, 20,000 pictures, five epochs of batches of 128 in all, SGD with momentum 0.9.
"""

import argparse
import fcntl
import json
import math
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gradient_hooks.json"
sys.path.insert(0, str(HERE.parent / "examples"))
EPOCHS, BATCH, PICTURES, RATE = 5, 128, 20_000, 0.05

METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "eight_bit": {},
    "qsgd": {},
    "terngrad": {},
    "terngrad, clip 1.5": {"clip": 1.5},
    "deep_gradient_compression": {"density": 0.01, "bits": 8, "clip": 1.0},
}


def network(large: bool = False) -> nn.Module:
    """Two convolutions and two linear layers, 26,698 parameters; or the demo's CNN, 323,962."""
    torch.manual_seed(0)
    if large:
        from fashion_cnn import fashion_cnn

        return fashion_cnn()
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


class Shard:
    """This process's part of every batch, in an order that the epoch alone decides."""

    def __init__(self, seed: int) -> None:
        import fashion_mnist

        images, labels = fashion_mnist.load("train")
        self.images, self.labels = images[:PICTURES], labels[:PICTURES]
        self.seed, self.epoch, self.count = seed, 0, PICTURES // BATCH
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Called by `fit` before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        order = torch.randperm(PICTURES, generator=numbers)
        for start in range(0, len(self) * BATCH, BATCH):
            own = order[start : start + BATCH][dist.get_rank() :: dist.get_world_size()]
            yield self.images[own], self.labels[own]


def on_the_wire() -> int:
    """Bytes that the loopback device has sent, headers and all."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def worker(options: argparse.Namespace) -> None:
    """One process of a run, started by torchrun."""
    import fashion_mnist
    from lilliput.core.method import find
    from lilliput.train.fit import FitOptions, fit

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, data = dist.get_rank(), Shard(options.seed)
    whole = nn.parallel.DistributedDataParallel(network(large=bool(options.steps)))
    method, settings = options.worker, dict(METHODS[options.worker])
    if options.steps:
        data.count = options.steps
    state = find("train/gradients", method.split(",")[0])(**settings).on(whole) if method != "plain" else None
    # Its momentum is the hook's; what is masked away of it makes the steps smaller, which a larger rate makes up for.
    # As in the paper, the rate is small in the beginning.
    deep = method == "deep_gradient_compression"
    momentum, peak, rise = (0.0, 2 * RATE, 0.1) if deep else (0.9, RATE, 0.0)
    epochs = 1 if options.steps else EPOCHS
    steps = epochs * len(data)
    optimizer = torch.optim.SGD(whole.parameters(), peak / (rise * steps + 1), momentum=momentum)

    def after(_: dict[str, float], step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / (rise * steps + 1))
        if options.die == step and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint = Path(options.output).with_suffix(".checkpoint") if options.every else None
    fitting = FitOptions(hook=state, log=after, checkpoint=checkpoint, every=options.every, progress=False)
    dist.barrier()
    before, start = on_the_wire(), time.perf_counter()
    losses = fit(whole, data, epochs=epochs, optimizer=optimizer, options=fitting)
    seconds = time.perf_counter() - start
    dist.barrier()
    wire = on_the_wire() - before
    count = sum(p.numel() for p in whole.parameters())
    plain = 2 * (dist.get_world_size() - 1) * count * 4 * steps // dist.get_world_size()
    if rank == 0:
        result = {
            "accuracy": 0.0 if options.steps else fashion_mnist.accuracy(whole.module),
            "loss": losses[-1],
            "sent": plain if state is None else state.sent,
            "plain": plain,
            "wire": wire // dist.get_world_size(),
            "seconds": round(seconds, 1),
            "digest": float(torch.cat([p.detach().double().flatten() for p in whole.parameters()]).square().sum()),
        }
        Path(options.output).write_text(json.dumps(result))
    dist.destroy_process_group()


def isolated() -> bool:
    """Whether runs can have a network of their own."""
    return subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0


def launch(method: str, processes: int, output: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    """Starts torchrun, through this file again, which first switches the new network's loopback on."""
    own = ["unshare", "-n"] if isolated() else []
    command = [*own, sys.executable, __file__, "--start", str(processes), "--worker", method, "--output", str(output)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *extra], env=environment, capture_output=True, text=True, check=False)


def start(options: argparse.Namespace, extra: list[str]) -> None:
    """Becomes torchrun."""
    if isolated():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.start}", "--max-restarts=0"]
    os.execv(sys.executable, [sys.executable, *command, __file__, *extra])


def killed(folder: Path) -> dict[str, Any]:
    """Kills process 1 of 2 in step 120 of a training that saves every 50; then goes on, and once without the kill."""
    output = folder / "killed.json"
    first = launch("eight_bit", 2, output, "--every", "50", "--die", "120")
    lines = [line for line in first.stderr.splitlines() if "ExchangeError" in line]
    saved = sorted(path.name for path in folder.glob("killed.checkpoint*"))
    again = launch("eight_bit", 2, output, "--every", "50")
    whole = launch("eight_bit", 2, folder / "whole.json")
    for run in (again, whole):
        if run.returncode:
            sys.exit(run.stderr[-3000:])
    resumed, straight = (json.loads(path.read_text()) for path in (output, folder / "whole.json"))
    return {
        "exit": first.returncode,
        "error": lines[0].split("ExchangeError: ")[-1] if lines else "",
        "checkpoints": saved,
        "accuracy": resumed["accuracy"],
        "same as without the kill": resumed["digest"] == straight["digest"],
    }


def table(results: dict[str, Any]) -> str:
    """The runs as two tables; bytes are those of one process, differences are taken seed by seed."""
    lines = [
        "| processes | method | seeds | accuracy | to plain DDP | MB sent | fewer | MB on the wire | fewer |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for processes, name, run, base in _runs(results, ""):
        pairs = [
            (results[own]["accuracy"], results[plain]["accuracy"])
            for own, plain in ((_key(name, processes, seed), _key("plain", processes, seed)) for seed in range(100))
            if own in results and plain in results
        ]
        gaps = [100 * (own - plain) for own, plain in pairs]
        error = f" +- {statistics.stdev(gaps) / len(gaps) ** 0.5:.2f}" if len(gaps) > 1 and any(gaps) else ""
        accuracy = 100 * statistics.mean(own for own, _ in pairs)
        told = f"{len(pairs)} | {accuracy:.2f} % | {statistics.mean(gaps):+.2f}{error}"
        lines.append(f"| {processes} | {name} | {told} | {_bytes(run, base)} |")
    lines += [
        "",
        "| processes | method | MB sent | fewer | MB on the wire | fewer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for processes, name, run, base in _runs(results, " bytes"):
        lines.append(f"| {processes} | {name} | {_bytes(run, base)} |")
    return "\n".join(lines)


def _key(method: str, processes: int, seed: int) -> str:
    return f"{method} {processes}" + (f" seed {seed}" if seed else "")


def _runs(results: dict[str, Any], end: str) -> Iterator[tuple[int, str, dict[str, Any], dict[str, Any]]]:
    for processes in (2, 4):
        for name in METHODS:
            if f"{name} {processes}{end}" in results:
                run = results[f"{name} {processes}{end}"]
                yield processes, name, run, results.get(f"plain {processes}{end}", run)


def _bytes(run: dict[str, Any], base: dict[str, Any]) -> str:
    counted = f"{run['sent'] / 1e6:.2f} | {run['plain'] / run['sent']:.1f} x"
    return f"{counted} | {run['wire'] / 1e6:.2f} | {base['wire'] / run['wire']:.1f} x"


def main() -> None:
    """Runs what is asked for, adds it to the results, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--bytes", action="store_true")
    for hidden, kind in (
        ("worker", str),
        ("output", str),
        ("start", int),
        ("die", int),
        ("every", int),
        ("steps", int),
    ):
        parser.add_argument(f"--{hidden}", type=kind, default=kind(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(options, _without(sys.argv[1:], "--start"))
    if options.worker:
        worker(options)
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        if options.kill:
            results["kill"] = killed(Path(scratch))
            print(json.dumps(results["kill"], indent=1))
        for processes in [] if options.kill else options.processes:
            for method, seed in [(m, s) for s in ([0] if options.bytes else options.seeds) for m in options.methods]:
                output = Path(scratch) / "run.json"
                own = ["--steps", "40"] if options.bytes else []
                done = launch(method, processes, output, "--seed", str(seed), *own)
                if done.returncode:
                    sys.exit(done.stderr[-3000:])
                name = _key(method, processes, seed) + (" bytes" if options.bytes else "")
                results[name] = json.loads(output.read_text())
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                print(name, results[name], flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def _without(words: list[str], flag: str) -> list[str]:
    at = words.index(flag)
    return words[:at] + words[at + 2 :]


if __name__ == "__main__":
    main()
