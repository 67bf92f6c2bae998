"""The page of a run or a sweep holds everything, opens offline, and can be read."""

import base64
import html
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from run_folders import write_run

import fngrad as fg
import fngrad.logging.plots as plots
import fngrad.sweeps.results.saved as saved
from fngrad.commands.command_line import main
from fngrad.commands.reporting import page_of
from fngrad.sweeps import SweepResult

AUTOPSY = "step 20 went bad in the forward pass: log(-0.5) = nan\n  layer  <head>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture
def run(tmp_path):
    """Return a run that failed, with names that need escapes and long values."""
    return write_run(
        tmp_path / "run <1>",
        {
            "<k>": 0.1,
            "note": "a & b",
            "path": "x/" * 150,
            **dict.fromkeys("abc", 1),
        },
        stopped=None,
        failure="NonFiniteError: the loss is NaN",
        autopsy=AUTOPSY,
        platform="Linux",
        flags={"jax_enable_x64": True},
    )


def sweep_result() -> SweepResult:
    """Return a sweep of six points, of which the last diverged."""
    rates = np.tile([0.01, 0.1, 1.0], 2)
    curves = 1 / (1 + np.arange(5.0)) + np.log10(rates)[:, None, None] ** 2
    curves = curves + 0.01 * np.arange(3.0)[:, None]
    diverged = np.where(np.arange(6) == 5, 4, -1)[:, None].repeat(3, axis=1)
    curves[5] = np.inf
    return SweepResult(
        points={"rate": rates, "rule": np.repeat(["sgd", "adam"], 3)},
        state=[None, None],
        history={"val/loss": curves},
        diverged_at=diverged.astype(np.int32),
        notes={
            "metric": ("val/loss", "min"),
            "static": ["rule"],
            "values": curves[:, :, -1],
            "seconds": 1.0,
            "restored": 0,
        },
    )


class Elements(html.parser.HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_of_a_run_holds_everything_in_one_file(run, capsys, tmp_path):
    own = plots.png(plots.empty_figure(3.0, 1.0))
    for name in ("own", "curves"):
        (run / f"{name}.png").write_bytes(own)
    output = tmp_path / "pages" / "page.html"
    assert main(["report", str(run), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    page = output.read_text(encoding="utf-8")
    elements = Elements(page)
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        *("run", "metrics", "autopsy", "curves", "pictures"),
        *("where the time went", "config", "environment"),
    ]
    for text in (
        "run <1>",
        "<k>",
        AUTOPSY,
        "a & b",
        "NonFiniteError: the loss",
        "2.50 s",
    ):
        assert text in elements.text
    images = [attributes["src"] for tag, attributes in elements.tags if tag == "img"]
    assert len(images) == 3  # loss with val/loss, val/score, and the one in the folder
    prefix = "data:image/png;base64,"
    assert all(image.startswith(prefix) for image in images)
    assert base64.b64decode(images[-1].removeprefix(prefix)) == own
    assert not {tag for tag, _ in elements.tags} & {"script", "link", "iframe"}
    assert not re.search(r"(src|href)=.?http|url\(", page)


def test_a_run_without_records_has_a_page_too(tmp_path):
    folder = write_run(tmp_path / "a", losses=(), seconds={})
    assert re.findall("<h2>(.*?)</h2>", page_of(folder)) == ["run", "environment"]


def test_the_results_of_an_experiment_and_its_own_curves_are_shown(tmp_path):
    results = {"adam": {"rate": 0.1, "accuracy": 0.97654321}}
    folder = write_run(tmp_path / "a", losses=(), results=results)
    (folder / "curves.png").write_bytes(plots.png(plots.empty_figure(1.0, 1.0)))
    page = page_of(folder)
    assert "<tr><th>adam.accuracy</th><td>0.9765</td></tr>" in page
    assert page.count("<img") == 1


def test_the_page_of_a_run_with_a_sweep_inside_shows_both(run):
    (run / "sweep").mkdir()
    saved.save(run / "sweep", sweep_result())
    titles = re.findall("<h2>(.*?)</h2>", page_of(run))
    assert titles[:5] == [
        *("run", "metrics", "autopsy", "sweep: ranking", "sweep: pictures")
    ]


def test_the_page_of_a_sweep_ranks_its_points(tmp_path):
    saved.save(tmp_path, sweep_result())
    page = page_of(tmp_path)
    text = Elements(page).text
    assert "6 points, 3 seeds, 3 of 18 lanes diverged" in text
    assert page.count("<tr>") == 7
    titles = [a["alt"] for tag, a in Elements(page).tags if tag == "img"]
    assert titles == ["sensitivity to rate", "curves of val/loss", "rate and rule"]


def test_a_saved_result_is_loaded_without_its_states(tmp_path):
    result = sweep_result()
    saved.save(tmp_path, result)
    loaded = fg.sweeps.load(tmp_path)
    for name in ("points", "history"):
        for key, column in getattr(result, name).items():
            np.testing.assert_array_equal(getattr(loaded, name)[key], column)
    np.testing.assert_array_equal(loaded.diverged_at, result.diverged_at)
    assert loaded.state == [None, None]
    assert str(fg.sweeps.table(loaded)) == str(fg.sweeps.table(result))
    with pytest.raises(FileNotFoundError, match="need the folder of a finished sweep"):
        fg.sweeps.load(tmp_path / "other")


def test_numbers_that_numpy_lacks_are_saved_as_float32(tmp_path):
    result = sweep_result()
    history = {"val/loss": jnp.asarray(result.history["val/loss"], jnp.bfloat16)}
    saved.save(tmp_path, result._replace(history=history))
    loaded = fg.sweeps.load(tmp_path).history["val/loss"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, history["val/loss"].astype(jnp.float32))


MEASURE = """
<script>
window.onload = () => {
  const box = e => e.getBoundingClientRect();
  const found = [...document.querySelectorAll("section, img, table, pre, h1, h2")];
  const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1
    || a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
  const overlaps = [];
  found.forEach((a, i) => found.slice(i + 1).forEach(b => {
    if (!a.contains(b) && !b.contains(a) && !apart(box(a), box(b)))
      overlaps.push(a.outerHTML.slice(0, 60) + " and " + b.outerHTML.slice(0, 60));
  }));
  const hidden = e => e.closest(".scroll, pre") ? false
    : box(e).right > box(e.closest("section, main")).right + 1;
  const report = {
    overlaps,
    outside: found.filter(hidden).map(e => e.outerHTML.slice(0, 60)),
    empty: found.filter(e => box(e).width < 5 || box(e).height < 5)
      .map(e => e.outerHTML.slice(0, 60)),
    broken: [...document.images].filter(i => !i.naturalWidth).length,
    images: document.images.length,
    sections: document.querySelectorAll("section").length,
    scrolls: document.documentElement.scrollWidth > window.innerWidth,
    height: Math.ceil(document.documentElement.scrollHeight),
  };
  document.body.innerHTML = "<pre id=report>" + JSON.stringify(report)
    .replaceAll("<", "(").replaceAll("&", "+") + "</pre>";
};
</script></body>
"""


def in_browser(page: pathlib.Path, *options: str) -> str:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    address = page.resolve().as_uri()
    return subprocess.run(
        [*command, profile, "--hide-scrollbars", *options, address],
        capture_output=True,
        check=True,
        text=True,
    ).stdout


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_browser_nothing_is_missing_and_nothing_overlaps(run, tmp_path, width):
    from matplotlib.image import imread

    (run / "sweep").mkdir()
    saved.save(run / "sweep", sweep_result())
    text = page_of(run)
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    size = f"--window-size={width},900"
    measured = in_browser(page, "--dump-dom", size)
    found = re.search(r'<pre id="report">(.*?)</pre>', measured)
    assert found
    report = json.loads(found[1])
    height = report.pop("height")
    assert report == {
        **{"overlaps": [], "outside": [], "empty": [], "broken": 0, "scrolls": False},
        **{"images": text.count("<img"), "sections": text.count("<section")},
    }
    page.write_text(text, encoding="utf-8")
    picture = tmp_path / "page.png"
    in_browser(page, f"--screenshot={picture}", f"--window-size={width},{height}")
    pixels = imread(picture)[..., :3]
    assert pixels.shape[1] == width
    # Something is drawn in every tenth of the page.
    assert all(part.std() > 0.01 for part in np.array_split(pixels, 10))
