"""The site: made once from a small report, and looked through as a reader's browser would."""

import base64
import inspect
import io
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from test_calculator import BROWSER
from test_index import CAPTION, PICTURE, TABLE, TWO, _profile

from study.reports import drawn, index, site
from study.reports.results import Results

ROOT = Path(__file__).parent.parent
CODE = "from study.common import params_file\n\n\ndef shown(rows):\n    params_file.section(rows)\n"


def _cell(source, *outputs, tags=()):
    shown = [nbformat.v4.new_output("display_data", dict(data)) for data in outputs]
    for output in (one for one in shown if "image/png" in one["data"]):
        output["metadata"] = {"image/png": {"alt": 'a curve "ours"'}}
    return nbformat.v4.new_code_cell(source, outputs=shown, metadata={"tags": list(tags)})


def _notebook(path):
    cells = [
        nbformat.v4.new_markdown_cell("# Main results\n\n## First\n\ntext"),
        _cell(CODE, tags=["hide"]),
        _cell("hidden = 1", {"text/html": TABLE["text/html"].replace("<td>1", "<tr><td>1", 1)}),
        _cell("shown(hidden)", PICTURE, CAPTION | {"text/csv": "x,y\n1,2\n"}),
        _cell("taught = 2", tags=["code"]),
    ]
    path.parent.mkdir(exist_ok=True)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two builds of one site (ten seconds each: Sphinx reads docstrings)."""
    folder = tmp_path_factory.mktemp("runs")
    reports = [folder / "reports" / f"{name}.ipynb" for name in ("11_main_results", index.HOME)]
    for path in reports:
        _notebook(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(site, "CODE", ("study/common",))
        for name in ("site", "again"):
            site.build(_profile("embedded"), reports, [], TWO, folder / name)
    return folder / "site"


def _pages(folder):
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in sorted(folder.rglob("*.html"))}


def broken(folder) -> list[str]:
    """Links and anchors of a site's pages that lead nowhere, and what a page would fetch from elsewhere."""
    pages, found = _pages(folder), []
    anchors = {path: {element["id"] for element in page.find_all(id=True)} for path, page in pages.items()}
    for path, page in pages.items():
        for element in page.find_all(["a", "link", "script", "img", "use"]):
            url = urlsplit(element.get("href") or element.get("src") or "")
            if url.scheme or url.netloc:
                if element.name != "a" and url.scheme != "data":
                    found.append(f"{path.name} fetches {url.geturl()[:80]}")
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
            if not target.exists():
                found.append(f"{path.name}: no {url.path}")
            elif url.fragment and target in anchors and url.fragment not in anchors[target]:
                found.append(f"{path.name}: no #{url.fragment} in {target.name}")
    return found


def test_every_link_and_anchor_leads_somewhere_and_nothing_comes_from_elsewhere(built):
    assert broken(built) == []
    page = built / "11_main_results.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</article>", '<a href="items.html#no">x</a><img src="https://x.y/z.png"></article>'))
    found = broken(built)
    page.write_text(text)
    assert len(found) == 2 and "no #no in items.html" in found[0] and "fetches https://x.y/z.png" in found[1]


def test_equal_builds_give_equal_bytes(built):
    files = [path.relative_to(built) for path in sorted(built.rglob("*")) if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if (built / path).read_bytes() != (built.parent / "again" / path).read_bytes()] == []


def test_every_page_has_a_bar_a_title_and_fits_small_screens(built):
    for path, page in _pages(built).items():
        if path.parent.name == "api" or path.name in ("search.html", "calculator.html"):
            continue
        bar = [link.get_text() for link in page.find("nav", class_="bar").find_all("a")]
        assert bar[0] == "Home" and page.find("meta", attrs={"name": "viewport"})
        assert page.title.get_text() not in ("", path.stem)
    report = _pages(built)[built / "11_main_results.html"]
    assert report.title.get_text().startswith("Main results")
    assert {"prev", "next"} == {link["rel"][0] for link in report.find("nav", class_="bar").find_all("a", rel=True)}
    assert "First" in report.find("nav", class_="bar").details.get_text()


def test_an_item_is_reached_at_its_top_and_says_what_made_it(built):
    text = (built / "11_main_results.html").read_text(encoding="utf-8")
    for item, above, below in (("table_1", "a caption that says", "<table"), ("figure_1", "<img", "a caption that says")):
        assert text.count(f'id="{item}"') == 1
        after = text[text.index(f'id="{item}"') :]
        assert after.index(above) < after.index(below) < after.index(f'href="data/{item}.csv"')
        about = BeautifulSoup(after[after.index('<p class="about">') :].split("</p>")[0], "html.parser").get_text()
        for part in ("stage page@11_main_results", "notebook 11_main_results", "certificates, data, draws", "commit"):
            assert part in about
        assert ("study.common.params_file.section" in about) == (item == "figure_1")
    assert pd.read_csv(built / "data" / "table_1.csv", header=None).notna().all(axis=None)
    assert (built / "data" / "figure_1.csv").read_text() == "x,y\n1,2\n"
    picture = BeautifulSoup(text, "html.parser").find("img", alt='a curve "ours"')
    assert (built / picture["src"]).read_bytes() == base64.b64decode(PICTURE["image/png"])
    assert "taught" in text and "hidden = 1" not in text


def test_whatever_shows_an_item_is_named_as_its_maker():
    public = {name: function for name, function in inspect.getmembers(Results, inspect.isfunction) if name[0] != "_"}
    calls = r"display\(|show_figure\(|_with_cost\(|comparison\("
    shows = {name for name, function in public.items() if re.search(calls, inspect.getsource(function))}
    assert shows - {"rests_on"} == set(site._SHOW), "rests_on is the box that ends a page"


@pytest.mark.parametrize(
    "page, rows",
    [
        ("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td> x <b>y</b></td></tr></table>", ["a,b", "1,x y"]),
        ("<table><tr><th colspan=2>a</th></tr><tr><td>1</td><td>2,3</td></tr></table>", ["a,a", '1,"2,3"']),
        ("<table><tr><th rowspan=2>a</th><td>1</td></tr><tr><td>2</td></tr></table>", ["a,1", "a,2"]),
        ("no table", []),
    ],
)
def test_a_tables_cells_as_csv(page, rows):
    assert site.as_csv(page).splitlines() == rows


def test_sections_are_those_of_all_stages_before():
    graph = {
        "train": {"params": ["data.${key}", "runs"], "deps": [], "outs": [{"m/models": {"persist": True}}]},
        "other": {"params": ["speed"], "deps": [], "outs": ["m/speed"]},
        "page": {"deps": ["m/models/x", "m/shown.json"], "outs": ["p"]},
    }
    assert site._sections("page", graph) == ["data", "report", "runs"]


def test_a_figures_numbers_are_those_that_it_shows():
    figure, (curves, bars) = plt.subplots(1, 2)
    curves.plot([0, 1, 2, 3], [5, 5, 5, 4], label="steps")
    curves.errorbar([1, 2], [0.5, 0.25], [[0.1, 0.05], [0.2, 0.1]], label="a, b")
    curves.axhline(1)
    curves.axhline(3, label="whole")  # from edge to edge
    bars.hist([1, 1, 2], bins=[0.5, 1.5, 2.5], label="counts")
    bars.set_title("second")
    plt.close(figure)
    found = pd.read_csv(io.StringIO(drawn.as_csv(figure)), keep_default_na=False, dtype=str)
    part = {name: rows[["x", "y", "low", "high"]].values.tolist() for name, rows in found.groupby("series")}
    assert part["steps"] == [["0", "5", "", ""], ["2", "5", "", ""], ["3", "4", "", ""]]
    assert part["a, b"] == [["1", "0.5", "0.4", "0.7"], ["2", "0.25", "0.2", "0.35"]]
    assert part["whole"] == [["", "3", "", ""], ["", "3", "", ""]]
    assert part["counts"] == [["1", "2", "", ""], ["2", "1", "", ""]] and set(found["panel"]) == {"", "second"}
    figure, axes = plt.subplots()
    axes.imshow([[0, 1]])
    plt.close(figure)
    assert drawn.as_csv(figure) == ""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_long_table_is_sorted_by_a_click_and_a_short_one_or_one_with_spans_is_left_alone(tmp_path):
    cells = ["9 % [3, 20]", "-", "1,200", "10 %", "\u22124", "0.5", "none", "7", "8", "6", "30"]
    rows = "".join(f"<tr><th>row {i}</th><td>{cell}</td></tr>" for i, cell in enumerate(cells))
    head = "<thead><tr><th></th><th>cell</th></tr></thead>"
    tables = [rows, rows.rpartition("<tr>")[0], rows.replace("<td>7", "<td rowspan=2>7")]
    body = "".join(f'<div class="scroll"><table>{head}<tbody>{part}</tbody></table></div>' for part in tables)
    clicks = "addEventListener('load', () => document.querySelectorAll('thead th + th').forEach(h => { h.click(); %s }))"
    found = []
    for more in ("", "h.click();", "h.click();h.click();"):
        page = tmp_path / "page.html"
        script = f'<script src="{(site.PAGES / "sort.js").as_uri()}"></script><script>{clicks % more}</script>'
        page.write_text(f'<meta charset="utf-8">{body}{script}')
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
        ended = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
        shown = BeautifulSoup(ended.stdout, "html.parser").find_all("table")
        found.append([[row.td.get_text() for row in one.tbody.find_all("tr")] for one in shown])
    ascending = ["\u22124", "0.5", "6", "7", "8", "9 % [3, 20]", "10 %", "30", "1,200", "-", "none"]
    assert [one[0] for one in found] == [ascending, ascending[::-1], cells]
    assert all(one[1:] == [cells[:-1], cells] for one in found)
