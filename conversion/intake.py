"""Moving a head's tensors from its producer's names to ours, with an account of every one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from ..errors import HeadError
from ..targets.stored import Stored
from .source import Source

Shape = tuple[int | None, ...]


class Intake:
    """Each source tensor is taken once, or dropped for a reason; what is left over is the cause of a refusal."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._left = dict(source.tensors)
        #: Tensors by our names.
        self.taken: dict[str, Stored] = {}
        #: Names in the files: our names.
        self.used: dict[str, str] = {}
        #: Names in the files: why they were left out.
        self.dropped: dict[str, str] = dict(source.dropped)
        self.notes: list[str] = list(source.notes)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """What has not been taken yet."""
        return list(self._left)

    def look(self, name: str, shape: Shape | None = None) -> Stored:
        """A tensor that must be there, without taking it; `shape` may leave sizes open with None."""
        if name not in self._left:
            raise HeadError(
                f"tensor {name} is missing; the head has {listed(self._left)}",
                "It is part of every head of this kind",
                "Export the head again, whole",
            )
        tensor = self._left[name]
        check_shape(name, tensor, shape)
        return tensor

    def take(
        self, name: str, ours: str | None = None, shape: Shape | None = None, change: Callable | None = None
    ) -> Stored:
        """Move a tensor to our name `ours` (by default its own), perhaps changed."""
        tensor = self.look(name, shape)
        del self._left[name]
        self.used[self._stored_name(name)] = ours or name
        self.taken[ours or name] = tensor if change is None else tensor.changed(change)
        return self.taken[ours or name]

    def take_if(self, name: str, ours: str | None = None, shape: Shape | None = None) -> bool:
        """Move a tensor that may be there; returns whether it was."""
        if name in self:
            self.take(name, ours, shape)
            return True
        return False

    def replace(self, name: str, ours: str, tensor: Stored) -> None:
        """Put `tensor`, made from the source's `name`, under our name."""
        del self._left[name]
        self.used[self._stored_name(name)] = ours
        self.taken[ours] = tensor

    def put(self, ours: str, tensor: Tensor) -> None:
        """A tensor that no source tensor is the origin of."""
        self.taken[ours] = Stored.of(tensor)

    def drop(self, names: str | Iterable[str], why: str) -> None:
        """Leave tensors out, where they are there at all."""
        for name in [names] if isinstance(names, str) else names:
            if self._left.pop(name, None) is not None:
                self.dropped[self._stored_name(name)] = why

    def finish(self) -> None:
        """Raise `HeadError` if a tensor is left over."""
        if self._left:
            raise HeadError(
                f"the head has tensors that nothing here accounts for: {listed(self._left)}",
                "Every tensor of a head changes what it computes",
                "If it is of another producer, name it with --producer",
            )

    def note(self, text: str) -> None:
        self.notes.append(text)

    def _stored_name(self, name: str) -> str:
        return self.source.stored_names.get(name, name)


def check_shape(name: str, tensor: Stored, shape: Shape | None) -> None:
    """Raise `HeadError` unless `tensor` has `shape`, where None fits any size."""
    if shape is not None and (
        len(tensor.shape) != len(shape)
        or any(want not in (None, have) for want, have in zip(shape, tensor.shape, strict=True))
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise HeadError(
            f"{name} is {list(tensor.shape)}", f"[{wanted}] was expected", "Is this head for another target?"
        )


def listed(tensors: dict[str, Stored]) -> str:
    """Names and shapes, the first eight of them."""
    shown = [f"{name} {list(t.shape)}" for name, t in list(tensors.items())[:8]]
    return ", ".join(shown) + (f" and {len(tensors) - 8} more" if len(tensors) > 8 else "")
