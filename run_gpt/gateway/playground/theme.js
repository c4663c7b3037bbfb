// The light or dark theme: the system's, until the button chooses. Runs before the page is painted.
(() => {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  try {
    const kept = localStorage.getItem("rungpt-theme");
    if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("toggle-theme");
    const show = () => button.setAttribute("aria-pressed", String(dark()));
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try {
        localStorage.setItem("rungpt-theme", root.dataset.theme);
      } catch {
        // As above.
      }
      show();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    show();
  });
})();
