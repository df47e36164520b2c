"""Files of others and numbers of any size: an answer or one line that names the file, no order to the terminal, no code
that runs, no gigabytes."""

from __future__ import annotations

import io
import json
import pickle
import random
import resource
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.hostile import NASTY, ORDERS, obeyed, png, refused_or_read, spoiled
from helpers.readers import READERS
from helpers.toys import WEIGHTS, Run, arguments, check_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from smoothfast import checks, data, files, models
from smoothfast.cli import display
from smoothfast.cli.certify import CertifyOptions, PredictOptions
from smoothfast.cli.options import integers, numbers
from smoothfast.runs import plots, sweep_log, tables
from smoothfast.runs.logs import read_log
from smoothfast.specs import require_data, require_model
from smoothfast.torch_files import read_torch
from smoothfast.training.checkpoints import RunFolder
from smoothfast.weights import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"sigma": [0.25], "votes": 7, "normalize": None, "seed": 3}
ROOM = 2**29  # bytes that all of this may take beside what was taken before


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """Watches the memory of this process: no file, however small, makes it take much."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM // 1024


# ---- readers ---------------------------------------------------------------------------------------------------------

of_each_reader = pytest.mark.parametrize("name", READERS)
few = settings(
    max_examples=25, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
many = settings(few, max_examples=3000, derandomize=False)


def check_spoiled(name: str, folder: Path, choose: st.DataObject) -> None:
    """Reads a file of one kind after it was spoiled."""
    write, act = READERS[name]
    path = folder / name
    if not path.exists() or name not in WHOLE:
        write(path)
        act(path)
        WHOLE[name] = {each: each.read_bytes() for each in folder.iterdir()}
    for each, content in WHOLE[name].items():
        each.write_bytes(content)
    path.write_bytes(choose.draw(spoiled(WHOLE[name][path])))
    stem = name.removesuffix(".json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused_or_read(lambda: act(path), folder / name, folder / stem)


WHOLE: dict[str, dict[Path, bytes]] = {}  # of each kind: the files as they were


@of_each_reader
@few
@given(choose=st.data())
def test_a_spoiled_file_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, name: str, choose: Any) -> None:
    check_spoiled(name, folder_of(tmp_path_factory, name), choose)


@pytest.mark.slow
@of_each_reader
@many
@given(choose=st.data())
def test_many_spoiled_files(tmp_path_factory: pytest.TempPathFactory, name: str, choose: Any) -> None:
    check_spoiled(name, folder_of(tmp_path_factory, name), choose)


def folder_of(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder for the files of one kind, in which nothing else is."""
    folder = factory.getbasetemp() / f"hostile-{name}"
    folder.mkdir(exist_ok=True)
    return folder


@of_each_reader
def test_noise_is_refused(tmp_path: Path, name: str) -> None:
    write, act = READERS[name]
    path = tmp_path / name
    write(path)
    noise = random.Random(name)
    for content in (b"", noise.randbytes(200), *NASTY, b"PK\x03\x04" + noise.randbytes(99), b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        refused_or_read(lambda: act(path), path, tmp_path / name.removesuffix(".json"))


@pytest.mark.parametrize("name", ["checkpoint.pt", "adv.safetensors"])
def test_a_file_cut_anywhere_is_named(tmp_path: Path, name: str) -> None:
    write, act = READERS[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 30):
        path.write_bytes(whole[:length])
        assert not refused_or_read(lambda: act(path), path), length


def test_metrics_cut_anywhere_are_made_again(tmp_path: Path) -> None:
    """A line that is torn is of an epoch whose checkpoint was not written."""
    settings = tiny.SETTINGS
    run = tiny.trainer(tmp_path, settings)
    run.fit()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    state = read_torch(tmp_path / "checkpoint.pt") | {"epoch": len(lines) - 1}
    torch.save(state, tmp_path / "checkpoint.pt")
    folder = RunFolder(tmp_path, settings, {})
    for cut in range(len(lines[-1])):
        (tmp_path / "metrics.jsonl").write_bytes(whole[: len(whole) - cut])
        assert folder.restore() is not None
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[:-1])


# ---- texts and numbers -----------------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=30),
    st.from_regex(r"(torchvision|timm|folder|cifar10|imagenet|no_such_[a-z.]*|\.|):[^\ud800-\udfff]*(\+[a-z]*)?"),
    st.sampled_from([ORDERS, "resnet20+", "+cni", "a:b:c", "folder:/dev/null/\0", "folder:" + "x" * 5000, "\ud800:x"]),
)
NUMBERS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"[-+]?\d{1,9}(\.\d*)?(e[-+]?\d{1,12})?(/\d{0,9})?(,\d+)*", fullmatch=True),
    st.sampled_from(["1e999999999", "9" * 5000, "1/" + "9" * 4000, "nan", "-inf", "1e-999999999", "0x10", "٣/٤"]),
)


@few
@given(TEXTS)
def test_any_spec_is_loaded_or_refused(spec: str) -> None:
    for act in (require_model, require_data, data.load, lambda text: models.load(text, 3)):
        if not spec.startswith("timm:hf"):
            refused_or_read(lambda act=act: act(spec), "")  # type: ignore[misc]


@few
@given(NUMBERS)
def test_any_number_is_read_or_refused(text: str) -> None:
    for act in (checks.fraction, numbers, integers):
        refused_or_read(lambda act=act: act("eps", text), "eps")  # type: ignore[misc]


@few
@given(st.integers(-(2**70), 2**70) | st.just(10**400), st.floats(), st.sampled_from(["fixed", "sequential"]))
def test_any_options_are_taken_or_refused(n: int, sigma: float, method: str) -> None:
    given: dict[str, Any] = {"out": Path("new.tsv"), "n": n, "sigma": sigma, "method": method}
    for options in (
        CertifyOptions(**given, n0=n, batch=n, classes=n, limit=n, skip=n),
        CertifyOptions(**given, radius=sigma if method == "sequential" else None),
        PredictOptions(**given, seed=n),
    ):
        refused_or_read(options.check, "")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"classes": 10**12}, "classes is 1000000000000; it must be at most 100,000"),
        ({"batch": 10**12}, "batch is 1000000000000; it must be at most 65,536"),
        ({"n": 2**41}, "n is 2199023255552; it must be at most 1,099,511,627,775"),
    ],
)
def test_numbers_that_would_take_gigabytes_are_refused(certify: Run, options: dict[str, int], part: str) -> None:
    check_error(certify(**options), part)


@pytest.mark.parametrize(
    ("about", "part"),
    [
        ({"num_classes": "9" * 12}, "the weights tell num_classes '999999999999', expected a number"),
        ({"num_classes": "99999999"}, "classes is 99999999; it must be at most 100,000"),
        ({"num_classes": "many"}, "the weights tell num_classes 'many'"),
        ({"settings": '{"normalize": 3}'}, "the weights tell normalize 3, expected two lists of numbers"),
        ({"settings": '{"normalize": [[1e999], [1]]}'}, "the weights tell normalize [[inf], [1]]"),
        ({"settings": f'{{"normalize": {"[" * 600 + "]" * 600}}}'}, "the weights tell normalize [[[[[[[...]]]]]]]"),
        (
            {"settings": '{"normalize": [[0.5, 0], [1, 1]]}'},
            "normalize has 2 means and 2 stds; the images have 3 channels",
        ),
    ],
)
def test_what_weights_tell_is_no_order(certify: Run, tmp_path: Path, about: dict[str, str], part: str) -> None:
    save_file(WEIGHTS, tmp_path / "told.safetensors", about)
    check_error(certify(weights="told.safetensors", normalize=None), part)


# ---- files that claim to be large ------------------------------------------------------------------------------------

LARGE = 10**5


@pytest.mark.parametrize("side", [10**4, LARGE, 2**31 - 1])
@pytest.mark.parametrize("kind", ["png", "ppm", "bmp", "tif"])
def test_an_image_that_claims_too_many_pixels(tmp_path: Path, kind: str, side: int) -> None:
    path = tmp_path / "ape" / f"bomb.{kind}"
    path.parent.mkdir()
    small = Image.new("RGB", (1, 1))
    small.save(path)
    content = path.read_bytes()
    changes = {"png": lambda: png(side, side), "ppm": lambda: b"P6 %d %d 255\n" % (side, side)}
    changes["bmp"] = lambda: content[:18] + side.to_bytes(4, "little") * 2 + content[26:]
    entries = [bytes([code, 1, 4, 0, 1, 0, 0, 0, 1, 0, 0, 0]) for code in (0, 1)]  # width and height of 1
    claimed = [entry[:8] + side.to_bytes(4, "little") for entry in entries]
    changes["tif"] = lambda: content.replace(entries[0], claimed[0]).replace(entries[1], claimed[1])
    path.write_bytes(changes[kind]())
    with pytest.raises(ValueError, match=rf"bomb\.{kind} cannot be read as an image: "):
        data.load(f"folder:{tmp_path}")[0]


def test_an_image_in_another_format_is_not_handed_to_its_reader(tmp_path: Path) -> None:
    """PostScript, for one, would start a program."""
    path = tmp_path / "program.png"
    Image.new("RGB", (4, 4)).save(path, "EPS")
    with pytest.raises(ValueError, match=r"program\.png cannot be read as an image: it is none of BMP"):
        data.picture(str(path))


def deflated(path: Path, claimed: int) -> None:
    """Makes a torch file one that is small and claims to hold much."""
    torch.save({"fc": torch.zeros(claimed // 4)}, path)
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in records.items():
            file.writestr(name, content)


def test_a_torch_file_that_claims_more_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    deflated(path, 10**7)
    assert path.stat().st_size < 10**5
    with pytest.raises(
        ValueError, match=r"bomb\.pt cannot be read .*: its records claim 10,\d*,\d* bytes, the file has"
    ):
        read_weights(path)


def test_a_tensor_that_reaches_beyond_its_record(tmp_path: Path) -> None:
    path = tmp_path / "long.pt"
    torch.save({"fc": torch.zeros(1000)}, path)
    content = path.read_bytes()
    count = b"M" + (1000).to_bytes(2, "little")  # in the pickle: of the storage and of the tensor
    assert content.count(count) == 2
    larger = content.replace(count, b"M" + (60000).to_bytes(2, "little"))
    path.write_bytes(larger)
    with pytest.raises(ValueError, match=r"long\.pt cannot be read"):
        read_weights(path)


@pytest.mark.parametrize("length", [10**6, 2**40, 2**63, 2**64 - 1])
def test_a_safetensors_header_that_claims_too_much(tmp_path: Path, length: int) -> None:
    header = json.dumps({"fc": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path = tmp_path / "bomb.safetensors"
    for claimed in (len(header), length):
        path.write_bytes(claimed.to_bytes(8, "little") + header)
        with pytest.raises(ValueError, match=r"bomb\.safetensors is not a safetensors file"):
            read_weights(path)


def test_a_file_of_records_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.tsv"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole, that takes no room
    with pytest.raises(ValueError, match=r"run\.tsv has more than 1,000 bytes"):
        files.contents(path, 1000)
    with pytest.raises(ValueError, match="zero has more than 1,000 bytes"):
        files.contents(Path("/dev/zero"), 1000)


def test_a_log_of_the_largest_radii(tmp_path: Path) -> None:
    path = tmp_path / "run.tsv"
    head = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    path.write_text(head + "".join(f"{idx}\t0\t0\t1e100\t1\t1.0\n" for idx in range(9)))
    logs = tables.named([read_log(path)])
    assert tables.MOST_RADII // 2 < len(tables.summary(logs).radii) <= tables.MOST_RADII
    display.draw_curves(logs, tmp_path / "curves.png")


def test_a_sweep_of_the_largest_sigmas(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = (f"clean,0,{sigma},soft,{samples},1,2\n" for sigma in (1e100, 5e-324) for samples in (1, 2**63 - 1))
    path.write_text("images,seed,sigma,voting,samples,correct,count\n" + "".join(lines))
    plots.sweep(sweep_log.read(path), tmp_path / "rows.png")


# ---- code ------------------------------------------------------------------------------------------------------------


class Code:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.folder),)


def test_no_pickle_runs_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"settings": "{}", "model": Code(made)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read with weights_only=True"):
        tiny.trainer(tmp_path).fit(resume=True)
    root = tmp_path / "cifar" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (root / name).write_bytes(pickle.dumps(Code(made)))
    with pytest.raises(ValueError, match="which cannot be read: Dataset not found or corrupted"):
        data.load(f"cifar10:{tmp_path / 'cifar'}")
    stream = io.BytesIO()
    torch.save(Code(made), stream, _use_new_zipfile_serialization=False)
    (tmp_path / "net.pt").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match=r"net\.pt cannot be read with weights_only=True"):
        read_weights(tmp_path / "net.pt")
    assert not made.exists()


# ---- what reaches the terminal ---------------------------------------------------------------------------------------

NAME = ORDERS + "[bold]:smile:\udcff"  # of a file, not UTF-8, and with what rich takes for orders
HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def quiet_terminal(run: Run, *words: object, status: int) -> str:
    """Runs a command and returns what it said, none of which is an order."""
    result = run(*words)
    assert result.status == status, result
    assert obeyed(result.out + result.err) == set()
    return result.out + result.err


def test_names_of_files_are_no_orders(run: Run, toys: Path, tmp_path: Path) -> None:
    log = f"{NAME}.tsv"
    said = quiet_terminal(run, *arguments("certify", toys, out=log), status=0)
    assert "[bold]:smile:" in said
    assert "x[/bold].tsv" in quiet_terminal(run, *arguments("certify", toys, out="x[/bold].tsv"), status=0)
    for words in (["--format=latex"], ["--format=csv"], ["--json"], []):
        assert "owned" in quiet_terminal(run, "analyze", log, *words, status=0)
    quiet_terminal(
        run, "replay", log, "--model=smoothfast_toys:model", "--data=smoothfast_toys:images", status=2
    )  # without its weights
    said = quiet_terminal(run, *arguments("certify", toys, out=log, n=200), "--resume", status=2)
    assert "n was 100, is now 200" in said
    (tmp_path / log).write_bytes(b"spoiled\n")
    assert "expected a header" in quiet_terminal(run, "analyze", log, status=2)
    quiet_terminal(run, *arguments("certify", toys, weights=f"{NAME}.pt"), status=2)
    (tmp_path / f"{NAME}.pt").write_bytes(b"spoiled")
    quiet_terminal(run, *arguments("certify", toys, weights=f"{NAME}.pt"), status=2)


def test_cells_settings_and_classes_are_no_orders(run: Run, toys: Path, tmp_path: Path) -> None:
    (tmp_path / "cell.tsv").write_text(f"{HEAD}0\t0\t0\t{ORDERS}\t1\t1.0\n")
    quiet_terminal(run, "analyze", "cell.tsv", status=2)
    (tmp_path / "head.tsv").write_text(f"{ORDERS}\t{HEAD}")
    quiet_terminal(run, "analyze", "head.tsv", status=2)
    assert run(*arguments("certify", toys)).status == 0
    sidecar = tmp_path / "run.tsv.json"
    kept = json.loads(sidecar.read_text())
    for told in (kept["settings"] | {ORDERS: 1}, kept["settings"] | {"model": ORDERS}, {"command": ORDERS}):
        sidecar.write_text(json.dumps({"settings": told}))
        assert "made with other settings" in quiet_terminal(run, *arguments("certify", toys), "--resume", status=2)
        quiet_terminal(run, "analyze", "run.tsv", "--json", status=0)
        quiet_terminal(run, "replay", "run.tsv", status=2)
    save_file({f"{ORDERS}.weight": torch.zeros(2)}, tmp_path / "names.safetensors", {"num_classes": "3"})
    said = quiet_terminal(run, *arguments("certify", toys, out="w.tsv", weights="names.safetensors"), status=2)
    assert "is not in the model" in said
    (tmp_path / "images" / NAME).mkdir(parents=True)
    words = arguments("certify", toys, out="f.tsv", data=f"folder:{tmp_path / 'images'}")
    assert "holds no images in the folders" in quiet_terminal(run, *words, status=2)


def test_a_warning_is_no_order(capsys: pytest.CaptureFixture[str]) -> None:
    with display.voice(quiet=False):
        warnings.warn(f"{ORDERS} is not sound", stacklevel=1)
    told = capsys.readouterr().err
    assert told.startswith("warning: ")
    assert told.endswith(" is not sound\n")
    assert not obeyed(told)


def test_what_is_printable_stays() -> None:
    text = "sigma = 0.25 ± 0.1\n\tعربى, עברית, 漢字 | x"
    assert display.printable(text) == text
    assert display.printable("a\x1b\r\ud800") == "a\\x1b\\r\\ud800"
