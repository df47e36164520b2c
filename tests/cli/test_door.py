"""The fast door: help, completion, errors of usage and `analyze` come without what computes; imports, not times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Tried one after another in one process, which tells after each what is loaded: what is not after the last one was
# not after any.
HEAVY = ("torch", "torchvision", "scipy", "matplotlib", "openvino", "mpmath", "safetensors", "PIL")
TRY = """
import json, sys
from smoothfast.cli import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["smoothfast", *words]
    try:
        main()
    except SystemExit as exit_:
        status = exit_.code
    print("\\x00" + json.dumps([words, status, sorted({"numpy", *HEAVY} & set(sys.modules))]))
"""

HELP = [
    [], ["--help"], ["-h"], ["--version"], ["--show-completion", "bash"],
    *([name, flag] for flag in ("--help", "-h") for name in (
        "demo", "certify", "predict", "attack", "train", "sweep", "analyze", "quantize", "selftest", "bench",
        "info",
    )),
]  # fmt: skip
RUN = {
    "certify": ["certify", "--out=new.tsv"],
    "predict": ["predict", "--out=new.tsv"],
    "attack": ["attack", "--attack=epgd", "--out=new.safetensors"],
    "sweep": ["sweep", "--out=new.csv"],
    "train": ["train", "--data=folder:.", "--out=new"],
    "demo": ["demo"],
    "quantize": ["quantize", "--out=new.safetensors"],
    "analyze": ["analyze", "run.tsv"],
}
SHARED = [
    "--model=resnet21", "--model=resnet20+xni", "--model=:f", "--model=resnet32", "--weights=none.safetensors",
    "--classes=1", "--normalize=best", "--data=mnist", "--data=cifar10:", "--data=folder:nowhere", "--skip=0",
    "--max=0", "--runner=fast", "--precision=int4", "--batch=0", "--seed=-1", "--resize=0", "--crop=-1",
    "--resize=32 --crop=33",
]  # fmt: skip
ATTACKED = ["--eps=-1/255", "--eps=8/0", "--eps=much", "--alpha=-0.1", "--steps=0", "--restarts=0"]
USAGE = {
    "certify": [
        *SHARED, "--sigma=0", "--sigma=nan", "--n0=0", "--n=10", "--alpha=0", "--alpha=1", "--method=magic",
        "--method=sequential", "--method=tolerance", "--method=grid", "--radius=0.2", "--tolerance=0.4",
        "--radii=0,0.2", "--beta=0.1", "--bound=best", "--noise=pink", "--shard=pixels", "--processes=0",
        "--out=there.tsv", "--out=trained",
        "--method=tolerance --tolerance=0", "--method=sequential --radius=1 --n=9", "--method=grid --radii=0;1",
        "--method=grid --radii=1 --n=9",
    ],
    "predict": [*SHARED, "--sigma=-1", "--n=10", "--alpha=2", "--method=tolerance", "--noise=pink", "--out=there.tsv"],
    "attack": [
        *SHARED, *ATTACKED, "--attack=magic", "--attack=fgsm --steps=3", "--norm=l1", "--loss=best", "--targeted=cat",
        "--source=both", "--votes=0", "--samples=0", "--sigma=0", "--out=new.pt", "--out=there.safetensors",
        "--picture=a.xyz",
    ],
    "sweep": [
        *SHARED, *(f"--attack=pgd {words}" for words in ATTACKED), "--sigmas=0;1", "--sigmas=-1", "--samples=4,1",
        "--samples=0,1", "--samples=a", "--voting=most", "--attack=magic", "--attack-sigma=-1", "--attack-seeds=0",
        "--plot=a",
    ],
    "train": [
        "--model=resnet21", "--weights=none.pt", "--classes=1", "--normalize=best", "--data=mnist", "--test=mnist",
        "--preset=best", "--recipe=best", "--preset=epgd-finetune", "--preset=cohen --recipe=clean", "--sigma=0",
        "--epochs=0", "--batch=0", "--learning-rate=nan", "--weight-decay=-1", "--schedule=flat", "--milestones=1;2",
        "--schedule=multi-step", "--clip-norm=0", "--recipe=adversarial --eps=8/0", "--steps=0", "--samples=0",
        "--train-samples=0", "--entropy=-1", "--margin=0", "--sharpness=0",
        "--recipe=smoothadv --train-samples=99", "--adversarial-weight=2", "--beta=-1", "--warmup=-1",
        "--noise-strength=-1",
        "--learn=none", "--norms=none", "--validation=-1", "--select=best", "--precision=int4", "--seed=-1",
        "--out=trained", "--resize=0", "--resize=32 --crop=33",
    ],
    "demo": ["--n=5", "--max=0", "--runner=fast"],
    "quantize": [
        "--model=resnet21", "--model=resnet32", "--weights=none.safetensors", "--sigma=0", "--sigma=nan", "--copies=0",
        "--max=0", "--data=mnist", "--fit=folder:nowhere", "--precision=int4", "--normalize=best", "--seed=-1",
        "--out=new.pt", "--out=there.safetensors", "--resize=0",
    ],
    "analyze": [
        "--format=yaml", "--radii=0;1", "--plot=a.xyz", "--spread=a.xyz", "--format=csv --json",
        "--format=csv --intervals", "--frobnicate",
    ],
}  # fmt: skip
OTHERS = [
    ["frobnicate"], ["certify"], ["attack", "--out=a.safetensors"], ["train", "--out=a"], ["analyze"], ["bench"],
    ["bench", "all"], ["bench", "tally", "--max=2"], ["bench", "scaling", "--max=0"], ["bench", "tally", "--plot=a.x"],
    ["info", "--yaml"], ["certify", "--out=a", "--n=many"], ["predict", "--out=a", "--radius=1"],
    ["analyze", "none.tsv"], ["selftest", "--seed=-1"], ["selftest", "--fast"],
]  # fmt: skip
LOG = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.3\t1\t0.1\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a log, and files that are not to be overwritten."""
    for name in ("run.tsv", "there.tsv", "there.safetensors", "trained/checkpoint.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LOG)
    return tmp_path


def tried(place: Path, *lines: list[str]) -> list[tuple[list[str], int, list[str]]]:
    """Command lines, with their exit status and which of the heavy packages are loaded after each."""
    code = TRY.replace("{*HEAVY}", "").replace("*HEAVY", ", ".join(map(repr, HEAVY)))
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)], cwd=place, check=True, capture_output=True, text=True,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(place)},
    )  # fmt: skip
    told = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("\x00")]
    assert len(told) == len(lines), done.stderr
    return told


def test_help_needs_nothing(place: Path) -> None:
    for words, status, loaded in tried(place, *HELP):
        assert loaded == [], words
        assert status == 0 or not words  # releases of click differ in what no command at all is


@pytest.mark.parametrize("command", USAGE)
def test_errors_of_usage_need_no_torch(place: Path, command: str) -> None:
    before = sorted(place.rglob("*"))
    for words, status, loaded in tried(place, *([*RUN[command], *words.split()] for words in USAGE[command])):
        assert status == 2, words
        assert set(loaded) <= {"numpy"}, words
    assert sorted(place.rglob("*")) == before


def test_other_errors_of_usage(place: Path) -> None:
    for words, status, loaded in tried(place, *OTHERS):
        assert (status, set(loaded) <= {"numpy"}) == (2, True), words


def test_a_radius_out_of_range_takes_special_functions_alone(place: Path) -> None:
    ((_, status, loaded),) = tried(place, ["certify", "--out=a", "--method=sequential", "--radius=9"])
    assert (status, loaded) == (2, ["numpy", "scipy"])


def test_analyze_needs_numpy_and_a_picture_matplotlib(place: Path) -> None:
    """And intervals, which a picture has, special functions."""
    given = [], ["--json"], ["--intervals"], ["--plot=a.png"]
    plain, structured, intervals, plotted = tried(place, *(["analyze", "run.tsv", *more] for more in given))
    assert plain[1:] == structured[1:] == [0, ["numpy"]]
    assert intervals[1:] == [0, ["numpy", "scipy"]]
    assert plotted[1] == 0
    assert {"numpy", "matplotlib"} <= set(plotted[2])
    assert not {"torch", "torchvision", "openvino"} & set(plotted[2])


# ---- completion ------------------------------------------------------------------------------------------------------


def completed(place: Path, *words: str) -> list[str]:
    """What bash is told to complete the last word by; fails where that takes torch."""
    code = "import sys; sys.modules.update(torch=None, numpy=None); sys.argv[0] = 'smoothfast'\n"
    code += "from smoothfast.cli import main; main()"
    asked = {"_SMOOTHFAST_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, check=False, capture_output=True, text=True, env=os.environ | asked
    )
    assert "Traceback" not in done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["smoothfast", "cer"], ["certify"]),
        (["smoothfast", "a"], ["attack", "analyze"]),
        (["smoothfast", "certify", "--me"], ["--method"]),
        (["smoothfast", "train", "--learn"], ["--learning-rate", "--learn"]),
        (["smoothfast", "certify", "--runner", "e"], ["eager"]),
        (["smoothfast", "attack", "--attack", "pgd"], ["pgd", "pgd-legacy"]),
        (["smoothfast", "bench", "thr"], ["threads"]),
    ],
)
def test_completion(place: Path, words: list[str], expected: list[str]) -> None:
    assert sorted(completed(place, *words)) == sorted(expected)


def test_completion_is_installed(place: Path) -> None:
    ((_, status, loaded),) = tried(place, ["--install-completion", "bash"])
    assert (status, loaded) == (0, [])
    assert "_SMOOTHFAST_COMPLETE=complete_bash" in (place / ".bash_completions/smoothfast.sh").read_text()
    assert "smoothfast.sh" in (place / ".bashrc").read_text()


# ---- the package -----------------------------------------------------------------------------------------------------


def test_what_users_name_brings_nothing_that_only_some_need() -> None:
    """Beside torch: NumPy alone, and safetensors. What torch itself brings along is not ours. Neither do votes bring a
    compiler, where the work is too little for one."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import smoothfast as sf; sf.SmoothedClassifier; sf.attacks; sf.training\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
        "base = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))\n"
        "sf.SmoothedClassifier(base.eval(), 0.25, 3, precision='fp32').votes(torch.zeros(1, 3, 4, 4), 8)\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    packages, compilers = done.stdout.splitlines()
    assert not {"torchvision", "scipy", "matplotlib", "openvino", "mpmath", "PIL", "triton", "typer"} & set(
        packages.split()
    )
    assert compilers == ""


@pytest.mark.parametrize("name", ["smoothfast", "smoothfast.cli", "smoothfast.training", "smoothfast.training.presets"])
def test_these_import_no_torch(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
