"""Files that `torch.save` has written, read without running code of theirs, and within the memory that they fill."""

from __future__ import annotations

import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .pickles import require_modest

# NumPy's numbers, as programs keep the best accuracy in beside the weights; no object of another dtype is made so.
NUMBERS: list[Any] = [np.dtype, *map(type, map(np.dtype, ("f2", "f4", "f8", "i4", "i8", "?")))]
NUMBERS += [(np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
ZIP, PICKLES = b"PK\x03\x04", 5  # the beginning of a file of torch 1.6 and later; the pickles in one of before
PICKLED = re.compile(r"GLOBAL [\w.]+")  # what torch names of a pickle that it does not take


def read_torch(path: str | Path) -> Any:
    """Reads what `torch.save` has written, tensors on the CPU, without running any code of the file.

    Raises:
        ValueError: it holds code, is cut off or broken, or claims to hold more than its size.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            _require_honest(path)
        _require_modest(path)
        with torch.serialization.safe_globals(NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler that meets noise may raise anything
        if isinstance(error, OSError) and error.filename is not None:  # not of a step to before the file
            raise
        said = " ".join(str(error).split())
        if pickled := PICKLED.search(said):
            said = (
                f"{pickled[0]} would run code; where you trust the file, read it once with weights_only=False and "
                "torch.save(model.state_dict(), NEW)"
            )
        raise ValueError(f"{path} cannot be read with weights_only=True: {said}") from error


def _require_honest(path: Path) -> None:
    """Raises ValueError where the records of a zip file, which torch does not compress, claim more than the file."""
    with zipfile.ZipFile(path) as file:
        claimed, held = sum(record.file_size for record in file.infolist()), path.stat().st_size
    if claimed > held:
        raise ValueError(f"its records claim {claimed:,} bytes, the file has {held:,}")


def _require_modest(path: Path) -> None:
    """Raises ValueError where a pickle in a torch file would make more than it has room for."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:  # as torch tells it
            require_modest(BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
            return
        file.seek(0)
        for _ in range(PICKLES):
            if not require_modest(file):
                return
