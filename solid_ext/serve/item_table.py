"""The item table: what a model's scores read of every item, made once and kept while the items stay as they are."""

from __future__ import annotations

import threading
import weakref
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from solid_ext._native import is_forked_child
from solid_ext.models import DynamicRecommender

ITEMS = 65536  # whose keys are computed at once: the features of so many are looked up on the way
SAMPLES = 256  # values of each tensor that are compared, for writes that torch does not count


class ItemTable:
    """`DynamicRecommender.keys` of items 1 .. V, for whoever asks about the whole catalogue.

    The keys are computed when they are first asked for and kept until the model is another one or what they are
    computed of was changed: a tensor replaced, or written by an optimizer, `load_state_dict`, `copy_` or any other of
    torch's in-place operations, all of which torch counts. It does not count writes through `.data` or through a numpy
    array over the same memory; of those the table sees what changes any of 256 values spread over the tensor, as a
    write to the whole of it does. After another one, `forget` it.

    Memory: V d values of the model's dtype; none where the keys are the rows of the embedding themselves, as without
    item features and with target "item". Any number of threads may ask; the first one computes, the others wait. A
    copy, or what is unpickled, begins empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[_Stamp, Tensor] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ItemTable], tuple[()]]:
        return ItemTable, ()

    def of(self, model: DynamicRecommender) -> Tensor:
        """The keys [V, d] of a model's items, on its device and without gradient; row v - 1 is item v's."""
        if isinstance(model.target, nn.Identity) and model.item_embedding.feature_map is None:
            return model.item_embedding.weight.detach()[1:]
        with nullcontext() if is_forked_child() else self._lock:  # whoever held the lock stayed with a child's parent
            kept = self._kept
            if kept is not None and kept[0].still_true_of(model):
                return kept[1]
            stamp = _Stamp.of(model)  # before the keys, so that what is written meanwhile is seen
            keys = _keys(model)
            self._kept = None if stamp is None else (stamp, keys)
            return keys

    def forget(self) -> None:
        """Compute the keys anew when they are next asked for."""
        self._kept = None


class _Seen(NamedTuple):
    """A tensor as it was when the keys were computed of it."""

    tensor: weakref.ref[Tensor]
    address: int
    version: int
    samples: Tensor


class _Stamp(NamedTuple):
    """What the keys of a model were computed of."""

    modules: list[type[nn.Module]]
    seen: list[_Seen]

    @staticmethod
    def of(model: DynamicRecommender) -> _Stamp | None:
        """None where nothing would tell of a change: torch counts no writes to tensors made in inference mode."""
        modules, tensors = _sources(model)
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return _Stamp(modules, [_Seen(weakref.ref(t), t.data_ptr(), t._version, _samples(t)) for t in tensors])

    def still_true_of(self, model: DynamicRecommender) -> bool:
        modules, tensors = _sources(model)
        if modules != self.modules or len(tensors) != len(self.seen):
            return False
        return all(
            seen.tensor() is tensor
            and (seen.address, seen.version) == (tensor.data_ptr(), tensor._version)
            and torch.equal(seen.samples, _samples(tensor))
            for seen, tensor in zip(self.seen, tensors, strict=True)
        )


def _sources(model: DynamicRecommender) -> tuple[list[type[nn.Module]], list[Tensor]]:
    """All that `keys` reads: kinds of modules, parameters and buffers. A view of a model in eval mode has the same."""
    parts = [*model.item_embedding.modules(), *model.target.modules()]
    tensors = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
    return [type(part) for part in parts], tensors


def _samples(tensor: Tensor) -> Tensor:
    """SAMPLES values or fewer, of different rows and columns."""
    step = tensor.numel() // SAMPLES | 1
    return tensor.detach().take(torch.arange(0, tensor.numel(), step, device=tensor.device))


def _keys(model: DynamicRecommender) -> Tensor:
    """The keys of all items, ITEMS at a time."""
    keys = None
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        for first in range(0, model.num_items, ITEMS):
            last = min(first + ITEMS, model.num_items)
            some = model.keys(torch.arange(first + 1, last + 1, device=model.device))
            keys = some.new_empty(model.num_items, *some.shape[1:]) if keys is None else keys
            keys[first:last] = some
    return model.item_embedding.weight.detach()[1:] if keys is None else keys
