"""The documentation as a site: its pages are put together, no link leads nowhere, and it is built where Zensical is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    maker.main(folder)
    return folder


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"`|\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"[\s-]+", "-", plain)


def test_links_lead_to_pages_and_headings(site: Path) -> None:
    anchors = {
        page: {slug(heading) for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)}
        for page in site.rglob("*.md")
    }
    for page in anchors:
        for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)]*))?\)", page.read_text()):
            found = (page.parent / target).resolve() if target else page
            assert found.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors[found], f"{page.name}: {target}#{anchor}"


def test_every_page_is_in_the_navigation(site: Path) -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE))
    assert listed == {str(page.relative_to(site)) for page in site.rglob("*.md")}


def test_references_name_what_there_is(maker: ModuleType, site: Path) -> None:
    import smoothfast

    for names in maker.REFERENCE.values():
        for name in names:
            found: object = smoothfast
            for part in name.split("."):
                found = getattr(found, part)
    commands = (site / "reference" / "commands.md").read_text()
    assert "## smoothfast certify" in commands
    assert "| `--sigma` |" in commands


@pytest.mark.slow
def test_the_site_is_built(site: Path, tmp_path: Path) -> None:
    zensical = shutil.which("zensical", path=f"{ROOT / 'build' / 'docs' / 'bin'}:{Path(sys.executable).parent}")
    if zensical is None:
        pytest.skip("zensical is not installed: make docs")
    shutil.copytree(site, tmp_path / "build" / "pages")
    for name in ("mkdocs.yml", "smoothfast"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run([zensical, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "build" / "site" / "index.html").exists()
