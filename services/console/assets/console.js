// The theme: the system's unless someone has chosen another one. Loaded before the page is drawn.
"use strict";
(() => {
  const KEY = "waybill-theme";
  const THEMES = ["system", "light", "dark"];

  function stored() {
    try {
      const theme = localStorage.getItem(KEY);
      return THEMES.includes(theme) ? theme : "system";
    } catch {
      return "system";
    }
  }

  function show(theme) {
    if (theme === "system") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", theme);
    document.dispatchEvent(new CustomEvent("waybill:theme"));
  }

  show(stored());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector("[data-theme-switch]");
    button.hidden = false;
    const label = () => { button.textContent = `Theme: ${stored()}`; };
    label();
    button.addEventListener("click", () => {
      const next = THEMES[(THEMES.indexOf(stored()) + 1) % THEMES.length];
      try { localStorage.setItem(KEY, next); } catch { /* it lasts until the next page */ }
      show(next);
      label();
    });
  });
})();
