"""From words on the command line to models, weights, data and metrics; each refusal says what was wrong with which."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lilliput.core.errors import DataError, LilliputError, ModelError
from lilliput.core.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lilliput.cli.parameters import Around


def attribute(spec: str, what: str) -> Any:
    """Finds what `file.py:name` or `package.module:name` stands for.

    Args:
        spec: as given on the command line.
        what: `model`, `data` or `evaluate`, for messages.

    Raises:
        ModelError: no such file, module or attribute, or one that can't be imported.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ModelError(f"{what} '{spec}': write it as file.py:function or package.module:function")
    module = _module(place, what)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            near = ", ".join(sorted(key for key in own if getattr(module, key).__module__ == module.__name__)[:6])
            raise ModelError(f"{what} '{spec}': {place} has no '{part}'" + (f"; it has {near}" if near else ""))
        found = getattr(found, part)
    return found


@cache
def _module(place: str, what: str) -> ModuleType:
    path = Path(place)
    if path.suffix != ".py" and ("/" not in place and "\\" not in place):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return _imported(lambda: importlib.import_module(place), place, what)
    if not path.is_file():
        raise ModelError(f"{what} '{place}': there is no such file")
    return _imported(lambda: _file_module(path.resolve()), place, what)


def _file_module(path: Path) -> ModuleType:
    """Imports a file as Python would run it, with its own folder first on the path."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules and path.stem.isidentifier() else f"lilliput_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _imported(load: Callable[[], ModuleType], place: str, what: str) -> ModuleType:
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise ModelError(f"{what} '{place}': there is no module '{error.name}' (run from its folder?)") from None
        raise ModelError(f"{what} '{place}' can't be imported: {_blame(error)}") from None
    except LilliputError:
        raise
    except Exception as error:  # the user's own code may raise whatever it likes
        raise ModelError(f"{what} '{place}' can't be imported: {_blame(error)}") from None


def called(spec: str, function: Any, *arguments: Any) -> Any:
    """Calls the user's function; what it raises becomes one line with the place where it happened."""
    try:
        return function(*arguments)
    except LilliputError:
        raise
    except Exception as error:  # the user's own code may raise whatever it likes
        raise DataError(f"{spec} raised {_blame(error)}") from None


def _blame(error: Exception) -> str:
    """Type, message and the line of the user's code at which an exception came up."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    own = [f for f in own if "lilliput" not in Path(f.filename).parts and not f.filename.startswith("<")]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' + words if words else ''}{where}"


def model_of(spec: str, weights: Path | None = None) -> nn.Module:
    """Makes the model, with its weights if some are given, in eval mode.

    Raises:
        ModelError: what is wrong with the model or the weights.
    """
    from torch import nn

    # Tracing tries several ways; what the others failed of is no news.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    found = attribute(spec, "model")
    if isinstance(found, nn.Module):
        model = found
    elif callable(found):
        model = called(spec, found)
    else:
        raise ModelError(f"model '{spec}' is a {type(found).__name__}, not a function that returns a torch.nn.Module")
    if not isinstance(model, nn.Module):
        raise ModelError(f"model '{spec}' returned a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def loaded(model: str, given: Around, example: Any) -> tuple[nn.Module, Any, Callable[[nn.Module], float] | None]:
    """Loads a model and what goes along with it, and runs it once.

    Args:
        model: as given on the command line.
        given: weights, data and metric, as given.
        example: inputs of the model, or None: then the first of the data serves.

    Returns:
        The model, its data and its metric; None for what wasn't given.

    Raises:
        LilliputError: something can't be loaded, or the inputs don't fit.
    """
    network = model_of(model, given.weights)
    batches, metric = data_of(given.data), evaluate_of(given.evaluate)
    check_call(network, example, batches)
    return network, batches, metric


def check_call(model: nn.Module, example: Any, batches: Any) -> None:
    """Runs the model once on the example, or else on the first batch.

    Raises:
        DataError: if it can't be run on that.
    """
    import torch

    from lilliput.core.data import call, first, inputs_of

    if example is None and batches is None:
        return
    inputs = inputs_of(first(batches)) if example is None else example
    source = "the first batch of the data" if example is None else "the --input given"
    with torch.no_grad():
        try:
            call(model, inputs)
        except Exception as error:  # the user's model may raise whatever it likes
            raise DataError(f"the model can't be run on {source}: {_blame(error)}") from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Fills a model with weights, all of them or none.

    Raises:
        ModelError: a file that can't be read, or weights of another model; names the first that differ.
    """
    state = state_dict_of(path)
    own = model.state_dict()
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or extra:
        lacks = f"they lack {_some(missing)}" if missing else ""
        has = f"they hold {_some(extra)}, which the model hasn't" if extra else ""
        raise ModelError(f"{path}: weights of another model: {'; '.join(filter(None, (lacks, has)))}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, in the model {tuple(own[name].shape)}"
            raise ModelError(f"{path}: weights of another model: {name} has shape {shapes}")
    model.load_state_dict(state)


def state_dict_of(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from .safetensors, or from .pt or .pth without unpickling anything but tensors."""
    import torch

    if not path.is_file():
        raise ModelError(f"{path}: there is no such file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own
        raise ModelError(f"{path}: can't be read as weights: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        held = f"a dict with {_some(list(map(str, state)))}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise ModelError(f"{path}: holds {held}, not a state dict; save model.state_dict() alone")
    return state


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Again:
    """Batches from a function that is called anew for each pass: a generator can be read but once."""

    def __init__(self, spec: str, function: Callable[[], Iterable[Any]], batches: Iterable[Any]) -> None:
        self.spec, self.function = spec, function
        self.batches: Iterable[Any] | None = batches

    def __iter__(self) -> Iterator[Any]:
        batches, self.batches = self.batches, None
        return iter(called(self.spec, self.function) if batches is None else batches)


def data_of(spec: str | None) -> Any:
    """Makes the data, which can be read more than once; None without a spec.

    Raises:
        DataError: no iterable, or an empty one.
    """
    if spec is None:
        return None
    found = attribute(spec, "data")
    data = called(spec, found) if callable(found) else found
    if not isinstance(data, Iterable):
        raise DataError(f"data '{spec}' gave a {type(data).__name__}, not an iterable of batches")
    if isinstance(data, Iterator):
        data = Again(spec, found, data) if callable(found) else list(data)
    if hasattr(data, "__len__") and not len(data):
        raise DataError(f"data '{spec}' is empty: it must give at least one batch")
    return data


def evaluate_of(spec: str | None) -> Callable[[nn.Module], float] | None:
    """Makes the metric, which checks what the user's function returns; None without a spec.

    Raises:
        DataError: if it isn't callable.
    """
    if spec is None:
        return None
    found = attribute(spec, "evaluate")
    if not callable(found) or (inspect.isclass(found) and not hasattr(found, "__call__")):  # noqa: B004
        raise DataError(f"evaluate '{spec}' is a {type(found).__name__}, not a function that takes the model")

    def evaluate(model: nn.Module) -> float:
        value = called(spec, found, model)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise DataError(f"evaluate '{spec}' returned a {type(value).__name__}, not a number") from None
        if math.isnan(number):
            raise DataError(f"evaluate '{spec}' returned NaN")
        return number

    return evaluate


def recipe_of(spec: str) -> Recipe:
    """Returns a preset by its name, or the recipe in a TOML file.

    Raises:
        RecipeError: neither, or a recipe that can't be read.
    """
    from lilliput.core.errors import RecipeError

    path = Path(spec)
    if path.suffix != ".toml" and not path.is_file():
        return Recipe.preset(spec)
    try:
        return Recipe.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{spec}: there is no such recipe file") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{spec}: is not text in UTF-8") from None
    except RecipeError as error:
        raise RecipeError(f"{spec}: {error}") from None
