"""What a communication hook keeps from step to step: residuals, bytes sent, and where its training stands."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lilliput.core.errors import ModelError

# What DistributedDataParallel looks for in the annotation of a hook, so that these files don't defer theirs.
if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket
else:
    from torch.distributed import GradBucket

__all__ = ["GradBucket", "GradientHook", "HookState"]


@dataclass(eq=False)
class HookState:
    """The state of one hook on one model in one process.

    `state_dict` holds it for a checkpoint; each process has one of its own.

    Attributes:
        names: of the parameters, by `id`.
        group: the process group; None for the default one.
        step: backward passes that are over.
        sent: bytes that this process has sent: of n processes each sends what it has to n - 1 others.
        plain: bytes that it would have sent without the hook, by a ring all-reduce: 2 (n - 1) / n of the gradient.
        memory: tensors of the gradients' shapes, flat, by what they are and the parameter's name.
    """

    names: dict[int, str] = field(default_factory=dict)
    group: Any = None
    step: int = 0
    sent: int = 0
    plain: int = 0
    memory: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Which process this is."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return dist.get_world_size(self.group)

    def name(self, parameter: Tensor) -> str:
        """Returns the name of a parameter of a bucket."""
        if id(parameter) not in self.names:
            raise ModelError("a parameter that this state of a hook doesn't know: make it from the model, `on(model)`")
        return self.names[id(parameter)]

    def kept(self, what: str, name: str, size: int) -> Tensor:
        """Returns what is kept for a parameter, float32, `size` zeros at first; to be changed in place."""
        own = self.memory.setdefault(what, {})
        if name not in own:
            own[name] = torch.zeros(size)
        return own[name]

    def generator(self, seed: int, name: str) -> torch.Generator:
        """Returns random numbers of this process, step and parameter: the same ones when a training goes on."""
        text = f"{seed}/{self.rank}/{self.step}/{name}".encode()
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        return torch.Generator().manual_seed(number)

    def state_dict(self) -> dict[str, Any]:
        """Returns step, counts, and copies of what is kept, as `"<what>/<name>"`."""
        tensors = {f"{what}/{name}": t.clone() for what, own in self.memory.items() for name, t in own.items()}
        return {"step": self.step, "sent": self.sent, "plain": self.plain, "size": self.size, "memory": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave, in the same process of as many.

        Raises:
            ModelError: if it is of another number of processes, or of parameters that this model doesn't have.
        """
        if state["size"] != self.size:
            raise ModelError(f"the state of a hook is one of {state['size']} processes, not of {self.size}")
        memory: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state["memory"].items():
            what, _, name = key.partition("/")
            if name not in self.names.values():
                raise ModelError(f"the state of a hook holds '{name}', which this model doesn't have")
            memory.setdefault(what, {})[name] = tensor.clone()
        self.step, self.sent, self.plain = int(state["step"]), int(state["sent"]), int(state["plain"])
        self.memory = memory


class GradientHook(Protocol):
    """A way to exchange gradients, the contract of `train/gradients/`: a frozen dataclass of its settings.

    `model.register_comm_hook(state, method.hook)` is what `on` does. The hook leaves the mean of the processes'
    gradients, or what it sends of them, in the bucket; it exchanges at once, within the backward pass.
    """

    def hook(self, state: HookState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Exchanges one bucket of gradients.

        Args:
            state: changed in place.
            bucket: as DistributedDataParallel fills it.

        Returns:
            The bucket's buffer, its gradients exchanged.

        Raises:
            ExchangeError: if another process is gone.
        """
        ...

    def on(self, model: DistributedDataParallel) -> HookState:
        """Registers the hook on a model, for good; returns its state, which counts and can be saved.

        Raises:
            ModelError: if the model isn't in DistributedDataParallel, or has a hook already.
        """
        if not isinstance(model, DistributedDataParallel):
            raise ModelError(f"a hook goes on a DistributedDataParallel, not on a {type(model).__name__}")
        names = {id(parameter): name for name, parameter in model.module.named_parameters()}
        state = HookState(names, model.process_group)
        try:
            model.register_comm_hook(state, self.hook)
        except RuntimeError as error:
            raise ModelError(f"the hook can't be registered: {str(error).splitlines()[0]}") from None
        return state
