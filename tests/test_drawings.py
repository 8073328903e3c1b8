from itertools import combinations

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from srs import drawings, figures

EXPECTED = {
    "draw_serialization": [
        "Standard randomized smoothing",
        "every solve starts at zero, on its own",
        "Serialized randomized smoothing",
        "each solve starts at the fixed point before it",
        "warm-up:\nmany steps",
        r"$x + \varepsilon_{N}$",
        "step saved",
        "they must be audited",
    ],
    "draw_audit": [
        "casts $N$ votes",
        "$K$ of the draws,\nchosen at random",
        "not confirmed: $N_2 - N_1$",
        r"1 - \mathrm{CP}(N_1, N_2;\ \alpha / 2)",
        r"N_A^E = \lfloor (1 - p_m^{\mathrm{up}})\, N_A \rfloor",
        r"\mathrm{CP}(N_A^E, N;\ \alpha / 2)",
        r"R = \sigma\, \Phi^{-1}(p_A^{\mathrm{low}})",
        "else abstain",
    ],
}


@pytest.fixture(params=EXPECTED, scope="module")
def drawing(request):
    with plt.rc_context():
        figures.set_style()
        figure = getattr(drawings, request.param)()
        figure.canvas.draw()
        yield request.param, figure
        plt.close(figure)


def _texts(figure):
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text.axes.axison is False]


def _overlaps(texts):
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def test_drawings_say_what_they_show(drawing):
    name, figure = drawing
    said = [text.get_text() for text in _texts(figure)]
    for expected in EXPECTED[name]:
        assert any(expected in text for text in said), expected


def test_texts_are_readable_inside_and_apart(drawing):
    _, figure = drawing
    texts = _texts(figure)
    assert len(texts) > 15
    assert min(text.get_fontsize() for text in texts) >= 9
    assert _overlaps(texts) == []
    for text in texts:
        box = text.get_window_extent()
        assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1), text
        assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1), text


def test_an_overlap_would_be_found():
    figure, axes = drawings._canvas(1.0)
    for x in (1.0, 1.1):
        drawings._text(axes, x, 0.5, "text")
    assert len(_overlaps(_texts(figure))) == 1
    plt.close(figure)


def test_serialized_solves_take_fewer_steps_than_standard_ones():
    figure = drawings.draw_serialization()
    ladders = {drawings._BLUE: [], drawings._VERMILION: []}
    for line in figure.axes[0].get_lines():
        if line.get_linestyle() == "-" and line.get_marker() == "o":
            ladders[line.get_color()].append(len(line.get_xdata()) - 1)
    plt.close(figure)
    assert ladders == {drawings._BLUE: [9, 9, 9, 9], drawings._VERMILION: [9, 3, 3, 3]}


def test_only_votes_for_a_are_confirmed_or_not():
    assert drawings._NOT_CONFIRMED.issubset(set(drawings._AUDITED) - drawings._FOR_OTHERS)
    assert set(drawings._AUDITED) & drawings._FOR_OTHERS  # shown: such a vote takes no part in the bound
