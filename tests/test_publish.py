from pathlib import Path

import nbformat
import pytest
import yaml

from srs import index, publish


def test_publish_copies_reports_and_their_figures(tmp_path):
    source, target = tmp_path / "runs", tmp_path / "reports"
    with pytest.raises(FileNotFoundError, match="run `make repro` first"):
        publish.publish([source / "05.ipynb"], target)
    source.mkdir()
    png = {"image/png": "iVBORw0KGgo="}
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("display_data", png)])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), source / "05.ipynb")
    (source / "05.html").write_text("page")
    names = {path.name for path in publish.publish([source / "05.ipynb"], target)}
    assert names == {"05.ipynb", "05.html", "05-1.png"} == {path.name for path in target.iterdir()}
    (source / "05.html").write_bytes(b"x" * (publish.LARGEST + 1))
    with pytest.raises(ValueError, match="at most 2,000,000"):
        publish.publish([source / "05.ipynb"], target)


def test_the_published_snapshot_shows_every_item():
    """What stands under reports/ has every table and figure of the paper, with its caption."""
    root = Path(__file__).parent.parent
    items = yaml.safe_load((root / index.ITEMS).read_text())["items"]
    assert index.faults(root / "reports" / "embedded", items) == []
    page = (root / "reports" / "embedded" / "index.html").read_text()
    assert all(f'#{item}"' in page for item in items)
    assert max(path.stat().st_size for path in (root / "reports").rglob("*") if path.is_file()) <= publish.LARGEST
