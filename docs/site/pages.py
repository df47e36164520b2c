"""Pages of the site, written to a folder: those of docs/ and of the root, and references of Python and of commands.

python docs/site/pages.py build/pages
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

ROOT = Path(__file__).parents[2]
BESIDE = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
EXPERIMENTS = ["nemcovsky-2019", "randomness"]
REFERENCE = {
    "Smoothed classifiers": [
        "SmoothedClassifier", "SoftClassifier", "Prediction", "Certificate", "replay", "Replay", "Smooth",
    ],
    "Attacks": [
        f"attacks.{name}"
        for name in (
            "FGSM", "PGD", "EPGD", "SmoothAdvPGD", "MultiTargetedPGD", "DDN", "CW", "NAttack", "Square", "Transfer",
        )
    ],
    "Evaluation": ["evaluation.accuracy", "evaluation.base_votes", "evaluation.loss"],
    "Base classifiers": [
        "models.load", "models.Normalize", "weights.read_weights", "denoising.Denoised", "denoising.OneShotDiffusion",
    ],
    "Noise in networks": ["layers.inject_noise", "layers.remove_noise", "layers.scale_noise"],
    "Integers": ["quantization.quantize", "integers.IntegerResNet", "integers.save"],
    "Training": ["training.Settings", "training.Trainer"],
    "Data": ["data.load", "data.demo"],
    "Statistics": ["statistics.certified_radius", "statistics.share_bounds", "statistics.radius_tests"],
}  # fmt: skip
"""Names of the Python reference, by subject."""


def pages() -> dict[str, tuple[Path, str]]:
    """Texts by their places on the site, each with the folder that its links start from."""
    found = {path.name: (path.parent, path.read_text()) for path in sorted((ROOT / "docs").glob("*.md"))}
    del found["README.md"]  # the index of docs/, whose place the navigation takes
    found |= {name: (ROOT, (ROOT / name).read_text()) for name in BESIDE}
    for name in EXPERIMENTS:
        folder = ROOT / "experiments" / name
        found[f"experiments/{name}.md"] = folder, (folder / "README.md").read_text()
    found["index.md"] = ROOT, (ROOT / "README.md").read_text()
    return found


def places() -> dict[Path, str]:
    """Places on the site, by the file that a page is made of."""
    made = {ROOT / "README.md": "index.md", ROOT / "docs" / "README.md": "index.md"}
    made |= {ROOT / name: name for name in BESIDE} | {path: path.name for path in (ROOT / "docs").glob("*.png")}
    made |= {path: path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"}
    for name in EXPERIMENTS:
        folder = ROOT / "experiments" / name
        made[folder / "README.md"] = made[folder] = f"experiments/{name}.md"
        made |= {path: f"experiments/{path.relative_to(folder.parent)}" for path in folder.rglob("*.png")}
    return made


def linked(text: str, folder: Path, page: str, known: dict[Path, str]) -> str:
    """A text whose links lead to pages of the site. What is not on it stays as a name."""

    def replaced(match: re.Match[str]) -> str:
        picture, shown, target, anchor = match.groups()
        place = known.get((folder / target).resolve())
        if place is None:
            return shown if shown.startswith("`") else f"`{shown}`"
        return f"{picture}[{shown}]({'../' * page.count('/')}{place}{anchor or ''})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)", replaced, text)


def python() -> str:
    """The reference of what users name, for mkdocstrings to fill."""
    parts = ["# Python", "", "For whoever looks up a name: what it takes, what it returns, what it raises."]
    for subject, names in REFERENCE.items():
        parts += ["", f"## {subject}", *(f"\n::: smoothfast.{name}" for name in names)]
    return "\n".join(parts) + "\n"


def commands() -> str:
    """The reference of commands, out of their own help."""
    from smoothfast.cli.app import app

    parts = ["# Command line", "", "For whoever looks up an option: what `smoothfast COMMAND --help` says."]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        parts += ["", f"## smoothfast {name}", "", (command.help or "").strip(), "", *options(command)]
    return "\n".join(parts) + "\n"


def options(command: Any) -> Iterator[str]:
    """Rows of a table of the options of a command."""
    yield "| option | | if not given |"
    yield "|---|---|---|"
    for parameter in command.params:
        name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name.upper()
        plain = isinstance(parameter.default, (int, float, str)) and parameter.default not in (False, "")
        told = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", r"\|")
        yield f"| `{name}` | {told} | {parameter.default if plain else ''} |"


def main(out: Path) -> None:
    """Writes all pages and pictures."""
    shutil.rmtree(out, ignore_errors=True)
    known = places()
    for page, (folder, text) in pages().items():
        put(out / page, linked(text, folder, page, known))
    put(out / "reference" / "python.md", python())
    put(out / "reference" / "commands.md", commands())
    for path, place in known.items():
        if path.suffix == ".png":
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, out / place)


def put(path: Path, text: str) -> None:
    """Writes a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
