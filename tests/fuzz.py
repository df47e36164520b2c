"""Files and texts of others, by coverage: `python tests/fuzz.py FORMAT SECONDS [FOLDER]`, by hand.

FORMAT is one of `helpers.readers`: a file of READERS, or a text of TEXTS. What leads to new code of the package or of
Pillow is kept and changed again. What is neither read nor refused as it should be is told once, and kept under
FOLDER/found; so is what takes more than 5 seconds or ends the process, which then ends. It needs atheris
(`pip install atheris`), which no test does.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["smoothfast", "PIL"]):
    import torch
    from helpers.hostile import refused_or_read
    from helpers.parts import changed
    from helpers.readers import READERS, TEXTS, others
    from PIL import Image

    Image.init()  # all of its readers
    Image.MAX_IMAGE_PIXELS = 2**20  # of 89 million, each image takes seconds


def main(name: str, seconds: int, folder: Path) -> None:
    """Reads one kind for so long."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    corpus, found = folder / "corpus", folder / "found"
    for each in (corpus, found):
        each.mkdir(parents=True, exist_ok=True)
    act, seeds = TEXTS[name] if name in TEXTS else reader(name, folder / "files")
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=4096", f"-artifact_prefix={found}/"]
    arguments = ["fuzz", *limits, "-max_len=20000", "-print_final_stats=1", str(corpus)]
    atheris.Setup(arguments, telling(act, found), custom_mutator=mutated)
    atheris.Fuzz()


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """Data with a change, of no more than so many bytes."""
    return changed(data, random.Random(seed), lambda part: atheris.Mutate(part, len(part) + 40))[:most]


def reader(name: str, folder: Path) -> tuple[Callable[[bytes], object], list[bytes]]:
    """What reads the bytes of a file of this kind, and some to begin with."""
    write, act = READERS[name]
    shutil.rmtree(folder, ignore_errors=True)  # of a run before
    folder.mkdir()
    path = folder / name
    write(path)
    act(path)
    whole = {each: each.read_bytes() for each in folder.iterdir() if each.is_file()}

    def read(data: bytes) -> None:
        for each in folder.iterdir():
            if each.is_file() and each not in whole:
                each.unlink()
        for each, content in whole.items():
            each.write_bytes(content)
        path.write_bytes(data)
        refused_or_read(lambda: act(path), path, folder / name.removesuffix(".json"))

    return read, [whole[path], *others(path)]


def telling(act: Callable[[bytes], object], found: Path) -> Callable[[bytes], None]:
    """What does the same, and tells and keeps what it was not to raise, once for each place."""
    known: set[str] = set()

    def one(data: bytes) -> None:
        try:
            act(data)
        except Exception as error:
            while error.__context__ is not None and isinstance(error, AssertionError):
                error = error.__context__  # type: ignore[assignment]
            place = f"{type(error).__name__} {traceback.extract_tb(error.__traceback__)[-1]}"
            if place not in known:
                known.add(place)
                (found / f"{len(known)}.txt").write_text(traceback.format_exc())
                (found / f"{len(known)}").write_bytes(data)
                print(f"found {len(known)}: {error!r:.300}", flush=True)

    return one


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp()))
