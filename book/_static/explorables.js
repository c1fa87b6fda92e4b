// Charts with sliders: each still picture gives way to the live chart, in the colours and the width of the page.
(() => {
  const figures = () => [...document.querySelectorAll("figure.explorable")];
  const here = document.currentScript.src;
  const dark = () => document.documentElement.dataset.theme === "dark";

  const AXES = 72; // pixels of an axis with its labels and its title

  // Panels that do not fit side by side stand below each other, and none is wider than the page.
  const fit = (spec, room) => {
    const narrow = room < 500;
    if (spec.hconcat && spec.hconcat.reduce((sum, panel) => sum + (panel.width ?? 0) + 60, 0) > room) {
      spec.vconcat = spec.hconcat;
      delete spec.hconcat;
    }
    ["hconcat", "vconcat", "layer"].forEach((kind) => (spec[kind] ?? []).forEach((part) => fit(part, room)));
    if (spec.width) spec.width = Math.min(spec.width, room - AXES);
    if (narrow && spec.mark?.type === "text") spec.mark.fontSize = 11;
  };

  const draw = async (figure) => {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const live = figure.querySelector(".explorable-live");
    const values = figure.view ? Object.fromEntries(spec.params.map((p) => [p.name, figure.view.signal(p.name)])) : {};
    spec.params.forEach((p) => { p.value = values[p.name] ?? p.value; });
    spec.background = "transparent";
    fit(spec, figure.clientWidth);
    const look = dark() ? { theme: "dark", config: { text: { color: "#eeeeee" } } } : {}; // the theme leaves its text black
    const { view } = await window.vegaEmbed(live, spec, { actions: false, renderer: "svg", ...look });
    figure.view = view;
    figure.classList.add("explorable-drawn");
  };

  const start = () => {
    if (!figures().length) return;
    const script = document.createElement("script");
    script.src = new URL("vega.js", here);
    script.onload = () => {
      figures().forEach(draw);
      new MutationObserver(() => figures().forEach(draw)).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    };
    document.head.append(script);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
