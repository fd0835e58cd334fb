"""What a fit has found so far, on disk: an interrupted fit goes on where it was, and ends with the same file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...samplers.files.write import write_tensors

__all__ = ["Journal", "Record"]

Record = dict[str, Tensor]


class Journal:
    """Named records of tensors, saved atomically after each change.

    Args:
        path: File to keep them in; None keeps them in memory only.
        settings: What the records follow from. A file with other settings is refused.
        shared: Gives every process what process 0 read (the identity in one process).
        writes: Whether this process writes.

    Raises:
        ValueError: The file belongs to a fit with other settings, or is damaged.
    """

    def __init__(
        self,
        path: Path | None,
        settings: dict[str, object],
        shared: Callable[[dict[str, Record]], dict[str, Record]] = lambda records: records,
        writes: bool = True,
    ) -> None:
        if path is not None and path.is_dir():
            raise ValueError(f"journal must be a file to keep the fit in, got the folder {path}: name a file in it")
        self.path = path if writes else None
        self.settings = json.dumps(settings, sort_keys=True)
        self._records: dict[str, Record] = shared(self._read() if self.path and self.path.exists() else {})
        self.resumed = bool(self._records)

    def get(self, name: str) -> Record | None:
        """Returns a record, or None."""
        return self._records.get(name)

    def put(self, name: str, record: Record) -> Record:
        """Returns the record after keeping it and saving all of them."""
        self._records[name] = {key: tensor.detach().clone() for key, tensor in record.items()}
        if self.path is None:
            return record
        flat = {f"{name}|{key}": tensor for name, own in self._records.items() for key, tensor in own.items()}
        write_tensors(self.path, flat, {"settings": self.settings})
        return record

    def _read(self) -> dict[str, Record]:
        assert self.path is not None
        try:
            return self._records_of_file()
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} cannot be read ({str(error)[:200]}), so the fit cannot go on with it: delete the file to "
                "start anew"
            ) from error

    def _records_of_file(self) -> dict[str, Record]:
        assert self.path is not None
        records: dict[str, Record] = {}
        with safe_open(self.path, framework="pt") as file:
            if (file.metadata() or {}).get("settings") != self.settings:
                raise ValueError(
                    f"{self.path} belongs to a fit with other settings: repeat that fit's command to go on with it, or "
                    "delete the file to start anew"
                )
            for key in file.keys():  # noqa: SIM118 - not a dict
                # A copy: Windows replaces no file that is still mapped into memory.
                name, _, tensor = key.rpartition("|")
                records.setdefault(name, {})[tensor] = file.get_tensor(key).clone()
        return records
