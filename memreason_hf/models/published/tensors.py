"""Tensors of a checkpoint folder by name, read one at a time and without running code that is stored in the files."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from memreason_hf.files import read_json
from memreason_hf.messages import first_few
from memreason_hf.models.pretrained import first_line


# In the order of preference. An index comes before a single file of the same kind.
_SAFETENSORS = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_NAMES = (f"{_SAFETENSORS}.index.json", _SAFETENSORS, f"{_PICKLED}.index.json", _PICKLED)


class TensorFiles:
    """
    The tensors of a checkpoint folder: `model.safetensors`, `pytorch_model.bin`, or the shards of either.

    A tensor of a safetensors file is read when it is taken. A `.bin` file is mapped into memory, so that its tensors
    are read when they are used; other objects than tensors in it are refused.

    Args:
        folder: the folder of the checkpoint.

    Attributes:
        names (`set` of `str`): the names of the tensors.

    Raises:
        FileNotFoundError: the folder holds no weights, or lacks a shard that its index names.
        ValueError: a file cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._open: tuple[Path, object] | None = None
        self._taken: set[str] = set()
        stored = next((self.folder / name for name in _NAMES if (self.folder / name).is_file()), None)
        if stored is None:
            raise FileNotFoundError(f"{folder} holds no weights: neither {_SAFETENSORS} nor {_PICKLED}.")
        if stored.suffix != ".json":
            self._places = dict.fromkeys(self._read_names(stored), stored)
        else:
            index = read_json(stored)
            if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
                raise ValueError(f"{stored} must hold a weight_map from the names of tensors to their files.")
            self._places = {name: self.folder / file for name, file in index["weight_map"].items()}
            for name, path in self._places.items():
                if path.parent != self.folder or not path.is_file():
                    raise FileNotFoundError(
                        f"{folder} lacks the shard {path.name}, which holds {name!r} according to {stored.name}."
                    )
        self.names = set(self._places)

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """
        The tensor `name`.

        Raises:
            ValueError: the checkpoint lacks it, or its shape is not `shape`.
        """
        if name not in self._places:
            raise ValueError(f"{self.folder}: the checkpoint lacks the tensor {name!r}.")
        self._taken.add(name)
        try:
            tensor = self._read(self._places[name], name)
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"{self._places[name]}: the tensor {name!r} cannot be read ({first_line(error)})."
            ) from error
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{self.folder}: the tensor {name!r} has shape {tuple(tensor.shape)}, but its config asks for {shape}."
            )
        return tensor

    def has_layer_tensor(self, end: str) -> bool:
        """Whether the name of a tensor ends with `end`."""
        return any(name.endswith(end) for name in self._places)

    def refuse_rest(self, ignored: Iterable[str] = ()) -> None:
        """
        Checks that every tensor has been taken, except `ignored`.

        Raises:
            ValueError: others are left, which the model would not use.
        """
        rest = sorted(self.names - self._taken - set(ignored))
        if rest:
            raise ValueError(
                f"{self.folder}: the checkpoint holds tensors that its config has no place for: {first_few(rest)}."
            )

    def _read_names(self, path):
        file = self._file(path)
        return file.keys()

    def _read(self, path, name):
        file = self._file(path)
        return file[name] if isinstance(file, dict) else file.get_tensor(name)

    def _file(self, path):
        """The opened file; only the last one stays open."""
        if self._open is None or self._open[0] != path:
            self._open = None
            self._open = path, open_tensors(path) if path.suffix != ".safetensors" else _open_safetensors(path)
        return self._open[1]


def _open_safetensors(path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read, the file may be cut off ({first_line(error)}).") from error


def open_tensors(path: Path) -> dict:
    """
    What `torch.save` wrote to `path`, mapped into memory: tensors, numbers, texts and collections of them.

    Raises:
        ValueError: the file cannot be read, or holds Python objects that only running code could restore.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files of the format before torch 1.6 cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects other than tensors and numbers. Reading them could run code of others, so "
            f"they are refused ({first_line(error)})."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read, the file may be cut off ({first_line(error)}).") from error


__all__ = ["TensorFiles", "open_tensors"]
