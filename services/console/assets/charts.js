// The charts of the overview: draws what the page's `data-charts` address returns, and asks again at each step.
"use strict";
(() => {
  const COLOURS = ["--chart-1", "--chart-2", "--chart-3"];
  const HEIGHT = 170;
  const place = document.querySelector("[data-charts]");
  const message = document.getElementById("charts-message");
  const plots = [];
  let data = null;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function options(figure, width) {
    const axis = { stroke: css("--pico-muted-color"), grid: { stroke: css("--pico-muted-border-color"), width: 1 },
      ticks: { stroke: css("--pico-muted-border-color"), width: 1 } };
    const unit = figure.dataset.unit;
    const named = figure.dataset.series.split(" ").map((name, number) => ({
      label: name.replaceAll("_", " "),
      stroke: css(COLOURS[number]),
      width: 2,
      points: { show: false },
      value: (_, value) => (value === null || value === undefined ? "–" : `${+value.toPrecision(4)}${unit}`),
    }));
    return {
      width,
      height: HEIGHT,
      series: [{ value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" }, ...named],
      axes: [{ ...axis, space: 55, values: [
        [86400, "{MM}-{DD}", null, null, null, null, null, null, 1],
        [60, "{HH}:{mm}", "\n{MM}-{DD}", null, null, null, null, null, 1],
        [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1],
      ] }, { ...axis, size: 55 }],
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      cursor: { drag: { x: false, y: false } },
      hooks: { setCursor: [(plot) => { if (plot.cursor.idx === null || plot.cursor.idx === undefined) showLatest(plot); }] },
    };
  }

  const series = (figure) => [data.times, ...figure.dataset.series.split(" ").map((name) => data[name])];

  // The legend tells the latest numbers, unless someone points at others.
  function showLatest(plot) {
    const known = plot.data.slice(1).map((values) => values.findLastIndex((value) => value !== null));
    const latest = Math.max(...known);
    if (latest >= 0) plot.setLegend({ idx: latest });
  }

  function describe(figure) {
    const latest = figure.dataset.series.split(" ").map((name) => {
      const known = data[name].filter((value) => value !== null);
      return `${name.replaceAll("_", " ")} ${known.length ? +known.at(-1).toPrecision(4) : "unknown"}`;
    });
    const canvas = figure.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent}. Now: ${latest.join(", ")}.`);
  }

  function draw() {
    while (plots.length) plots.pop().plot.destroy();
    for (const figure of place.querySelectorAll("figure")) {
      const plot = new uPlot(options(figure, figure.clientWidth), series(figure), figure);
      plots.push({ figure, plot });
      showLatest(plot);
      describe(figure);
    }
  }

  function show() {
    message.textContent = data.times.length ? "" : "No worker has written to the history in this period.";
    if (!plots.length) draw();
    for (const { figure, plot } of plots) {
      plot.setData(series(figure));
      if (plot.cursor.idx === null || plot.cursor.idx === undefined) showLatest(plot);
      describe(figure);
    }
  }

  async function load() {
    if (!document.hidden || data === null) {
      try {
        const reply = await fetch(place.dataset.charts, { credentials: "same-origin" });
        if (reply.status === 401) location.reload();
        else if (reply.ok) { data = await reply.json(); show(); }
        else message.textContent = "The charts could not be loaded; the page tries again.";
      } catch {
        message.textContent = "The server does not answer; the page tries again.";
      }
    }
    setTimeout(load, 1000 * Math.max(10, data === null ? 10 : data.step));
  }

  // Canvases do not follow style sheets.
  const redraw = () => { if (data !== null) draw(); };
  document.addEventListener("waybill:theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("resize", () => {
    for (const { figure, plot } of plots) plot.setSize({ width: figure.clientWidth, height: HEIGHT });
  });
  // A stream that is refused because the session has ended: the page becomes the form to sign in.
  document.addEventListener("htmx:sse:error", (event) => { if (event.detail.status === 401) location.reload(); });
  load();
})();
