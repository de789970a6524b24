"""Charts: SVG that stands in a page and takes its colours."""

from __future__ import annotations

from xml.etree import ElementTree

from workbench.charts import chart


def test_a_chart_is_svg_in_the_colours_of_the_page_with_its_text_as_text() -> None:
    with chart("Cost in $ of a$ap") as drawn:
        drawn.axes.plot([1, 2, 3], [10, 12, 30], label="one")
        drawn.axes.legend()
    root = ElementTree.fromstring(drawn.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "Cost in $ of a$ap" in "".join(root.itertext())
    assert "var(--ink)" in drawn.svg
    assert "#010203" not in drawn.svg
