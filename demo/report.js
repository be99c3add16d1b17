// Tooltips by mouse, touch and keyboard: every [data-tip] inside a [data-tips], which takes the focus.
"use strict";
const tip = document.getElementById("tip");
let shown = null;

function show(target) {
  if (shown) shown.classList.remove("shown");
  shown = target;
  tip.hidden = !target;
  if (!target) return;
  target.classList.add("shown");
  tip.textContent = target.dataset.tip;
  const box = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(4, box.left + box.width / 2 - own.width / 2), document.documentElement.clientWidth - own.width - 4);
  const above = box.top - own.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 0 ? box.bottom + 8 : above}px`;
}

const MOVES = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
document.addEventListener("pointerover", (event) => event.pointerType === "mouse" && show(event.target.closest("[data-tip]")));
document.addEventListener("pointerdown", (event) => show(event.target.closest("[data-tip]")));
document.addEventListener("scroll", () => shown && show(shown), { passive: true });
document.addEventListener("focusout", () => show(null));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") show(null);
  const all = event.target.matches("[data-tips]") ? [...event.target.querySelectorAll("[data-tip]")] : [];
  const move = MOVES[event.key];
  if (!all.length || !move) return;
  event.preventDefault();
  const at = all.indexOf(shown);
  const next = at < 0 ? (move > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + move, 0), all.length - 1);
  all[next].scrollIntoView({ block: "nearest" });
  show(all[next]);
});
