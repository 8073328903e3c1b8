"""The drawings that are kept as SVG: what they say, and that pages, index and publication take them as figures."""

from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from IPython.display import SVG

from study.reports import index, publish

DRAWINGS = Path(__file__).parent.parent / "study" / "reports" / "drawings"
SAID = {
    "serialization": ["every solve starts at zero", "each solve starts where the one before ended", "they must be audited"],
    "audit": ["the standard DEQ votes", "pmup = 1 − CP(N1, N2; α/2)", "pAlow = CP(NAE, N; α/2)", "R = σ Φ−1(pAlow)"],
}
CAPTION = {"text/html": f'<p><span id="figure_1"></span>{"word " * 9}</p>'}


def _report(path, *outputs):
    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data) for data in outputs])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


@pytest.mark.parametrize("name", SAID)
def test_a_drawing_says_what_it_shows_in_text_and_needs_nothing_else(name):
    root = ElementTree.parse(DRAWINGS / f"{name}.svg").getroot()
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(texts) > 15
    for words in SAID[name]:
        assert any(words in text for text in texts), words
    ids = {element.get("id") for element in root.iter()} - {None}
    for element in root.iter():
        for key, value in element.items():
            assert not key.endswith("href") or value.removeprefix("#") in ids  # nothing from elsewhere
            assert not value.startswith("url(") or value[5:-1] in ids


def test_a_drawing_is_a_picture_for_the_index_and_is_published_as_it_is(tmp_path):
    drawing = {"image/svg+xml": SVG(filename=DRAWINGS / "audit.svg").data}
    items = {"figure_1": {"report": "15"}}
    _report(tmp_path / "15.ipynb", drawing, CAPTION)
    assert index.faults(tmp_path, items) == []
    png = {"image/png": "iVBORw0KGgo="}
    _report(tmp_path / "15.ipynb", png, drawing)
    names = [path.name for path in publish.publish([tmp_path / "15.ipynb"], tmp_path / "out")]
    assert names == ["15.ipynb", "15-1.png", "15-2.svg"]
    assert ElementTree.fromstring((tmp_path / "out" / "15-2.svg").read_bytes()).tag.endswith("svg")
    _report(tmp_path / "15.ipynb", {"image/svg+xml": "<svg></svg>"}, CAPTION)
    assert index.faults(tmp_path, items) == ["figure_1: no picture before its caption in 15"]
