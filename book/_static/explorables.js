// Charts with sliders: each still picture gives way to the live chart, in the colours of the page.
(() => {
  const figures = () => [...document.querySelectorAll("figure.explorable")];
  const here = document.currentScript.src;
  const dark = () => document.documentElement.dataset.theme === "dark";

  const draw = async (figure) => {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const live = figure.querySelector(".explorable-live");
    const values = figure.view ? Object.fromEntries(spec.params.map((p) => [p.name, figure.view.signal(p.name)])) : {};
    spec.params.forEach((p) => { p.value = values[p.name] ?? p.value; });
    spec.background = "transparent";
    const { view } = await window.vegaEmbed(live, spec, { actions: false, renderer: "svg", theme: dark() ? "dark" : undefined });
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
