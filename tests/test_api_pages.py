"""The API pages that pdoc writes: no warning, no dead link, no empty page."""

import html
import inspect
import pathlib
import re
import subprocess
import sys
import types

import pytest

import fngrad as fg

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPTIONS = "--math --docformat google --no-show-source"
MODULES = "fngrad fngrad.transforms.projections"  # a namespace inside of a folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[pathlib.Path, str]:
    pytest.importorskip("pdoc", reason="pdoc comes with the extra dev")
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, "-W", "error", "-m", "pdoc", *OPTIONS.split()]
    done = subprocess.run(
        [*command, "-o", str(folder), *MODULES.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower(), done.stderr
    found = {path: path.read_text("utf-8") for path in folder.rglob("*.html")}
    return {path: text for path, text in found.items() if path.name != "index.html"}


def anchors(text: str) -> list[str]:
    return re.findall(r'\bid="([^"]+)"', text)


def dead_links(pages: dict[pathlib.Path, str]) -> list[str]:
    index = next(iter(pages)).parent / "index.html"
    known = {path: set(anchors(text)) for path, text in pages.items()}
    dead = []
    for path, text in pages.items():
        markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
        for link in sorted(set(re.findall(r'href="([^"]+)"', markup))):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            is_outside = re.match(r"(https?|data|mailto):", link)
            exists = target in known and anchor in known[target] | {""}
            if not (is_outside or exists or target.name == index.name):
                dead.append(f"{path.name}: {link}")
    return dead


def test_no_link_inside_the_pages_is_dead(pages):
    assert not dead_links(pages)


def test_a_dead_link_is_found(pages):
    path = next(iter(pages))
    assert dead_links({path: '<a id="here" href="#here"></a>'}) == []
    assert len(dead_links({path: '<a href="#nowhere"></a>'})) == 1
    assert len(dead_links({path: '<a href="no_page.html"></a>'})) == 1


def test_no_page_is_empty(pages):
    for path, text in pages.items():
        assert len(re.findall('class="docstring"', text)) >= 2, path.name


def test_every_public_name_has_its_place(pages):
    by_name = {path.stem: anchors(text) for path, text in pages.items()}
    for name in fg.__all__:
        value = getattr(fg, name)
        if isinstance(value, types.ModuleType):
            missing = set(value.__all__) - set(by_name[name])
            assert all(isinstance(getattr(value, n), types.ModuleType) for n in missing)
        else:
            assert name in by_name["fngrad"]


def flat(text: str) -> str:
    return " ".join(html.unescape(text).split())


def formulas(docstring: str) -> list[str]:
    without_code = re.sub(r"(`+).*?\1", "", docstring, flags=re.DOTALL)
    return re.findall(r"\$\$.+?\$\$|\$[^$]+?\$", without_code, flags=re.DOTALL)


def documented() -> list[tuple[str, object]]:
    """Return (page, object) of the modules, functions and classes with a place."""
    found = []
    for name in fg.__all__:
        value = getattr(fg, name)
        is_module = isinstance(value, types.ModuleType)
        members = [getattr(value, n) for n in value.__all__] if is_module else []
        found += [(name, m) for m in members if not isinstance(m, types.ModuleType)]
        found.append((name if is_module else "fngrad", value))
    return [(p, x) for p, x in found if callable(x) or isinstance(x, types.ModuleType)]


def test_math_is_rendered_as_it_is_written(pages):
    assert all("mathjax" in text.lower() for text in pages.values())
    shown = {path.stem: flat(text) for path, text in pages.items()}
    written = [
        (page, flat(formula))
        for page, value in documented()
        for formula in formulas(inspect.getdoc(value) or "")
    ]
    assert len(written) > 1000
    # Markdown takes a line that begins with + or - for a list, x^* and y^* for
    # emphasis, and drops a backslash of \\, \_ and \!: write \cr, x^\ast, no \!.
    assert [(page, f) for page, f in written if f not in shown[page]] == []


def test_the_readme_has_this_command():
    assert f"pdoc {OPTIONS} -o api fngrad" in (ROOT / "README.md").read_text("utf-8")
