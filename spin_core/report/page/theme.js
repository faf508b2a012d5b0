"use strict";
// light, dark, or as the system has it; set before anything is drawn
(() => {
  const root = document.documentElement, kinds = ["auto", "light", "dark"];
  let kind = "auto";
  try { kind = localStorage.getItem("spinflow-theme") || "auto"; } catch { /* no storage: the choice lasts as long as the page */ }
  const set = () => { if (kind === "auto") delete root.dataset.theme; else root.dataset.theme = kind; };
  set();
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => { button.textContent = `Theme: ${kind}`; };
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      kind = kinds[(kinds.indexOf(kind) + 1) % kinds.length];
      try { localStorage.setItem("spinflow-theme", kind); } catch { /* see above */ }
      set();
      show();
    });
  });
})();
