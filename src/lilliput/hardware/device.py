"""A device as data: its array, memories, clock, bandwidth and energies, from a TOML file."""

from __future__ import annotations

import importlib.resources
import json
import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lilliput.core.errors import DeviceError
from lilliput.hardware.energy import Costs

FOLDER = importlib.resources.files("lilliput") / "hardware" / "devices"


@dataclass(frozen=True)
class Device:
    """An array of processing elements with a register file each, a shared buffer, and DRAM.

    Attributes:
        name: of the file.
        rows: of the array.
        columns: of the array; rows * columns multiply-accumulates are done in a cycle.
        register_bytes: of each processing element.
        buffer_bytes: shared by all.
        word_bits: of a number in the memories; what the buffers hold is counted in these words.
        clock: cycles in a second.
        bandwidth: bytes from DRAM in a second.
        dataflow: which of `dataflow.FLOWS` it uses.
        costs: energies.
        about: where the figures come from.

    Raises:
        DeviceError: an array of no elements, a memory without a word.

    >>> eyeriss = Device.load("eyeriss")
    >>> eyeriss.rows, eyeriss.columns, eyeriss.peak / 1e9, eyeriss.costs.dram
    (12, 14, 33.6, 200.0)
    """

    name: str
    rows: int
    columns: int
    register_bytes: int
    buffer_bytes: int
    word_bits: int
    clock: float
    bandwidth: float
    dataflow: str = "row_stationary"
    costs: Costs = field(default_factory=Costs)
    about: str = ""

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "buffer_bytes", "word_bits"):
            if getattr(self, name) < 1:
                raise DeviceError(f"device {self.name}: {name} must be at least 1, it is {getattr(self, name)}")
        if self.register_bytes < 0:
            raise DeviceError(f"device {self.name}: register_bytes must not be negative, it is {self.register_bytes}")
        for name in ("clock", "bandwidth"):
            if not 0 < getattr(self, name) < math.inf:
                raise DeviceError(f"device {self.name}: {name} must be positive, it is {getattr(self, name)}")

    @property
    def processors(self) -> int:
        """Processing elements of the array."""
        return self.rows * self.columns

    @property
    def peak(self) -> float:
        """Multiply-accumulates in a second, if all processors are busy."""
        return self.processors * self.clock

    @property
    def buffer_words(self) -> int:
        """Words in the buffer."""
        return self.buffer_bytes * 8 // self.word_bits

    @property
    def register_words(self) -> int:
        """Words in the register file of each processor."""
        return self.register_bytes * 8 // self.word_bits

    def traded(self, register_bytes: int) -> Device:
        """Returns the device with smaller register files and a buffer larger by as many bytes.

        Flows that keep little at the processors are compared at about equal area so.

        >>> Device("d", 2, 4, 512, 1024, 16, 1e9, 1e9).traded(2).buffer_bytes
        5104
        """
        spare = max(0, self.register_bytes - register_bytes) * self.processors
        return replace(
            self,
            register_bytes=min(self.register_bytes, register_bytes),
            buffer_bytes=self.buffer_bytes + spare,
        )

    @classmethod
    def load(cls, name: str | Path) -> Device:
        """Reads a device that comes with Lilliput, by its name, or a TOML file of your own.

        Args:
            name: such as `"eyeriss"`, or a path that ends in `.toml`.

        Raises:
            DeviceError: there is none of that name, or entries are missing, unknown or of the wrong type.
        """
        path = Path(name)
        if path.suffix == ".toml":
            if not path.is_file():
                raise DeviceError(f"{path}: there is no such file of a device")
            text, called = path.read_text("utf-8"), path.stem
        else:
            if str(name) not in devices():
                raise DeviceError(f"no device '{name}'; there are {', '.join(devices())}, or give a .toml file")
            text, called = (FOLDER / f"{name}.toml").read_text("utf-8"), str(name)
        return cls.loads(text, called)

    def dumps(self) -> str:
        """Returns the device as TOML text, such as `roofline.this_machine()` to be kept; the name isn't in it.

        >>> tpu = Device.load("tpu_v1")
        >>> Device.loads(tpu.dumps(), "tpu_v1") == tpu
        True
        """
        own = [f"{f.name} = {_toml(getattr(self, f.name))}" for f in fields(self) if f.name not in {"name", "costs"}]
        costs = [f"{f.name} = {_toml(getattr(self.costs, f.name))}" for f in fields(self.costs)]
        return "\n".join([*own, "", "[energy]", *costs]) + "\n"

    @classmethod
    def loads(cls, text: str, name: str = "device") -> Device:
        """Makes a device of TOML text; see `load`."""
        try:
            entries = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise DeviceError(f"device {name}: no TOML: {error}") from None
        energy = entries.pop("energy", None)
        if not isinstance(energy, dict):
            raise DeviceError(f"device {name}: lacks the table [energy] with dram, buffer, array, register, mac, unit")
        costs = Costs(**_checked(energy, Costs, f"{name}: [energy]", {f.name for f in fields(Costs)}))
        needed = {f.name for f in fields(cls)} - {"name", "costs", "about", "dataflow"}
        return cls(name, costs=costs, **_checked(entries, cls, name, needed))


def _toml(value: str | float) -> str:
    """A number or a text as TOML writes it; JSON's strings are TOML's."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _checked(entries: dict[str, Any], kind: type[Any], where: str, needed: set[str]) -> dict[str, Any]:
    types = {f.name: f.type for f in fields(kind) if f.name not in {"name", "costs"}}
    missing, unknown = sorted(needed - set(entries)), sorted(set(entries) - set(types))
    if missing or unknown:
        words = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise DeviceError(f"device {where} {' and '.join(words)}")
    for name, value in entries.items():
        right: tuple[type, ...] = {"int": (int,), "float": (int, float), "str": (str,)}[str(types[name])]
        if not isinstance(value, right) or isinstance(value, bool):
            raise DeviceError(f"device {where}: {name} must be a {types[name]}, it is {value!r}")
    return {name: float(value) if types[name] == "float" else value for name, value in entries.items()}


def devices() -> list[str]:
    """Names of the devices that come with Lilliput.

    >>> "eyeriss" in devices()
    True
    """
    return sorted(entry.name.removesuffix(".toml") for entry in FOLDER.iterdir() if entry.name.endswith(".toml"))
