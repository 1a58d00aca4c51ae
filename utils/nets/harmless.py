"""What may stand beside the weights in a checkpoint of other code: settings, paths, dates and NumPy's values.

None of these types is made when a file is read. Each is allowed by its name, and a stand-in of this module takes its
place: NumPy's numbers become Python's, the rest becomes something inert. So a file can neither run code nor reach
NumPy's own unpickling, which trusts what it reads.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

NUMBERS = "biufcSU"  # kinds of numpy.dtype whose values are Python's


class _Inert:
    """In place of an object whose content nobody needs."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


class _Mapping:
    """In place of a dict of another kind."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _Type:
    """In place of numpy.dtype."""

    def __init__(self, name: Any = "V", *_: Any):
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def values(self, data: bytes) -> np.ndarray | None:
        kind = np.dtype(self.name)
        return np.frombuffer(data, kind.newbyteorder(self.order)) if kind.kind in NUMBERS else None


class _Array:
    """In place of numpy.ndarray; `value` holds its numbers in lists, None for other content."""

    value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, data = state
        found = kind.values(data) if isinstance(data, bytes) else None
        if found is not None:
            self.value = found.reshape(shape, order="F" if is_fortran else "C").tolist()


def _scalar(kind: _Type, data: bytes) -> Any:
    found = kind.values(data)
    return None if found is None else found[0].item()


def _arrays_to_lists(value: Any) -> Any:
    """`value` with lists for arrays, all the way down its dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: _arrays_to_lists(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_arrays_to_lists(entry) for entry in value)
    return value.value if isinstance(value, _Array) else value


INERT = (
    "argparse.Namespace types.SimpleNamespace torch.torch_version.TorchVersion "
    "pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath pathlib.PureWindowsPath "
    "pathlib._local.PosixPath pathlib._local.PurePosixPath pathlib._local.WindowsPath pathlib._local.PureWindowsPath "
    "datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone uuid.UUID decimal.Decimal "
    "builtins.dict builtins.list builtins.tuple builtins.int builtins.float builtins.str builtins.bool builtins.bytes "
    "builtins.frozenset builtins.slice builtins.range builtins.object numpy.ndarray "
    "typing.Any omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata "
    "omegaconf.base.Metadata omegaconf.nodes.AnyNode omegaconf.nodes.StringNode omegaconf.nodes.IntegerNode "
    "omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode omegaconf.nodes.PathNode"
).split()
MAPPINGS = (
    "collections.defaultdict easydict.EasyDict easydict.easydict.EasyDict yacs.config.CfgNode addict.addict.Dict "
    "addict.Dict munch.Munch ml_collections.config_dict.config_dict.ConfigDict "
    "pytorch_lightning.utilities.parsing.AttributeDict lightning.pytorch.utilities.parsing.AttributeDict "
    "lightning.fabric.utilities.data.AttributeDict lightning_fabric.utilities.data.AttributeDict"
).split()


def _named(name: str, kind: type) -> type:
    """A class of this kind which torch.load takes for the one of that name."""
    module, _, own = name.rpartition(".")
    return type(own, (kind,), {"__module__": module, "__qualname__": own})


def _function(name: str, function: Callable) -> Callable:
    def stand_in(*values: Any) -> Any:
        return function(*values)

    stand_in.__module__, _, stand_in.__name__ = name.rpartition(".")
    stand_in.__qualname__ = stand_in.__name__
    return stand_in


_ARRAY = _named("utils.nets.harmless.array", _Array)
_STAND_INS = (
    *(_named(name, _Inert) for name in INERT),
    *(_named(name, _Mapping) for name in MAPPINGS),
    _named("numpy.dtype", _Type),
    _ARRAY,
    *(_function(f"numpy.{core}.multiarray.scalar", _scalar) for core in ("core", "_core")),
    *(_function(f"numpy.{core}.multiarray._reconstruct", lambda *_: _ARRAY()) for core in ("core", "_core")),
)


def load(path: str | Path) -> Any:
    """What torch.save wrote to a file: tensors on the CPU, plain values, and lists for NumPy's arrays.

    Raises what torch.load does for any other file, and for one that holds other types.
    """
    with torch.serialization.safe_globals(list(_STAND_INS)):
        return _arrays_to_lists(torch.load(path, map_location="cpu", weights_only=True))
