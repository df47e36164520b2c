"""Texts that name a model or a data set: what is accepted, checked without loading anything, torch least of all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .checks import at_least, at_most, choice, near
from .names import DATA, MODELS, WEIGHT_NOISES

# The embedded network in integers, known without torch.
DEMO_INTEGERS = Path(__file__).parent / "assets" / "resnet20-cifar10-jpeg-sigma0.25-int8.safetensors"
LIBRARIES = ("torchvision", "timm")  # they build networks without weights
FILES = ("hf", "onnx")  # networks in files, with their weights
MODEL_SPECS = (
    f"one of {', '.join(MODELS)}, torchvision:NAME, timm:NAME, hf:FOLDER, onnx:FILE, package.module:callable or "
    "file.py:callable; with +pni or +cni, noise in its weights"
)
DATA_SPECS = (
    f"{DATA[0]}, {', '.join(f'{name}:ROOT' for name in DATA[1:-1])}, {DATA[-1]}:PATH (also a zip file) or "
    "package.module:callable"
)
MOST_SIDE = 16_384  # of a resized image, which takes 805 MB in RGB


class Archive(NamedTuple):
    """A published archive of images: its address, and the folder that it holds."""

    url: str
    folder: str

    def missing(self, root: Path) -> str:
        """Says that its folder is not in a root, and how to get it there."""
        name = self.url.rpartition("/")[2]
        if (root / name).is_file():
            return f"{root / name} is not extracted: tar -xzf {root / name} -C {root}"
        return f"there is no {root / self.folder}: get {self.url} and extract it in {root}"


ARCHIVES = {
    "cifar10": Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "cifar-100-python"),
}


def require_model(spec: str) -> None:
    """Raises ValueError unless a text has the form of a model; whether the model can be built is seen later."""
    plain, plus, noise = spec.rpartition("+")
    if plus:
        choice("the noise in the weights of model", noise, WEIGHT_NOISES)
        if plain.endswith(tuple(f"+{kind}" for kind in WEIGHT_NOISES)):
            raise ValueError(f"model is {spec!r:.100}, with noise in its weights more than once")
        return require_model(plain)
    kind, colon, name = spec.partition(":")
    if spec not in MODELS and not (kind and colon):
        unknown = f", an unknown model{near(spec, MODELS)}" if spec else ""
        if spec.endswith(".py"):
            unknown = f", a file: name what in it makes the network, as {spec}:NAME"
        raise ValueError(f"model is {spec!r}{unknown}; it must be {MODEL_SPECS}")
    if kind == "onnx" and not Path(name).is_file():
        raise ValueError(f"model is {spec!r}, which cannot be read: there is no file {name}")
    if names_code(spec):
        _require_module(spec)


def _require_module(spec: str) -> None:
    """Raises ValueError where the module that a model is of is not there; nothing is imported."""
    module = spec.rpartition(":")[0]
    top, here = module.partition(".")[0], Path.cwd()
    if module.endswith(".py"):
        found, beside = Path(module).is_file(), [str(path) for path in Path(module).parent.glob("*.py")]
    else:
        found = not top or (here / f"{top}.py").exists() or (here / top).exists() or _installed(top)
        beside = [path.stem for path in here.glob("*.py")]
    if not found:
        kind = "file" if module.endswith(".py") else "module"
        raise ValueError(
            f"model is {spec!r}, which cannot be imported: there is no {kind} {module}{near(module, beside)}"
        )


def _installed(module: str) -> bool:
    """Tells whether a module is to be found; nothing is imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # one that is there, and was imported from nowhere, as the program itself
        return True


def draws_no_noise(spec: str) -> bool:
    """Tells whether a model is known to have no noise of its own; of a user's own model that is seen later."""
    kind, colon, _ = spec.partition(":")
    return "+" not in spec and (not colon or kind in LIBRARIES + FILES)


def names_code(spec: str) -> bool:
    """Tells whether a model or data set is a callable that would be imported."""
    kind, colon, _ = spec.rpartition("+")[0 if "+" in spec else 2].partition(":")
    return bool(colon) and kind not in (*LIBRARIES, *FILES, *DATA[1:])


def tells_its_classes(spec: str) -> bool:
    """Tells whether it is the model that settles the number of classes: one in a file, or the user's own."""
    return ":" in spec and not spec.startswith(tuple(f"{kind}:" for kind in LIBRARIES))


def comes_without_weights(spec: str) -> bool:
    """Tells whether a model is built untrained, so that it needs a weights file. A user's own may bring its weights."""
    kind, colon, _ = spec.partition(":")
    return not colon or kind in LIBRARIES


def require_data(spec: str, argument: str = "data") -> None:
    """Raises ValueError unless a text has the form of a data set, in a folder that is there."""
    kind, _, rest = spec.partition(":")
    if spec == DATA[0]:
        return
    if not (kind and rest):
        raise ValueError(f"{argument} is {spec!r}; it must be {DATA_SPECS}")
    if kind in DATA[1:] and not Path(rest).exists():
        there = ARCHIVES[kind].missing(Path(rest)) if kind in ARCHIVES else f"there is no {rest}"
        raise ValueError(f"{argument} is {spec!r}, which cannot be read: {there}")


def require_sides(resize: int | None, crop: int | None) -> None:
    """Raises ValueError unless images can be resized and cropped so."""
    at_least(1, resize=resize, crop=crop)
    at_most(MOST_SIDE, resize=resize, crop=crop)
    if resize is not None and crop is not None and crop > resize:
        raise ValueError(f"crop is {crop}; it must be at most {resize}, the resize")
