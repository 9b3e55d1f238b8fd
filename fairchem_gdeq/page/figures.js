"use strict";
// Draws every figure of the page. Clicking a point with a row asks the viewer for that structure.
for (const source of document.querySelectorAll("script[data-figure]")) {
  const figure = JSON.parse(source.textContent);
  const place = document.getElementById(source.dataset.figure);
  const options = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false, // plotly.js has a button that uploads the data unless it is told not to
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  };
  Plotly.newPlot(place, figure.data, figure.layout, options).then(() => {
    place.on("plotly_click", (event) => {
      const [row] = event.points[0].customdata || [];
      if (row !== undefined) document.dispatchEvent(new CustomEvent("structure", { detail: row }));
    });
  });
}
