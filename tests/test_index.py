from pathlib import Path

import nbformat
import pytest
import yaml

from srs import index, params

ROOT = Path(__file__).parent.parent
CONTENT = yaml.safe_load((ROOT / index.ITEMS).read_text())
ITEMS = CONTENT["items"]
WORDS = "a caption that says what is shown, and on what it rests"
TABLE = {"text/html": f'<table><caption><span id="table_1"></span>{WORDS}</caption>' + "<td>1</td>" * 8 + "</table>"}
PICTURE, CAPTION = {"image/png": "x" * 20_000}, {"text/html": f'<p><span id="figure_1"></span>{WORDS}</p>'}
TWO = {name: {"title": name, "report": "11"} for name in ("table_1", "figure_1")}


def _report(folder, *outputs):
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data) for data in outputs])
    title = nbformat.v4.new_markdown_cell("# Main <results>\n\ntext")
    nbformat.write(nbformat.v4.new_notebook(cells=[title, cell]), folder / "11.ipynb")


def test_the_paper_has_28_tables_12_figures_and_the_acr():
    tables, figures = ({f"{kind}_{i}" for i in range(1, n + 1)} for kind, n in (("table", 28), ("figure", 12)))
    assert set(ITEMS) == tables | figures | {"acr"}
    assert all((ROOT / "notebooks" / f"{item['report']}.ipynb").is_file() for item in ITEMS.values())
    study = params.load(ROOT / "params.yaml")
    for name in ("embedded", "paper"):
        assert index.promised(ITEMS, study.profiles[name]) == ITEMS
    smoke = index.promised(ITEMS, study.profiles["smoke"])
    assert "table_14" in smoke and "table_13" not in smoke
    assert set(index.promised(ITEMS, study.profiles["cifar10"])) == {"table_2"}


@pytest.mark.parametrize(
    "outputs, fault",
    [
        ([TABLE, PICTURE, CAPTION], None),
        ([PICTURE, CAPTION], "table_1: shown 0 times instead of once in 11"),
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
    assert index.faults(tmp_path, TWO) == ["table_1: no report 11", "figure_1: no report 11"]


def test_the_page_leads_to_every_item_and_says_whose_task_it_is(tmp_path):
    _report(tmp_path, TABLE, PICTURE, CAPTION)
    study = params.load(ROOT / "params.yaml")
    page = index.page(study.profiles["embedded"], TWO, [tmp_path / "11.ipynb"], "reports/")
    for part in ('href="reports/11.html#table_1">Table 1<', 'href="reports/11.html#figure_1">Figure 1<', "report@11"):
        assert part in page
    assert "Main &lt;results&gt;" in page and "http" not in page
    assert "digits stands in for CIFAR-10" in page
    pages = {name: index.page(study.profiles[name], TWO, [tmp_path / "11.ipynb"], "") for name in ("paper", "cifar10")}
    assert "cifar10 is CIFAR-10." in pages["paper"] and "imagenet is ImageNet, as brought in files." in pages["paper"]
    assert "cifar10 is CIFAR-10, as brought in files." in pages["cifar10"]


def test_every_report_is_a_stage_of_the_graph():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert stages["report"]["foreach"] == "${active.pages}"
    pages = yaml.safe_load((ROOT / "params.yaml").read_text())["pages"]
    assert CONTENT["reports"] == ["10_table2", *pages, "23_past_the_paper", params.ALONE]
    assert {item["report"] for item in ITEMS.values()} <= set(CONTENT["reports"])
    assert index.stage("10_table2") in stages
