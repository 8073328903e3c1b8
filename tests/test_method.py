import nbformat

from study import run


def test_a_page_shows_the_code_that_it_is_about_and_no_other():
    cells = [
        nbformat.v4.new_code_cell("shown_on_the_page = 1", metadata={"tags": ["code"]}, id="cell-0"),
        nbformat.v4.new_code_cell("hidden_on_the_page = 2", id="cell-1"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    page = run.to_html(notebook, "title")
    assert page.count("shown_on_the_page") == 1 and "hidden_on_the_page" not in page
    assert page == run.to_html(notebook, "title") and len(notebook.cells) == 2
