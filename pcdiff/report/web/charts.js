"use strict";
// Draws each chart of a page from the figure in its JSON, with the methods of `report/charts.py`.
for (const chart of document.querySelectorAll(".chart")) {
  const figure = JSON.parse(chart.querySelector("script").textContent);
  Plotly.newPlot(chart.querySelector(".drawing"), figure.data, figure.layout, {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage"]],
    toImageButtonOptions: { format: "svg", filename: chart.dataset.name },
  });
}
