"""The progress of a fit on disk, so that an interrupted fit resumes where it stopped and ends with the same file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...samplers.files.write import write_tensors
from ..data.processes import Processes

__all__ = ["Journal", "Record"]

Record = dict[str, Tensor]


class Journal:
    """Named records of tensors, saved atomically after each change; in memory only without a `path`.

    `key` is a hash of everything that determines the records: a file with another key is refused. Process 0 reads and
    writes, and broadcasts what it read.
    """

    def __init__(self, path: str | Path | None, key: str, processes: Processes | None = None) -> None:
        processes = processes or Processes()
        if path is not None and Path(path).is_dir():
            raise ValueError(f"journal must be a file, got the folder {path}: pass a file in it")
        self.path = Path(path) if path is not None and processes.rank == 0 else None
        self.key = key
        self._records: dict[str, Record] = processes.from_first(
            _read(self.path, key) if self.path and self.path.exists() else {}
        )
        self.resumed = bool(self._records)

    def get(self, name: str) -> Record | None:
        """The record of that name, or None."""
        return self._records.get(name)

    def note(self, name: str, record: Record) -> None:
        """Stores a record; the file follows with the next `put`."""
        self._records[name] = {part: tensor.detach().clone() for part, tensor in record.items()}

    def put(self, name: str, record: Record) -> Record:
        """Stores a record, saves all records, and returns it."""
        self.note(name, record)
        if self.path is not None:
            flat = {
                f"{name}|{part}": tensor for name, stored in self._records.items() for part, tensor in stored.items()
            }
            write_tensors(self.path, flat, {"key": self.key})
        return record

    def drop(self, name: str, keep: Collection[str] = ()) -> None:
        """Forgets a record, or all of it but the tensors in `keep`; the file follows with the next `put`."""
        record = self._records.pop(name, {})
        if kept := {part: record[part] for part in keep if part in record}:
            self._records[name] = kept


def _read(path: Path, key: str) -> dict[str, Record]:
    records: dict[str, Record] = {}
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                raise ValueError(
                    f"{path} belongs to a fit with different settings or of another version: repeat that fit's "
                    "command to resume it, or delete the file to start over"
                )
            for name in file.keys():  # noqa: SIM118 - not a dict
                record, _, part = name.rpartition("|")
                # A copy: Windows replaces no file that is still mapped into memory.
                records.setdefault(record, {})[part] = file.get_tensor(name).clone()
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read ({str(error)[:200]}), so the fit cannot resume: delete the file to start over"
        ) from error
    return records
