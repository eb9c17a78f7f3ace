// Light or dark as the system says, until the reader says otherwise.

export function theme(button) {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const show = () => {
    button.textContent = now() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${now() === "dark" ? "light" : "dark"} colours`);
  };
  button.addEventListener("click", () => { root.dataset.theme = now() === "dark" ? "light" : "dark"; show(); });
  dark.addEventListener("change", show);
  show();
}
