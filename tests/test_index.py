from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml

from study import params
from study.reports import index, items, sections

ROOT = Path(__file__).parent.parent
CONTENT = yaml.safe_load((ROOT / items.ITEMS).read_text())
ITEMS = CONTENT["items"]
WORDS = "a caption that says what is shown, and on what it rests"
TABLE = {"text/html": f'<p><span id="table_1"></span>{WORDS}</p><table>' + "<td>1</td>" * 8 + "</table>"}
PICTURE, CAPTION = {"image/png": "x" * 20_000}, {"text/html": f'<p><span id="figure_1"></span>{WORDS}</p>'}
TWO = {name: {"title": name, "report": "11_main_results"} for name in ("table_1", "figure_1")}


def _profile(name):
    """What `check` would show of a profile."""
    study = params.load(ROOT / "profiles" / f"{name}.yaml")
    data = {key: config.model_dump() for key, config in study.data.items()}
    return SimpleNamespace(layout=SimpleNamespace(name=name), report=study.report, runs=study.runs, data=data)


def _report(folder, *outputs):
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data) for data in outputs])
    title = nbformat.v4.new_markdown_cell("# Main <results>\n\ntext")
    nbformat.write(nbformat.v4.new_notebook(cells=[title, cell]), folder / "11_main_results.ipynb")


def test_the_paper_has_28_tables_12_figures_and_the_acr():
    tables, figures = ({f"{kind}_{i}" for i in range(1, n + 1)} for kind, n in (("table", 28), ("figure", 12)))
    assert set(ITEMS) == tables | figures | {"acr"}
    assert all((ROOT / "notebooks" / f"{item['report']}.ipynb").is_file() for item in ITEMS.values())
    for name in ("embedded", "paper"):
        assert index.promised(ITEMS, _profile(name)) == ITEMS
    smoke = index.promised(ITEMS, _profile("smoke"))
    assert "table_14" in smoke and "table_13" not in smoke
    assert set(index.promised(ITEMS, _profile("cifar10"))) == {"table_2"}


@pytest.mark.parametrize(
    "outputs, fault",
    [
        ([TABLE, PICTURE, CAPTION], None),
        ([PICTURE, CAPTION], "table_1: shown 0 times instead of once in 11_main_results"),
        ([TABLE, TABLE, PICTURE, CAPTION], "table_1: shown 2 times"),
        ([{"text/html": TABLE["text/html"].replace("<td>1", "<td>")}, PICTURE, CAPTION], "table_1: fewer than 6 filled cells"),
        ([{"text/html": TABLE["text/html"].replace(WORDS, "")}, PICTURE, CAPTION], "table_1: no caption"),
        ([TABLE, CAPTION], "figure_1: no picture"),
        ([TABLE, {"image/png": "x"}, CAPTION], "figure_1: no picture"),
    ],
)
def test_a_missing_empty_or_uncaptioned_item_is_a_fault(tmp_path, outputs, fault):
    _report(tmp_path, *outputs)
    found = index.faults(tmp_path, TWO)
    assert found == [] if fault is None else len(found) == 1 and found[0].startswith(fault)


def test_an_absent_report_is_a_fault(tmp_path):
    assert index.faults(tmp_path, TWO) == ["table_1: no report 11_main_results", "figure_1: no report 11_main_results"]


def test_the_table_leads_to_every_item():
    page = index.table(_profile("embedded"), TWO, ["11_main_results"])
    for part in ('href="11_main_results.html#table_1">Table 1<', 'href="11_main_results.html#figure_1">Figure 1<'):
        assert part in page
    assert "page@11_main_results" in page and index.table(_profile("embedded"), TWO, []).count("<tr>") == 1


def test_a_profile_says_whose_task_it_is():
    told = {name: index.whose_task(_profile(name)) for name in ("embedded", "paper", "cifar10")}
    assert "digits stands in for CIFAR-10" in told["embedded"]
    assert "cifar10 is CIFAR-10." in told["paper"] and "imagenet is ImageNet, as brought in files." in told["paper"]
    assert "cifar10 is CIFAR-10, as brought in files." in told["cifar10"]


def test_every_report_is_a_stage_of_the_graph():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    pages = params.load(ROOT / "profiles" / "embedded.yaml").report.pages.names()
    assert set(CONTENT["reports"]) == {*index._ALWAYS, *pages, sections.ALONE}
    assert {item["report"] for item in ITEMS.values()} <= set(CONTENT["reports"])
    profile = _profile("embedded")
    for report in set(CONTENT["reports"]) - {sections.ALONE}:
        assert index.stage(report, profile).partition("@")[0] in stages
