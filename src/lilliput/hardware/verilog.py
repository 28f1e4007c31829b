"""Runs a unit's Verilog in Icarus Verilog, so that it can be compared with its model."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lilliput.core.errors import DeviceError

BENCH = """
module bench;
  reg [{code}:0] codes [0:{last}];
  reg [{input}:0] inputs [0:{last}];
  reg [{code}:0] code;
  reg [{input}:0] x;
  wire signed [{output}:0] p;
  integer i;
  unit under_test(code, x, p);
  initial begin
    $readmemh("codes.hex", codes);
    $readmemh("inputs.hex", inputs);
    for (i = 0; i <= {last}; i = i + 1) begin
      code = codes[i];
      x = inputs[i];
      #1 $display("%0d", p);
    end
    $finish;
  end
endmodule
"""


class Emitted(Protocol):
    """What can be simulated: a unit that tells its ports' widths and its module."""

    @property
    def code_bits(self) -> int:
        """Of the port `code`."""

    @property
    def output_bits(self) -> int:
        """Of the port `p`."""

    def verilog(self, name: str = ...) -> str:
        """The module."""


def installed() -> bool:
    """Whether `iverilog` and `vvp` can be run."""
    return shutil.which("iverilog") is not None and shutil.which("vvp") is not None


def simulate(unit: Emitted, words: Sequence[tuple[int, int]]) -> list[int]:
    """Returns what the unit's Verilog gives for words on the ports `code` and `x`.

    Args:
        unit: of `arithmetic` or `dot_units`.
        words: pairs of whole numbers; negative ones in two's complement or as they are.

    Raises:
        DeviceError: Icarus Verilog isn't installed, or doesn't take the module.
    """
    if not installed():
        raise DeviceError("Icarus Verilog isn't installed: apt install iverilog")
    if not words:
        return []
    code_bits = unit.code_bits
    input_bits = int(getattr(unit, "input_bits", 0) or getattr(unit, "bits", 0))
    sizes = {"code": code_bits - 1, "input": input_bits - 1, "output": unit.output_bits - 1, "last": len(words) - 1}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "unit.v").write_text(unit.verilog("unit") + BENCH.format(**sizes))
        for name, bits, side in (("codes", code_bits, 0), ("inputs", input_bits, 1)):
            lines = [f"{pair[side] % (1 << bits):x}" for pair in words]
            (place / f"{name}.hex").write_text("\n".join(lines) + "\n")
        built = subprocess.run(
            ["iverilog", "-g2005", "-Wall", "-o", "run", "unit.v"],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise DeviceError(f"Icarus Verilog refuses the module: {' '.join(built.stderr.split())[:300]}")
        ran = subprocess.run(["vvp", "-n", "run"], cwd=place, capture_output=True, text=True, check=False)
    lines = ran.stdout.split()
    try:
        return [int(line) for line in lines[-len(words) :]] if len(lines) >= len(words) else _failed(ran.stdout)
    except ValueError:
        return _failed(ran.stdout)


def _failed(text: str) -> list[int]:
    raise DeviceError(f"the simulation gave no numbers: {' '.join(text.split())[:300]}")
